"""Verdicts over seeds: which remedy is better, whether a baseline overfits, which trial is best.

Pure functions from dataframes of results over seeds to dataframes and values. All comparisons are
paired over seeds, so that every unit (arm, epoch, trial) must have the same ones. A difference is
judged by its interval and by a margin, the smallest difference that matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.stats.intervals import (
    binomial_interval,
    check_confidence,
    mean_interval,
    paired_intervals,
)
from tune_softmax.stats.wording import and_list, interval_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    _Array = NDArray[np.float64]

__all__ = [
    "Overfitting",
    "Verdict",
    "better_on_validation",
    "check_margin",
    "choose_strengths",
    "default_margin",
    "effects",
    "losses_at_stops",
    "overfitting",
    "winner_sentence",
    "winners",
]

_ARM = ["remedy", "strength", "strength_label"]
_IS_LOWER_BETTER = {
    "train_loss": True,
    "validation_loss": True,
    "test_loss": True,
    "train_accuracy": False,
    "validation_accuracy": False,
    "test_accuracy": False,
    "gap": True,
}
_MARGIN_FRACTION = 0.01  # of a loss
_MARGIN_NATS = 0.001  # at least
_MARGIN_ACCURACY = 0.002
_FEWEST_SEEDS = 3


def check_margin(margin: float) -> None:
    """Refuse a margin that is no number >= 0.

    Raises:
        ExperimentError: It is not.
    """
    if not 0 <= margin < math.inf:
        raise ExperimentError(f"margin: must be a number >= 0, not {margin}; 0 takes none")


class Verdict(StrEnum):
    """How a remedy compares with the baseline, or a trial with the best one.

    BETTER, WORSE: the whole interval of the difference is beyond the margin. NO_DIFFERENCE: the
    whole interval is within it. UNSETTLED: neither; more seeds would tell.
    """

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference that matters"
    UNSETTLED = "not settled"


def default_margin(metric: str, level: float) -> float:
    """Return the smallest difference that matters, where none is given.

    Of a loss it is 1 % of the level and at least 0.001 nats; of an accuracy 0.002. More seeds make
    the smallest difference certain, but not one that another test set would show: over 10,000
    images the standard error of a mean loss of 0.45 is about 0.007 nats, and of an accuracy of
    0.85 it is 0.0036. The margins are near half of that.

    Args:
        metric: The name of a loss, an accuracy, or `gap`.
        level: Of the loss that the difference is held against, in nats.
    """
    if metric.endswith("accuracy"):
        return _MARGIN_ACCURACY
    return max(_MARGIN_FRACTION * level, _MARGIN_NATS) if math.isfinite(level) else _MARGIN_NATS


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Whether a baseline's validation loss rises again after its best epoch.

    Attributes:
        num_seeds: How many seeds were trained.
        best_epoch: Where the mean validation curve over all seeds is lowest.
        last_epoch: Where training ended.
        best_loss: Mean validation loss in nats over all seeds but the first, each at the epoch
            that the seeds before it chose.
        last_loss: Mean validation loss in nats of the same seeds after the last epoch.
        rise: `last_loss - best_loss`; below 0 where noise made the others choose badly.
        low: Lower end of the rise's interval; -inf where there is none.
        high: Upper end of the rise's interval; inf where there is none.
        floor: A rise up to here does not matter; nats.
        gap: Mean of validation minus training loss in nats after the last epoch.
        confidence: Of the interval.
    """

    num_seeds: int
    best_epoch: int
    last_epoch: int
    best_loss: float
    last_loss: float
    rise: float
    low: float
    high: float
    floor: float
    gap: float
    confidence: float

    @property
    def is_overfitting(self) -> bool:
        """Whether the whole interval is above the floor."""
        return self.low > self.floor

    @property
    def sentence(self) -> str:
        """The verdict with its numbers, or why there is none."""
        if not math.isfinite(self.rise):
            return "No verdict: a validation loss is not finite; to diverge is not to overfit."
        if self.num_seeds < _FEWEST_SEEDS:
            return "No verdict: one seed must choose an epoch, and two or more measure there."
        gap = (
            f"After epoch {self.last_epoch} it is {self.gap:.4f} nats above the training loss."
            if math.isfinite(self.gap)
            else "The training loss is not finite."
        )
        if self.rise == 0 and math.isinf(self.high):
            return f"The validation loss does not rise again: the last epoch is its best. {gap}"
        interval = interval_text(self.low, self.high, "+.4f")
        if math.isfinite(self.low):
            interval = f"{self.confidence:.0%} interval {interval}"
        numbers = (
            f"from its best epoch (about {self.best_epoch}) to epoch {self.last_epoch} the "
            f"validation loss changes by {self.rise:+.4f} nats ({interval}); up to "
            f"{self.floor:.4f} does not matter."
        )
        if self.is_overfitting:
            return f"Overfitting: {numbers} {gap}"
        said = "No rise that matters" if self.high <= self.floor else "Not settled"
        return f"{said}: {numbers} {gap}"


