"""What is measured of a trial at an epoch, and what may become of it."""

from dataclasses import dataclass, fields
from enum import StrEnum
from math import isfinite

__all__ = ["CURVES", "EpochMetrics", "FinalTest", "Report", "State"]


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
