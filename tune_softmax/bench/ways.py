"""The ways of searching that `bench search` holds side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

from tune_softmax.bench.task import NUM_EPOCHS
from tune_softmax.metrics import trial_value

__all__ = [
    "OURS",
    "OURS_TO_LIMIT",
    "PACKAGES",
    "PEERS",
    "WAYS",
    "Answer",
    "Curves",
    "Way",
    "last",
    "last_of_whole",
    "lowest",
    "value_of_whole",
]

Curves: TypeAlias = Mapping[str, Sequence[float]]
Answer: TypeAlias = Callable[[Curves], str | None]
"""Which trial a way calls the best, given each trial's validation losses so far."""


def lowest(curves: Curves) -> str | None:
    """Return the trial that had the lowest loss after any epoch."""
    return _least({trial: min(filter(isfinite, c), default=c[-1]) for trial, c in curves.items()})


def last(curves: Curves) -> str | None:
    """Return the trial whose last loss is the lowest."""
    return _least({trial: curve[-1] for trial, curve in curves.items()})


def last_of_whole(curves: Curves) -> str | None:
    """Return the same of trials that had all their epochs, if there are any."""
    return last(_whole(curves))


def value_of_whole(curves: Curves) -> str | None:
    """Return what `results.Results.best` does: learning rates are constant in the task."""
    return _least({t: trial_value(curve, "constant") for t, curve in _whole(curves).items()})


def _whole(curves: Curves) -> Curves:
    return {t: curve for t, curve in curves.items() if len(curve) == NUM_EPOCHS} or curves


def _least(values: Mapping[str, float]) -> str | None:
    finite = {trial: value for trial, value in values.items() if isfinite(value)}
    return min(finite, key=finite.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class Way:
    """A way of searching.

    Attributes:
        name: What tables and the command line call it.
        module: Which of `peers` runs it; None: our own command line.
        answer: Which trial it calls the best.
        packages: Whose versions matter, besides our own dependencies.
        is_synchronous: Whether all trials train on each rung before any goes on, so that what it
            has done is told by epochs and not by trials.
        fills_time: Whether it tries as many trials as it can until the time limit ends it.
    """

    name: str
    module: str | None
    answer: Answer
    packages: tuple[str, ...] = ()
    is_synchronous: bool = False
    fills_time: bool = False


OURS = Way("tune_softmax", None, value_of_whole)
OURS_TO_LIMIT = Way("tune_softmax-to-limit", None, value_of_whole, fills_time=True)
WAYS = (
    OURS,
    OURS_TO_LIMIT,
    Way("optuna", "optuna_pruner", last_of_whole),  # `Study.best_trial`
    Way("scikit-learn", "sklearn_halving", last, ("scikit-learn",), is_synchronous=True),
    Way("syne-tune", "syne_launcher", lowest, ("syne-tune",)),  # `ExperimentResult.best_config`
    Way("ray-tutorial", "ray_tutorial", last),  # `ResultGrid.get_best_result`
)
PACKAGES = tuple(package for way in WAYS for package in way.packages)
PEERS = tuple(way.name for way in WAYS if way.module is not None)