def choose_strengths(arms: pd.DataFrame) -> pd.DataFrame:
    """Return for each remedy the strength with the lowest mean validation loss over seeds.

    The test set takes no part, or the chosen strength's test loss would flatter it (Cawley and
    Talbot, JMLR 11 (2010), section 5). A loss that is not finite counts as infinite, so that a
    strength that diverged for one seed is chosen only if all did; of equals the smaller strength
    is chosen.

    Args:
        arms: A row for each arm and seed: `remedy` ("baseline" for one arm), `strength`,
            `strength_label`, `seed`, `validation_loss`. Every arm has the same seeds.

    Returns:
        A row for each remedy in the order of `arms`, the baseline left out: `remedy`, `strength`,
        `strength_label`, `num_seeds`, `validation_loss` (mean, inf if diverged), `num_diverged`.

    Raises:
        ResultsError: A column or a seed is missing or there twice, or there is no baseline.
    """
    crossed = _Crossed.read(arms, _ARM, ["validation_loss"], "arms")
    _baseline(crossed)
    chosen = _choose(crossed)
    loss, num_diverged = _validation_means(crossed)
    return (
        crossed.units.iloc[chosen]
        .reset_index(drop=True)
        .assign(
            num_seeds=len(crossed.by_seed["validation_loss"]),
            validation_loss=loss[chosen],
            num_diverged=num_diverged[chosen],
        )
    )


def better_on_validation(arms: pd.DataFrame, margin: float | None = None) -> pd.DataFrame:
    """Return which remedies lower the validation loss, each at its chosen strength.

    A remedy is among them if its mean difference to the baseline, paired over seeds, is below
    minus the margin, and below 0 by a one-sided t test at 5 %, divided by the number of its
    strengths: the best of several equal strengths is better than the baseline by luck. Values
    that differ by the same amount at all seeds are taken as they are.

    Args:
        arms: As in `choose_strengths`.
        margin: The smallest difference that matters, in nats; `default_margin` by default.

    Returns:
        Rows of `choose_strengths`.

    Raises:
        ResultsError: As in `choose_strengths`.
    """
    crossed = _Crossed.read(arms, _ARM, ["validation_loss"], "arms")
    loss = crossed.by_seed["validation_loss"]
    before = loss[:, [_baseline(crossed)]]  # (n, 1)
    if margin is None:
        margin = default_margin("validation_loss", float(before.mean()))
    chosen = choose_strengths(arms)
    num_strengths = crossed.units["remedy"].value_counts()
    is_better = []
    for arm, remedy in zip(_choose(crossed), chosen["remedy"], strict=True):
        paired = paired_intervals(before, loss[:, [arm]], 0.05 / int(num_strengths[remedy]))
        mean, high = float(paired.mean[0]), float(paired.high[0])
        has_one_value = bool(paired.reasons[0]) and math.isfinite(mean) and len(loss) > 1
        is_better.append(mean < -margin and (high < 0 or has_one_value))
    return chosen[is_better].reset_index(drop=True)


def losses_at_stops(
    stops: Mapping[int, int], curves: Mapping[int, Sequence[float]]
) -> dict[int, float]:
    """Return for each seed the loss at its stopping epoch, as the other seeds' curves have it.

    Early stopping keeps the epoch at which a seed's own validation loss is lowest. That loss
    flatters itself: on a flat curve with noise the lowest of E epochs is below the last one.
    Another seed's noise knows nothing of the choice, so that its loss at that epoch does not.

    Args:
        stops: Each seed's chosen epoch, from 0.
        curves: Validation losses by seed, after each epoch; of a curve that ends before an
            epoch, the last value stands. Empty for a seed that failed.

    Returns:
        The mean over the other seeds, by seed; infinite where no other has a curve.
    """
    losses = {}
    for seed, stop in stops.items():
        others = [
            curve[min(stop, len(curve) - 1)]
            for other, curve in curves.items()
            if other != seed and curve
        ]
        losses[seed] = fmean(others) if others else math.inf
    return losses


