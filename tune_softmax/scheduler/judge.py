"""What a pack's reports bring its trials: who ends on a rung, and who waits for a fuller pack.

A pack ends its step on a rung and goes on when it has heard. A pack that few trials are left in
parks them: their reports are withheld until their states have come, so that a trial is never
recorded as parked whose state is on its way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from tune_softmax.metrics import State
from tune_softmax.scheduler.asha import Referee

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.engine.plan import TrialState
    from tune_softmax.metrics import Report
    from tune_softmax.scheduler.asha import Rungs
    from tune_softmax.scheduler.messages import PackResult, PackTask

__all__ = ["Judge", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pack is to hear before it goes on.

    Attributes:
        stopped: The trials that end.
        parks: Whether it gives the others' states back and is over.
    """

    stopped: frozenset[int] = frozenset()
    parks: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to hear."""
        return self.parks or bool(self.stopped)


class Judge:
    """Judges packs' reports by ASHA, and keeps the states of parked trials.

    Args:
        rungs: Where trials are compared; None stops nothing early.
        metric: By which.
        mode: "min" or "max": which values are better.
        parks_at: A pack that is down to so many trials on a rung parks them.
        curves: The metric after each recorded epoch, by trial number: a search that goes on
            stands where it stood.
    """

    def __init__(
        self,
        rungs: Rungs | None,
        *,
        metric: str,
        mode: str,
        parks_at: int,
        curves: Mapping[int, Sequence[float]],
    ) -> None:
        self._rungs = rungs
        self._metric = metric
        self._parks_at = parks_at
        self._withheld: dict[int, list[Report]] = {}  # by pack
        self._states: dict[int, TrialState] = {}  # by trial
        if rungs is not None:
            self._referee = Referee(rungs, mode)
            self._referee.replay(
                {number: dict(enumerate(curve, 1)) for number, curve in curves.items()}
            )

    def states(self, numbers: Iterable[int]) -> dict[int, TrialState]:
        """Give back, and forget, the states of parked trials, as far as they are here."""
        return {n: self._states.pop(n) for n in numbers if n in self._states}

    def hear(self, task: PackTask, result: PackResult) -> tuple[PackResult, Verdict]:
        """Judge what a pack reports.

        Args:
            task: The pack's.
            result: Its states are taken out of it, because Ray Tune keeps what was reported.

        Returns:
            What to record, with no reports where these are withheld, and what the pack is to hear.
        """
        if result.states:
            self._states |= result.states
            result.states.clear()
        reports = self._withheld.pop(task.pack, [])
        stopped: set[int] = set()
        for epoch, found in groupby(result.reports, key=lambda report: report.epoch):
            of_epoch = list(found)
            ended = self._ended(epoch, of_epoch)
            stopped |= ended
            reports += [
                replace(report, state=State.PRUNED) if report.number in ended else report
                for report in of_epoch
            ]
        parks = self._parks(task, reports)
        if parks:
            self._withheld[task.pack] = [
                replace(report, state=State.PARKED) if _goes_on(report, reports) else report
                for report in reports
            ]
            reports = []
        return replace(result, reports=reports), Verdict(frozenset(stopped), parks)

    def _ended(self, epoch: int, reports: Sequence[Report]) -> set[int]:
        """Return who of the running trials ends after an epoch."""
        if self._rungs is None:
            return set()
        values = {
            report.number: getattr(report.metrics, self._metric)
            for report in reports
            if report.metrics.is_finite and epoch in self._rungs.of(report.number)
        }
        running = {report.number for report in reports if report.state is State.RUNNING}
        return self._referee.judge(epoch, values, values.keys() - running) & running

    def _parks(self, task: PackTask, reports: Sequence[Report]) -> bool:
        """Whether few trials are left in a pack on a rung: they cost as much as many."""
        if not reports or reports[-1].epoch <= task.recorded:
            return False
        last = [report for report in reports if report.epoch == reports[-1].epoch]
        left = [report for report in last if report.state is State.RUNNING]
        is_on_rung = any(report.rung == report.epoch for report in last)
        return is_on_rung and 0 < len(left) <= self._parks_at


def _goes_on(report: Report, reports: Sequence[Report]) -> bool:
    return report.state is State.RUNNING and report.epoch == reports[-1].epoch
