"""What is to be trained: trials with their hyperparameters, and what each of them trains on.

A study (`study.py`) makes its trials up as it learns; a fixed list knows them from the start.
Whoever drives an agenda tells it what became of each trial, and can replay a ledger into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.metrics import State
    from tune_softmax.run.records import TrialRecord

__all__ = ["Agenda", "FixedList", "Task", "View"]


@dataclass(frozen=True, slots=True)
class View:
    """What the trials of a pack share: the images that they train on, and their seed.

    Attributes:
        seed: With a trial's number it decides its initial weights, and alone the order of images.
        train_fraction: How much of the training images to use, 0 < train_fraction <= 1; a
            smaller part lies within a larger.
        with_validation: Whether to train on the validation images too.
    """

    seed: int
    train_fraction: float = 1.0
    with_validation: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One trial of a fixed list.

    Attributes:
        config: Its hyperparameters.
        view: What it trains on.
        draw: Which initial weights: trials of one seed and one draw begin alike.
        patience: Stop once the validation loss has not improved for this many epochs, and keep
            the weights of the best one; 0 trains to the end and keeps the last.
    """

    config: Config
    view: View
    draw: int = 0
    patience: int = 0


class Agenda(Protocol):
    """Trials to train, in the order of their numbers."""

    @property
    def num_trials(self) -> int:
        """How many trials there are in all."""

    @property
    def num_rounds(self) -> int:
        """In how many rounds, at least, it wants to be asked, because it learns between them."""

    def task(self, number: int, config: Config) -> Task:
        """Return all that there is to know of a trial that has these hyperparameters."""

    def ask(self, count: int, curves: Mapping[int, Sequence[float]]) -> dict[int, Config]:
        """Return the next trials, all with one view.

        Args:
            count: How many at most.
            curves: The metric after each epoch so far, by trial number.
        """

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Hear what became of a trial."""

    def replay(self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]) -> None:
        """Stand where a ledger is."""


class FixedList:
    """Trials that are known from the start; it learns nothing.

    Args:
        tasks: By trial number, from 0.
    """

    num_rounds = 1

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._num_asked = 0

    @property
    def num_trials(self) -> int:
        """How many trials there are in all."""
        return len(self._tasks)

    def task(self, number: int, config: Config) -> Task:  # noqa: ARG002 - a study needs it
        """Return a trial."""
        return self._tasks[number]

    def ask(
        self,
        count: int,
        curves: Mapping[int, Sequence[float]],  # noqa: ARG002 - a study needs them
    ) -> dict[int, Config]:
        """Return the next trials, at most `count` of them, all with one view."""
        first = self._num_asked
        upcoming = list(enumerate(self._tasks[first : first + count], first))
        asked = {n: t.config for n, t in upcoming if t.view == self._tasks[first].view}
        gap = next((n for n, _ in upcoming if n not in asked), first + len(upcoming))
        self._num_asked = gap
        return {number: config for number, config in asked.items() if number < gap}

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Learn nothing."""

    def replay(self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]) -> None:
        """Go on after the ledger's last trial."""
        del curves
        self._num_asked = 1 + max((trial.number for trial in trials), default=-1)