def effects(
    arms: pd.DataFrame,
    metric: str = "test_loss",
    confidence: float = 0.95,
    margin: float | None = None,
) -> pd.DataFrame:
    """Return what each remedy at its chosen strength changes against the baseline, how surely.

    Differences are paired: remedy minus baseline at the same seed, so that what the seed does to
    both cancels. Each has a paired-t interval at the level 1 - (1 - confidence) / m, where m
    counts *all* arms beside the baseline, also the strengths that were not chosen. By
    Bonferroni's inequality all m intervals hold together with probability `confidence`, and so
    do any that are picked from them, by whatever rule. Choose one metric beforehand, though: the
    correction covers arms, not a second metric.

    Why m, and not one for each remedy: of equal strengths the one with the best validation loss
    is the one whose runs were lucky, and luck in training shows on the test set too. The best of
    ten equal strengths, tested as if it were alone, passes for a difference in every tenth study
    (simulated in the tests). Why not Dunnett's narrower intervals: they take one variance for
    all arms, and remedies change the variance between seeds. Bonferroni's assume nothing of
    variances and correlations.

    The verdict is read off the interval and the margin (see `Verdict`): many seeds make the
    smallest difference certain, and nobody would act on it. `p_value`, Bonferroni's too, tests
    against 0: it is below 1 - confidence where the interval leaves out 0, and only there. There
    is no interval, hence "not settled", for one seed, for a difference that is the same at every
    seed unless it is 0, and with a value that is not finite: a diverged run has no place on the
    scale of the others, so it is evidence for nothing, and to drop its pair would keep the lucky
    seeds.

    Args:
        arms: As in `choose_strengths`, with the column `metric`.
        metric: `test_loss`, `test_accuracy`, the same of `train` and `validation`, or `gap`.
            Less is better for losses and for `gap`, though a model that learns nothing has none.
        confidence: That all intervals hold together, in [0.5, 1).
        margin: The smallest difference that matters, >= 0, in the metric's unit;
            `default_margin` of the baseline's mean by default.

    Returns:
        A row for each remedy: `remedy`, `strength`, `strength_label`, `metric`, `num_seeds`,
        `num_comparisons` (m), `baseline_mean`, `remedy_mean`, `difference` (remedy minus
        baseline), `low`, `high`, `p_value` (NaN without an interval), `margin`, `verdict` (a
        `Verdict`'s text), `reason` (why there is no interval; empty where there is one).

    Raises:
        ExperimentError: `metric`, `confidence` or `margin` is not allowed.
        ResultsError: As in `choose_strengths`, or there is no remedy.

    Source: Dunn, "Multiple comparisons among means", JASA 56 (1961), 52-64; Dunnett's method and
    its one variance: Hsu, Multiple Comparisons (1996), chapter 3; why simultaneous intervals
    bear any selection: Berk et al., "Valid post-selection inference", Annals of Statistics 41
    (2013), 802-837.
    """
    check_confidence(confidence)
    _check_metric(metric, list(_IS_LOWER_BETTER))
    crossed = _Crossed.read(arms, _ARM, ["validation_loss", metric], "arms")
    baseline = _baseline(crossed)
    chosen = _choose(crossed)
    num_comparisons = len(crossed.units) - 1
    if not num_comparisons:
        raise ResultsError("arms: there is no remedy beside the baseline; train one with it")
    before = crossed.by_seed[metric][:, [baseline]]  # (n, 1)
    after = crossed.by_seed[metric][:, chosen]  # (n, remedies)
    margin = _checked_margin(margin, metric, float(before.mean()))
    paired = paired_intervals(before, after, (1 - confidence) / 2 / num_comparisons)
    lower, higher = str(Verdict.BETTER), str(Verdict.WORSE)
    if not _IS_LOWER_BETTER[metric]:
        lower, higher = higher, lower
    is_within = (-margin <= paired.low) & (paired.high <= margin)
    is_same = (after == before) & np.isfinite(after)  # the very same model
    is_within |= is_same.all(axis=0) & (len(before) > 1)
    chosen_arms = crossed.units.iloc[chosen].reset_index(drop=True)
    columns = {
        **{name: chosen_arms[name] for name in _ARM},
        "metric": metric,
        "num_seeds": len(before),
        "num_comparisons": num_comparisons,
        "baseline_mean": before.mean(),
        "remedy_mean": after.mean(axis=0),
        "difference": paired.mean,
        "low": paired.low,
        "high": paired.high,
        "p_value": np.minimum(paired.p_value * num_comparisons, 1),
        "margin": margin,
        "verdict": np.select(
            [is_within, paired.high < -margin, paired.low > margin],
            [str(Verdict.NO_DIFFERENCE), lower, higher],
            str(Verdict.UNSETTLED),
        ),
        "reason": paired.reasons,
    }
    return pd.DataFrame(columns)


