"""Whether a baseline overfits: whether its validation loss rises again after its best epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tune_softmax.stats.crossed import Crossed
from tune_softmax.stats.intervals import check_confidence, paired_intervals
from tune_softmax.stats.margins import default_margin
from tune_softmax.stats.wording import interval_text

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    _Array = NDArray[np.float64]

__all__ = ["Overfitting", "overfitting"]

_FEWEST_SEEDS = 3


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
            f"After epoch {self.last_epoch} it is {abs(self.gap):.4f} nats "
            f"{'above' if self.gap >= 0 else 'below'} the training loss."
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
    crossed = Crossed.read(epochs, ["epoch"], names, "epochs")
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
