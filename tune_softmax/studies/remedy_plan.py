"""The agenda of a study of remedies: which trials to train, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_softmax.run.arms import ArmTrials
from tune_softmax.scheduler.agenda import DataView, FixedList, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import State
    from tune_softmax.run.records import TrialRecord

__all__ = ["RemedyPlan"]


class RemedyPlan:
    """The agenda of a study of remedies.

    Within a seed all arms start from the same initial weights (if their widths are equal) and see
    the same images; those of a smaller fraction are among those of a larger one.

    Args:
        experiment: What is asked; it has a section `remedies`.

    Attributes:
        arm_trials: Each trial's arm and seed.
    """

    num_rounds = 1

    def __init__(self, experiment: Experiment) -> None:
        self.arm_trials = ArmTrials(experiment)
        self._tasks: list[Task] = []
        self._list = FixedList(self._tasks)  # sees the tasks that are added later
        self._add_tasks()

    @property
    def num_trials(self) -> int:
        """How many trials there are in all; before phase two, at most."""
        known = self.arm_trials
        left = 0 if known.is_combined else known.num_strengths * len(known.seeds)
        return len(known.trials) + left

    def ask(self, count: int, curves: Mapping[int, Sequence[float]]) -> dict[int, Task]:
        """Return the next trials, at most `count` of them, all with one view."""
        return self._list.ask(count, curves)

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Take a trial's validation losses; when phase one is complete, plan phase two."""
        self.arm_trials.tell(number, state, curve)
        self._add_tasks()

    def replay(
        self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]
    ) -> dict[int, Task]:
        """Take the trials of a ledger, and continue after them; return them by number."""
        recorded = list(trials)
        self.arm_trials.replay(recorded, curves)
        self._add_tasks()
        return self._list.replay(recorded, curves)

    def _add_tasks(self) -> None:
        """Make the tasks of the trials that are new."""
        for arm, seed in self.arm_trials.trials[len(self._tasks) :]:
            view = DataView(seed, arm.train_fraction)
            self._tasks.append(Task(arm.config, view, patience=arm.patience))
