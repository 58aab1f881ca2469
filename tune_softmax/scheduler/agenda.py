"""What is to be trained: trials with their hyperparameters, and the images each trains on.

A study (`study.py`) proposes trials as it learns; a fixed list knows all of them from the start.
The dispatcher tells an agenda the result of each trial, and replays a ledger into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.metrics import State
    from tune_softmax.run.records import TrialRecord

__all__ = ["Agenda", "DataView", "FixedList", "Task"]


@dataclass(frozen=True, slots=True)
class DataView:
    """What the trials of a pack share: the images that they train on, and their seed.

    Attributes:
        seed: Decides the order of images; with a trial's draw also its initial weights.
        train_fraction: Fraction of the training images to use, 0 < train_fraction <= 1; a
            smaller part lies within a larger one.
        with_validation: Whether to train on the validation images too.
    """

    seed: int
    train_fraction: float = 1.0
    with_validation: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One trial, and all that its training depends on.

    Attributes:
        config: Its hyperparameters.
        view: What it trains on.
        draw: Which initial weights: trials of one seed and one draw have the same ones.
        patience: Stop once the validation loss has not improved for this many epochs, and keep
            the weights of the best one; 0 trains to the end and keeps the last.
    """

    config: Config
    view: DataView
    draw: int = 0
    patience: int = 0


class Agenda(Protocol):
    """Trials to train, in the order of their numbers."""

    @property
    def num_trials(self) -> int:
        """How many trials there are in all."""

    @property
    def num_rounds(self) -> int:
        """In how many rounds, at least, to ask for trials, because it learns between them."""

    def ask(self, count: int, curves: Mapping[int, Sequence[float]]) -> dict[int, Task]:
        """Return the next trials by number, all with one view.

        Args:
            count: How many at most.
            curves: The metric after each epoch so far, by trial number.
        """

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Take a trial's final state, and the metric after each of its epochs."""

    def replay(
        self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]
    ) -> dict[int, Task]:
        """Continue where a ledger ends; return the recorded trials by number."""


class FixedList:
    """Trials that are known from the start.

    Args:
        tasks: By trial number, from 0. Tasks appended later are seen too.
    """

    num_rounds = 1

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._num_asked = 0

    @property
    def num_trials(self) -> int:
        """How many trials there are in all."""
        return len(self._tasks)

    def ask(
        self,
        count: int,
        curves: Mapping[int, Sequence[float]],  # noqa: ARG002 - a study needs them
    ) -> dict[int, Task]:
        """Return the next trials, at most `count` of them, all with one view."""
        first = self._num_asked
        asked: dict[int, Task] = {}
        for number, task in enumerate(self._tasks[first : first + count], first):
            if task.view != self._tasks[first].view:
                break
            asked[number] = task
        self._num_asked += len(asked)
        return asked

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Do nothing: the list learns nothing."""

    def replay(
        self,
        trials: Iterable[TrialRecord],
        curves: Mapping[int, Sequence[float]],  # noqa: ARG002 - a study needs them
    ) -> dict[int, Task]:
        """Continue after the ledger's last trial; return the recorded trials by number."""
        recorded = {trial.number: self._tasks[trial.number] for trial in trials}
        self._num_asked = 1 + max(recorded, default=-1)
        return recorded