def overfitting(epochs: pd.DataFrame, confidence: float = 0.95) -> Overfitting:
    """Say whether the held-out loss is worse at the end of long training than at its best epoch.

    The last loss minus a curve's own minimum is never below 0, and above it for any curve with
    noise: an epoch that is chosen and measured on the same values flatters itself. So each seed
    is measured at the epoch where the mean curve of the seeds *before* it is lowest, in the order
    of their numbers; the first only chooses. A seed's noise knows nothing of an epoch chosen
    before it, so that without a rise the difference is at most 0 on average, and each brings
    noise of its own, as the t interval needs. To choose by *all* other seeds, leaving one out, is
    unbiased too, but ties the differences together, as folds of a cross-validation are: in
    simulation ten flat curves then rise in 9 studies of 100 where 2.5 are allowed.

    There is overfitting if the whole interval (Student's, over seeds) is above a floor, the
    `default_margin` of the best loss: many seeds make the smallest rise certain, and nobody would
    act on it (a minimum-effect test). The gap between training and validation loss is
    reported and not judged, for every fitted model has one, and closing it may cost more.

    What all seeds share, their validation images if the seed does not split anew, no other seed
    can correct: the rise is then one on these images. The independent witness is the remedy
    `early_stopping` in `effects`: the validation set chose its epoch, the test set measures it.

    Args:
        epochs: The baseline's curves: `seed`, `epoch`, `train_loss`, `validation_loss`, with
            the same epochs for every seed.
        confidence: In [0.5, 1).

    Raises:
        ExperimentError: `confidence` is out of range.
        ResultsError: A column, or an epoch of a seed, is missing or there twice.

    Source: on choosing and measuring with the same data, Hastie, Tibshirani and Friedman, The
    Elements of Statistical Learning, 2nd ed., section 7.10.2; on why leaving one out hides
    variance, Bengio and Grandvalet, JMLR 5 (2004), 1089-1105; on judging each by those before
    it, Dawid, "The prequential approach", JRSS A 147 (1984), 278-292; on minimum-effect tests,
    Murphy and Myors, Journal of Applied Psychology 84 (1999), 234-248.
    """
    check_confidence(confidence)
    names = ["train_loss", "validation_loss"]
    crossed = _Crossed.read(epochs, ["epoch"], names, "epochs")
    order = crossed.units["epoch"].to_numpy().argsort()
    numbers = crossed.units["epoch"].to_numpy()[order]
    train, curves = (crossed.by_seed[name][:, order] for name in names)  # (n, E)
    curves = np.where(np.isfinite(curves), curves, np.inf)
    best, last = _from_best_to_last(curves)
    paired = paired_intervals(best[:, None], last[:, None], (1 - confidence) / 2)
    with np.errstate(invalid="ignore"):
        gap = (curves[:, -1] - train[:, -1]).mean()
    return Overfitting(
        num_seeds=len(curves),
        best_epoch=int(numbers[curves.mean(axis=0).argmin()]),
        last_epoch=int(numbers[-1]),
        best_loss=float(best.mean()),
        last_loss=float(last.mean()),
        rise=float(paired.mean[0]),
        low=float(paired.low[0]),
        high=float(paired.high[0]),
        floor=default_margin("validation_loss", float(best.mean())),
        gap=float(gap),
        confidence=confidence,
    )


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
    _check_metric(metric, names)
    crossed = _Crossed.read(replicates, ["trial"], names, "replicates")
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
    margin = _checked_margin(margin, metric, float(table["cost"].min()))
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


