"""What is measured of a trial at an epoch, and what may become of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from math import ceil, isfinite
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune_softmax.config import Schedule

__all__ = [
    "CURVES",
    "EpochMetrics",
    "FinalTest",
    "Report",
    "State",
    "num_averaged",
    "trial_value",
]

# Of a trial's epochs, with a constant learning rate.
AVERAGED_FRACTION = 1 / 4


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """The four curves at one epoch, and what it cost.

    Attributes:
        train_loss: Mean cross-entropy in nats over the epoch's mini-batches, each taken before
            its update, without penalties.
        train_accuracy: Fraction in [0, 1] over the same mini-batches.
        validation_loss: Mean cross-entropy over the validation set after the epoch.
        validation_accuracy: Fraction in [0, 1] over the validation set after the epoch.
        seconds: Wall clock; for a trial in a pack its equal share of the pack's epoch.
    """

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether training has not diverged."""
        return isfinite(self.train_loss) and isfinite(self.validation_loss)


CURVES: tuple[str, ...] = tuple(field.name for field in fields(EpochMetrics))[:4]


def num_averaged(num_epochs: int, schedule: Schedule) -> int:
    """Return over how many of its last epochs a trial's value is the mean.

    With a constant learning rate SGD ends nowhere: weights wander around a point, and the loss
    with them, the further the higher the rate (Dieuleveut, Durmus and Bach 2020, "Bridging the gap
    between constant step size stochastic gradient descent and Markov chains"). The lowest last
    loss of many such trials is of one that wanders far and was lucky. A rate that falls to zero
    brings the weights to rest; then the last loss says most.

    Args:
        num_epochs: Trained so far, at least 1.
        schedule: Of the trial's learning rate.
    """
    return ceil(num_epochs * AVERAGED_FRACTION) if schedule == "constant" else 1


def trial_value(curve: Sequence[float], schedule: Schedule) -> float:
    """Return what a trial is ranked by; see `num_averaged`.

    Args:
        curve: The metric after each epoch, at least one.
        schedule: Of the trial's learning rate.
    """
    return fmean(curve[-num_averaged(len(curve), schedule) :])


class State(StrEnum):
    """What has become of a trial, in Optuna's words.

    WAITING: handed out once and cut off by a stop; it runs again under its own number.
    RUNNING: handed out. PARKED: on a rung, until there are enough for a pack that goes on.
    COMPLETE: ran its epochs. PRUNED: stopped early by ASHA. FAIL: diverged, raised, or lost its
    worker too often.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PARKED = "PARKED"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"

    @property
    def is_final(self) -> bool:
        """Whether the trial will never run again."""
        return self in {State.COMPLETE, State.PRUNED, State.FAIL}


@dataclass(frozen=True, slots=True)
class FinalTest:
    """What the test set says of a trial at its end; a search never looks at it.

    Attributes:
        loss: Mean cross-entropy in nats over the test set, without penalties.
        accuracy: Fraction in [0, 1] over the test set.
        confusion: Numbers of images, (C, C); row the true class, column the predicted one.
    """

    loss: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One trial at one epoch, as a pack reports it.

    Attributes:
        number: The trial's number.
        epoch: From 1.
        metrics: The four curves and the seconds.
        state: RUNNING, or the final state that this epoch brought.
        rung: The highest of ASHA's rungs that the trial has reached, in epochs; None below all.
        error: Why it failed, if it did.
        test: The test-set result, where this epoch was the trial's last and one was asked for.
    """

    number: int
    epoch: int
    metrics: EpochMetrics
    state: State = State.RUNNING
    rung: int | None = None
    error: str | None = None
    test: FinalTest | None = None
