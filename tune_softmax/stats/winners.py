"""Which of several trials, trained again over seeds, may be the best on the test set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.errors import ResultsError
from tune_softmax.stats.crossed import Crossed, check_metric
from tune_softmax.stats.intervals import (
    binomial_interval,
    check_confidence,
    mean_interval,
    paired_intervals,
)
from tune_softmax.stats.margins import Verdict, margin_or_default
from tune_softmax.stats.wording import and_list

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Array = NDArray[np.float64]

__all__ = ["winner_sentence", "winners"]


def winners(
    replicates: pd.DataFrame,
    validation: pd.DataFrame,
    num_test_images: int,
    metric: str = "test_loss",
    confidence: float = 0.95,
    *,
    margin: float | None = None,
) -> pd.DataFrame:
    """Return how trials trained again over seeds do on the test set, and which may be the best.

    A trial is a winner unless another is shown to be better by more than the margin: its
    difference to some other trial, paired over seeds, is above the margin by a one-sided t test at
    (1 - confidence) / (k - 1). The truly best of k trials can be lost only in its own k - 1
    comparisons, so it is among the winners with probability `confidence` or more: that is all
    that a user who picks one needs, and cheaper than the k(k - 1)/2 comparisons of all pairs.
    This is Gupta's subset selection, the first half of Hsu's multiple comparisons with the best,
    with Bonferroni's constant and a variance for each pair in place of one variance for all, for
    trials that train at a high learning rate vary more. A trial that diverged at any seed is no
    winner and rules out no other. One seed rules out none.

    `verdict` compares with the leader, the trial with the best mean, by the same tests at both
    ends. The leader is "better" where it is so than every other trial that did not diverge; with
    no difference that matters to all winners it has none either.

    The intervals of the means are Student's, one at a time and without correction: read them as
    descriptions, and compare by `is_winner`. They may pass 1 where seeds are few. The binomial
    ones say what other test images would change; the comparison is on these images alone.

    Args:
        replicates: A row for each trial and seed: `trial`, `seed`, `test_loss`, `test_accuracy`.
            Every trial has the same seeds.
        validation: What the search saw, a row for each trial or more of them: `trial`,
            `validation_loss`, `validation_accuracy`.
        num_test_images: In the test set, at least 1.
        metric: What decides who wins: `test_loss`, which has less noise, or `test_accuracy`.
        confidence: Of each interval, and that the best is among the winners; in [0.5, 1).
        margin: The smallest difference that matters, >= 0, in the metric's unit;
            `default_margin` of the best trial's mean by default.

    Returns:
        A row for each trial, the best first: `trial`, `num_seeds`, `mean_test_accuracy`,
        `accuracy_low`, `accuracy_high`, `binomial_low`, `binomial_high`,
        `binomial_half_width`, `mean_test_loss`, `loss_low`, `loss_high`, `validation_loss`,
        `validation_accuracy`, `accuracy_drop` (validation minus test: what being chosen by
        validation flattered, and the chance between two finite sets), `is_winner`, `metric`,
        `margin`, `verdict` (a `Verdict`'s text; "diverged" for a trial that did).

    Raises:
        ExperimentError: An argument is out of range.
        ResultsError: A column, a seed or a trial is missing or there twice.

    Source: Gupta, "On some multiple decision (selection and ranking) rules", Technometrics 7
    (1965), 225-245; Hsu, Multiple Comparisons (1996), chapter 4; on the drop, Cawley and Talbot,
    JMLR 11 (2010), 2079-2107.
    """
    check_confidence(confidence)
    names = ["test_loss", "test_accuracy"]
    check_metric(metric, names)
    crossed = Crossed.read(replicates, ["trial"], names, "replicates")
    trials = crossed.units["trial"]
    seen = _validation_of(trials, validation)
    loss, accuracy = (crossed.by_seed[name] for name in names)  # (n, k)
    is_finite = np.isfinite(loss).all(axis=0) & np.isfinite(accuracy).all(axis=0)
    rows = [
        _replicated(loss[:, i], accuracy[:, i], num_test_images, confidence)
        for i in range(len(trials))
    ]
    table = pd.DataFrame(rows)
    table.insert(0, "trial", trials)
    table["validation_loss"] = seen["validation_loss"].to_numpy()
    table["validation_accuracy"] = seen["validation_accuracy"].to_numpy()
    table["accuracy_drop"] = table["validation_accuracy"] - table["mean_test_accuracy"]
    costs = loss if metric == "test_loss" else -accuracy
    table["cost"] = np.where(is_finite, costs, np.inf).mean(axis=0)
    margin = margin_or_default(margin, metric, float(table["cost"].min()))
    tail = (1 - confidence) / max(len(trials) - 1, 1)
    table["is_winner"] = False
    table["metric"] = metric
    table["margin"] = margin
    table["verdict"] = "diverged"
    if is_finite.any():
        may_be_best, verdicts = _compare_all(costs[:, is_finite], tail, margin)
        table.loc[is_finite, "is_winner"] = may_be_best
        table.loc[is_finite, "verdict"] = verdicts
    return table.sort_values("cost", kind="stable", ignore_index=True).drop(columns="cost")


def winner_sentence(table: pd.DataFrame) -> str:
    """Return what `winners` found, in a sentence.

    Args:
        table: As `winners` returns it.
    """
    names = [*table.loc[table["is_winner"], "trial"]]
    if not names:
        return "No winner: every trial diverged at a seed when it was trained again."
    metric, margin = str(table["metric"].iloc[0]), float(table["margin"].iloc[0])
    unit = "" if metric.endswith("accuracy") else " nats"
    beyond = f"more than {margin:.4f}{unit} of {metric.replace('_', ' ')}"
    if len(table) == 1:
        return f"Trial {names[0]} was confirmed alone: there is none to compare it with."
    (leader,) = table.loc[table["trial"] == names[0], "verdict"]
    if leader == Verdict.BETTER:
        return f"Trial {names[0]} is better than every other by {beyond}."
    if len(names) == 1:
        return (
            f"Trial {names[0]} is the only one that no other is shown to beat by {beyond}; it is "
            "not shown to beat every other."
        )
    among = f"trials {and_list(names)}"
    if leader == Verdict.NO_DIFFERENCE:
        return f"Between {among} there is no difference that matters, which is {beyond}."
    return f"Between {among} it is not settled which is better by {beyond}."


def _compare_all(costs: _Array, tail: float, margin: float) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which of k trials, (n, k), may be the best, and each one's verdict."""
    num_trials = costs.shape[1]
    own, others = np.repeat(costs, num_trials, axis=1), np.tile(costs, num_trials)  # (n, k * k)
    paired = paired_intervals(others, own, tail)  # own minus other's
    low, high = (ends.reshape(num_trials, num_trials) for ends in (paired.low, paired.high))
    may_be_best = np.logical_not((low > margin).any(axis=1))
    leader = int(costs.mean(axis=0).argmin())
    verdicts = [
        Verdict.WORSE
        if not may_be_best[trial]
        else Verdict.NO_DIFFERENCE
        if -margin <= low[trial, leader] and high[trial, leader] <= margin
        else Verdict.UNSETTLED
        for trial in range(num_trials)
    ]
    rest = [trial for trial in range(num_trials) if trial != leader]
    rivals = {verdicts[trial] for trial in rest if may_be_best[trial]}
    verdicts[leader] = Verdict.UNSETTLED
    if rest and (high[leader, rest] < -margin).all():
        verdicts[leader] = Verdict.BETTER
    elif rivals == {Verdict.NO_DIFFERENCE}:
        verdicts[leader] = Verdict.NO_DIFFERENCE
    return may_be_best, [str(verdict) for verdict in verdicts]


def _replicated(
    loss: _Array, accuracy: _Array, num_test_images: int, confidence: float
) -> dict[str, float]:
    """Return one trial's means over seeds, (n,) each, with their intervals."""
    over_seeds = {
        "accuracy": mean_interval(accuracy, confidence),
        "loss": mean_interval(loss, confidence),
    }
    mean = over_seeds["accuracy"].mean
    low = high = math.nan
    if math.isfinite(mean):
        over_images = binomial_interval(mean, num_test_images, confidence)
        low, high = over_images.low, over_images.high
    return {
        "num_seeds": len(loss),
        "mean_test_accuracy": mean,
        "accuracy_low": over_seeds["accuracy"].low,
        "accuracy_high": over_seeds["accuracy"].high,
        "binomial_low": low,
        "binomial_high": high,
        "binomial_half_width": (high - low) / 2,
        "mean_test_loss": over_seeds["loss"].mean,
        "loss_low": over_seeds["loss"].low,
        "loss_high": over_seeds["loss"].high,
    }


def _validation_of(trials: pd.Series[int], validation: pd.DataFrame) -> pd.DataFrame:
    """Return the validation values of these trials, in their order."""
    names = ["trial", "validation_loss", "validation_accuracy"]
    missing = [name for name in names if name not in validation.columns]
    if missing:
        raise ResultsError(
            f"validation: needs the columns {', '.join(names)}; missing: {', '.join(missing)}"
        )
    rows = validation[validation["trial"].isin(trials)]
    if sorted(rows["trial"]) != sorted(trials):
        raise ResultsError(
            f"validation: must have one row for each of the trials {sorted(trials)}, and has "
            f"rows for {sorted(rows['trial'])}; take them from the search that proposed the trials"
        )
    return rows.set_index("trial").loc[trials]
