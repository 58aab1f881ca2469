"""ASHA, which stops poor trials early: the rungs, the rule, and what becomes of a pack's reports.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", in its stopping form, as
in Ray Tune's ASHAScheduler: a trial that reaches a rung continues if it is within the best one
in eta of those that reached the rung before it. The rule is written out here, because Ray Tune
decides for whole packs and does not restore its state after a restart.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import replace
from itertools import groupby
from math import e, floor, inf, isfinite
from random import Random
from typing import TYPE_CHECKING

from tune_softmax.data.seeding import derive_seed
from tune_softmax.metrics import State
from tune_softmax.scheduler.messages import Decision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tune_softmax.engine.plan import TrialState
    from tune_softmax.experiment.sections import Asha
    from tune_softmax.metrics import Report
    from tune_softmax.scheduler.messages import PackResult, PackTask

__all__ = ["AshaRule", "AshaScheduler", "Rungs"]


class Rungs:
    """The epochs after which ASHA compares a search's trials.

    Every bracket has its own rungs. A trial's bracket is drawn from (seed, trial number) with the
    probabilities of Ray Tune's ASHAScheduler, so that it is the same on every retry and in every
    process.

    Args:
        asha: Grace period, reduction factor and brackets.
        max_epochs: The largest number of epochs of any trial of the search.
        seed: The experiment's seed.

    Attributes:
        reduction_factor: About one in so many trials that reach a rung continues.
    """

    def __init__(self, asha: Asha, max_epochs: int, seed: int) -> None:
        self.reduction_factor = asha.reduction_factor
        self._seed = seed
        self._rungs = [asha.rungs(max_epochs, bracket) for bracket in range(asha.brackets)]
        self._brackets: dict[int, int] = {}

    def of(self, number: int) -> Sequence[int]:
        """Return a trial's rungs, in epochs, ascending."""
        return self._rungs[self.bracket(number)]

    def reached(self, number: int, epoch: int) -> int | None:
        """Return the highest rung that a trial has reached after an epoch; None below all."""
        return max((rung for rung in self.of(number) if rung <= epoch), default=None)

    def bracket(self, number: int) -> int:
        """Return a trial's bracket, from 0."""
        if number not in self._brackets:
            largest = max(map(len, self._rungs))
            weights = [e ** (len(rungs) - largest) for rungs in self._rungs]
            draw = Random(derive_seed(self._seed, "bracket", number))  # noqa: S311
            (self._brackets[number],) = draw.choices(range(len(weights)), weights)
        return self._brackets[number]


class AshaRule:
    """The stopping rule over the single trials of one search, whichever packs they train in.

    Args:
        rungs: Where trials are compared.
        mode: "min" or "max": which values are better.
    """

    def __init__(self, rungs: Rungs, mode: str) -> None:
        self._rungs = rungs
        self._sign = 1 if mode == "min" else -1
        # Values of the trials that reached each rung, by (bracket, epoch), the best one first.
        self._values: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._last_rung: dict[int, int] = {}  # epoch, by trial
        self._stopped: dict[int, int] = {}  # epoch of the stop, by trial

    def replay(self, curves: Mapping[int, Sequence[float]]) -> None:
        """Fill the rungs with recorded values; nothing is stopped.

        Args:
            curves: The metric after each epoch, by trial number; NaN and infinity where a trial
                diverged. A search never shows these to `stopped`, so they are left out here too.
        """
        for number, curve in sorted(curves.items()):
            for epoch, value in enumerate(curve, 1):
                if isfinite(value):
                    self.stopped(epoch, {number: value}, final=())
        self._stopped.clear()

    def stopped(self, epoch: int, values: Mapping[int, float], final: Collection[int]) -> set[int]:
        """Return which trials stop after an epoch.

        Args:
            epoch: From 1.
            values: The metric by trial number, finite. Trials that are on no rung change nothing.
            final: The trials that end with this epoch anyway; their values count for the others.

        Returns:
            Numbers of trials. An epoch that was asked for before gets the same answer again,
            because a pack that lost its worker trains its epochs a second time.
        """
        return {n for n, v in sorted(values.items()) if self._stops(n, epoch, v, n in final)}

    def _stops(self, number: int, epoch: int, value: float, is_final: bool) -> bool:  # noqa: FBT001
        if epoch > self._last_rung.get(number, 0) and epoch in self._rungs.of(number):
            self._last_rung[number] = epoch
            values = self._values[self._rungs.bracket(number), epoch]
            if self._sign * value > self._cutoff(values) and not is_final:
                self._stopped[number] = epoch
            insort(values, self._sign * value)
        return self._stopped.get(number) == epoch

    def _cutoff(self, values: Sequence[float]) -> float:
        """Return the 1/eta quantile, interpolated between two values; of none, infinity."""
        if not values:
            return inf
        position = (len(values) - 1) / self._rungs.reduction_factor
        below = floor(position)
        above = min(below + 1, len(values) - 1)
        return values[below] + (values[above] - values[below]) * (position - below)


