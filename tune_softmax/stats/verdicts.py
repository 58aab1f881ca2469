"""Verdicts on remedies over seeds: the strengths that are chosen, and what each changes.

Pure functions from dataframes of results over seeds to dataframes and values. Remedies and the
baseline are compared at the same seeds, so that every arm must have the same ones. A difference
is judged by its interval and by a margin, the smallest difference that matters.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.errors import ResultsError
from tune_softmax.stats.crossed import Crossed, check_metric
from tune_softmax.stats.intervals import check_confidence, paired_intervals
from tune_softmax.stats.margins import Verdict, default_margin, margin_or_default

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    _Array = NDArray[np.float64]

__all__ = ["better_on_validation", "choose_strengths", "effects", "losses_at_stops"]

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
    crossed = Crossed.read(arms, _ARM, ["validation_loss"], "arms")
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
    crossed = Crossed.read(arms, _ARM, ["validation_loss"], "arms")
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
    check_metric(metric, list(_IS_LOWER_BETTER))
    crossed = Crossed.read(arms, _ARM, ["validation_loss", metric], "arms")
    baseline = _baseline(crossed)
    chosen = _choose(crossed)
    num_comparisons = len(crossed.units) - 1
    if not num_comparisons:
        raise ResultsError("arms: there is no remedy beside the baseline; train one with it")
    before = crossed.by_seed[metric][:, [baseline]]  # (n, 1)
    after = crossed.by_seed[metric][:, chosen]  # (n, remedies)
    margin = margin_or_default(margin, metric, float(before.mean()))
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


def _baseline(crossed: Crossed) -> int:
    """Return which arm is the baseline."""
    places = np.flatnonzero(crossed.units["remedy"] == "baseline")
    if len(places) != 1:
        raise ResultsError(
            f'arms: must have exactly one arm whose remedy is "baseline", not {len(places)}; '
            "remedies are compared with it"
        )
    return int(places[0])


def _validation_means(crossed: Crossed) -> tuple[_Array, NDArray[np.int64]]:
    """Return every arm's mean validation loss, inf if a seed diverged, and how many did."""
    loss = crossed.by_seed["validation_loss"]
    is_finite = np.isfinite(loss)
    return np.where(is_finite, loss, np.inf).mean(axis=0), (~is_finite).sum(axis=0)


def _choose(crossed: Crossed) -> list[int]:
    """Return the chosen arm of every remedy, in the order in which the remedies appear."""
    loss, num_diverged = _validation_means(crossed)
    strength = crossed.units["strength"].to_numpy(np.float64)
    remedies = crossed.units["remedy"].tolist()
    best: dict[str, int] = {}
    for arm in np.lexsort((strength, num_diverged, loss)).tolist():
        best.setdefault(remedies[arm], arm)
    return [best[remedy] for remedy in dict.fromkeys(remedies) if remedy != "baseline"]