@dataclass(frozen=True, slots=True)
class _Crossed:
    """Results of which every unit (arm, epoch, trial) has every seed exactly once.

    Attributes:
        units: What names the k units, one a row, in the order of the frame.
        by_seed: For each column float64, (n, k).
    """

    units: pd.DataFrame
    by_seed: dict[str, _Array]

    @classmethod
    def read(
        cls, frame: pd.DataFrame, unit: list[str], columns: list[str], where: str
    ) -> _Crossed:
        missing = [name for name in [*unit, "seed", *columns] if name not in frame.columns]
        if missing or frame.empty:
            raise ResultsError(
                f"{where}: needs the columns {', '.join([*unit, 'seed', *columns])} and at least "
                f"one row; missing: {', '.join(missing) or 'rows'}"
            )
        number = frame.groupby(unit, sort=False, dropna=False, observed=True).ngroup().to_numpy()
        _, first = np.unique(number, return_index=True)
        units = frame[unit].iloc[first].reset_index(drop=True)
        place, seeds = pd.factorize(frame["seed"], sort=True, use_na_sentinel=False)
        counts = np.zeros((len(units), len(seeds)), dtype=np.int64)
        np.add.at(counts, (number, place), 1)
        wrong = np.argwhere(counts != 1)
        if len(wrong):
            at, seed = wrong[0]
            name = ", ".join(f"{key} {value}" for key, value in units.iloc[at].items())
            raise ResultsError(
                f"{where}: results are compared seed by seed, so that each must be there exactly "
                f"once for each of the seeds {', '.join(map(str, seeds))}; {name} is there "
                f"{counts[at, seed]} times for seed {seeds[seed]}, and {len(wrong) - 1} more are "
                "wrong: train what is missing, or leave it out everywhere"
            )
        order = np.lexsort((number, place)).reshape(len(seeds), len(units))
        return cls(units, {name: frame[name].to_numpy(np.float64)[order] for name in columns})


def _baseline(crossed: _Crossed) -> int:
    """Return which arm is the baseline."""
    places = np.flatnonzero(crossed.units["remedy"] == "baseline")
    if len(places) != 1:
        raise ResultsError(
            f'arms: must have exactly one arm whose remedy is "baseline", not {len(places)}; '
            "remedies are compared with it"
        )
    return int(places[0])


def _validation_means(crossed: _Crossed) -> tuple[_Array, NDArray[np.int64]]:
    """Return every arm's mean validation loss, inf if a seed diverged, and how many did."""
    loss = crossed.by_seed["validation_loss"]
    is_finite = np.isfinite(loss)
    return np.where(is_finite, loss, np.inf).mean(axis=0), (~is_finite).sum(axis=0)


def _choose(crossed: _Crossed) -> list[int]:
    """Return the chosen arm of every remedy, in the order in which the remedies appear."""
    loss, num_diverged = _validation_means(crossed)
    strength = crossed.units["strength"].to_numpy(np.float64)
    remedies = crossed.units["remedy"].tolist()
    best: dict[str, int] = {}
    for arm in np.lexsort((strength, num_diverged, loss)).tolist():
        best.setdefault(remedies[arm], arm)
    return [best[remedy] for remedy in dict.fromkeys(remedies) if remedy != "baseline"]


def _from_best_to_last(curves: _Array) -> tuple[_Array, _Array]:
    """Return each seed's loss at the epoch that the seeds before it chose, and its last.

    Both are for all seeds but the first; one seed alone is measured at its own best epoch, which
    describes it and proves nothing.
    """
    if len(curves) == 1:
        return curves.min(axis=1), curves[:, -1]
    measured = curves[1:]
    chosen = curves.cumsum(axis=0)[:-1].argmin(axis=1)
    return measured[np.arange(len(measured)), chosen], measured[:, -1]


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


def _checked_margin(margin: float | None, metric: str, level: float) -> float:
    if margin is None:
        return default_margin(metric, level)
    check_margin(margin)
    return float(margin)


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


def _check_metric(metric: str, allowed: Sequence[str]) -> None:
    if metric not in allowed:
        raise ExperimentError(f"metric: {metric!r} is not allowed; allowed: {', '.join(allowed)}")