class AshaScheduler:
    """Decides on packs' reports by ASHA, and keeps the states of parked trials.

    A pack waits on a rung until it has the decision. A pack with few trials left parks them, so
    that they continue later in a fuller pack. Its reports are withheld until the trials' states
    have arrived: no trial is recorded as parked whose state could still be lost.

    In a deterministic search every pack parks on every rung, and reports from a rung on are kept
    back. `end_round` then decides on those of all packs at once.

    Args:
        rungs: Where trials are compared; None stops nothing early.
        metric: Name of the metric that is compared.
        mode: "min" or "max": which values are better.
        curves: The metric after each recorded epoch, by trial number, for a resumed search to
            decide as an uninterrupted one.
        is_deterministic: Whether packs train in rounds.
    """

    def __init__(
        self,
        rungs: Rungs | None,
        *,
        metric: str,
        mode: str,
        curves: Mapping[int, Sequence[float]],
        is_deterministic: bool = False,
    ) -> None:
        self._rungs = rungs
        self._metric = metric
        self._is_deterministic = is_deterministic
        self._round: dict[int, list[Report]] = {}  # of packs that are over, by pack
        self._withheld: dict[int, list[Report]] = {}  # by pack
        self._states: dict[int, TrialState] = {}  # by trial
        if rungs is not None:
            self._rule = AshaRule(rungs, mode)
            self._rule.replay(curves)

    def take_states(self, numbers: Iterable[int]) -> dict[int, TrialState]:
        """Return and forget the states of parked trials, as far as they are kept here."""
        return {n: self._states.pop(n) for n in numbers if n in self._states}

    def decide(
        self, task: PackTask, result: PackResult, *, parks_at: int
    ) -> tuple[PackResult, Decision]:
        """Decide which of a pack's trials continue.

        Args:
            task: The pack's.
            result: What the pack reports. Its states are taken out of it, because Ray Tune keeps
                what was reported.
            parks_at: A pack that is down to so many trials on a rung parks them.

        Returns:
            What to record, with no reports where these are withheld, and what to tell the pack.
        """
        has_parked = bool(result.states)
        self._states |= result.states
        result.states.clear()
        if self._is_deterministic:
            return self._decide_later(result, has_parked=has_parked)
        reports = self._withheld.pop(task.pack, [])
        stopped: set[int] = set()
        for epoch, found in groupby(result.reports, key=lambda report: report.epoch):
            of_epoch = list(found)
            stopped_now = self._stopped(epoch, of_epoch)
            stopped |= stopped_now
            reports += [
                replace(report, state=State.PRUNED) if report.number in stopped_now else report
                for report in of_epoch
            ]
        parks = _parks(task, reports, parks_at)
        if parks:
            self._withheld[task.pack] = [
                replace(report, state=State.PARKED) if _continues(report, reports) else report
                for report in reports
            ]
            reports = []
        return replace(result, reports=reports), Decision(frozenset(stopped), parks)

    def _decide_later(
        self, result: PackResult, *, has_parked: bool
    ) -> tuple[PackResult, Decision]:
        """Keep a pack's reports back from its first rung on; have it park on every rung."""
        withheld = self._withheld.pop(result.pack, [])
        if result.error or result.out_of_memory:  # its trials fail, or train again
            return result, Decision()
        reports = list(result.reports)
        rungs = [report.epoch for report in reports if report.rung == report.epoch]
        first = 0 if withheld else min(rungs, default=inf)
        withheld += [report for report in reports if report.epoch >= first]
        passed = replace(result, reports=[r for r in reports if r.epoch < first])
        running = [
            report
            for report in reports
            if report.state is State.RUNNING and report.epoch == reports[-1].epoch
        ]
        if has_parked or (reports and not running):
            self._round[result.pack] = withheld
            held = frozenset(report.number for report in withheld)
            return replace(passed, held=held), Decision()
        self._withheld[result.pack] = withheld
        return passed, Decision(parks=any(r.rung == r.epoch for r in running))

    def end_round(self) -> dict[int, list[Report]]:
        """Decide on all reports that were kept back; return them by pack."""
        kept, self._round = self._round, {}
        stopped: set[tuple[int, int]] = set()  # (epoch, trial)
        ordered = sorted(
            (report for reports in kept.values() for report in reports),
            key=lambda report: (report.epoch, report.number),
        )
        for epoch, found in groupby(ordered, key=lambda report: report.epoch):
            stopped |= {(epoch, number) for number in self._stopped(epoch, list(found))}
        for _, number in stopped:
            self._states.pop(number, None)
        return {
            pack: [
                replace(report, state=State.PRUNED)
                if (report.epoch, report.number) in stopped
                else replace(report, state=State.PARKED)
                if _continues(report, reports)
                else report
                for report in reports
            ]
            for pack, reports in kept.items()
        }

    def _stopped(self, epoch: int, reports: Sequence[Report]) -> set[int]:
        """Return which of the running trials stop after an epoch."""
        if self._rungs is None:
            return set()
        values = {
            report.number: getattr(report.metrics, self._metric)
            for report in reports
            if report.metrics.is_finite and epoch in self._rungs.of(report.number)
        }
        running = {report.number for report in reports if report.state is State.RUNNING}
        return self._rule.stopped(epoch, values, values.keys() - running) & running


def _parks(task: PackTask, reports: Sequence[Report], parks_at: int) -> bool:
    """Return whether a pack on a rung has few trials left: they take as long as many."""
    if not reports or reports[-1].epoch <= task.recorded:
        return False
    last = [report for report in reports if report.epoch == reports[-1].epoch]
    left = [report for report in last if report.state is State.RUNNING]
    is_on_rung = any(report.rung == report.epoch for report in last)
    return is_on_rung and 0 < len(left) <= parks_at


def _continues(report: Report, reports: Sequence[Report]) -> bool:
    return report.state is State.RUNNING and report.epoch == reports[-1].epoch
