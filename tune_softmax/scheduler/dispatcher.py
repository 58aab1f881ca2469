"""Choose what trains next, and record every result; it alone writes the run's ledger.

Packs that lost their worker come first, then parked trials, then new ones. Every event is in the
ledger before anybody else is told.

A deterministic search trains in rounds. All packs of a round are chosen at once, each trains to
its next rung or its end, and ASHA decides once all of them are there, in the order of the trials'
numbers. The choice of a round and its results are one transaction each, so that what a resume
finds is a whole round that is trained, or one that is to be trained again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.metrics import State, trial_value
from tune_softmax.scheduler.messages import PackTask
from tune_softmax.scheduler.progress import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tune_softmax.data.dataset import Dataset, Split
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.experiment.sections import Asha
    from tune_softmax.metrics import EpochMetrics, Report
    from tune_softmax.run.ledger import Ledger
    from tune_softmax.scheduler.agenda import Agenda, DataView, Task
    from tune_softmax.scheduler.messages import PackResult

__all__ = ["Dispatcher", "Job"]

# A pack that loses its worker is trained again, and from the second time on in halves. A trial
# that is alone in its pack and has lost its worker so often fails. A driver that died does not
# count.
SPLIT_LOSSES = 2
MAX_LOSSES = 3
# Every place trains several packs, so that few places idle while the last packs train.
ROUNDS_PER_PLACE = 4
MAX_AUTO_PACK = {"cpu": 64, "gpu": 1024}
# A pack that is down to an eighth of its trials parks them, and a quarter of a pack continues
# together. Without parking, packs of three trials or fewer took half of a search's seconds
# (measured with two packs of 32 at a time).
PARK_FRACTION = 8
WAIT_FRACTION = 4

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class Job:
    """All that one search or resume is made of.

    Attributes:
        experiment: The experiment.
        agenda: The trials to train; the dispatcher replays the ledger into it.
        ledger: Open for writing.
        dataset: Training and validation images.
        num_places: How many packs run side by side.
        should_stop: Called between events; the search stops once it returns true.
        observe: Called with the progress after every change.
        asha: When poor trials are stopped early; None: never.
        test: Test images, on which complete trials are evaluated; None for a search.
        is_deterministic: Whether packs train in rounds, so that the result does not depend on
            which pack is faster.
    """

    experiment: Experiment
    agenda: Agenda
    ledger: Ledger
    dataset: Dataset
    num_places: int
    should_stop: Callable[[], bool]
    observe: Callable[[Snapshot], None]
    asha: Asha | None = None
    test: Split | None = None
    is_deterministic: bool = False


class Dispatcher:
    """Chooses packs and records their results.

    Between events its state is the same as the ledger's.

    Attributes:
        num_places: How many packs run side by side.
        pack_size: Trials of a new pack, at most.
        curves: The metric after each epoch, by trial number; NaN where a trial diverged.
    """

    def __init__(self, job: Job) -> None:
        experiment, ledger = job.experiment, job.ledger
        self._experiment = experiment
        self.num_places = job.num_places
        self._agenda = job.agenda
        self._ledger = ledger
        self._observe = job.observe
        self._parks = job.asha is not None
        self._is_deterministic = job.is_deterministic
        self._started = time.monotonic()
        self._live: dict[str, dict[int, Task]] = {}  # trials by Ray's trial id
        self._handed_out: deque[PackTask] = deque()  # not yet taken by Ray Tune
        self._held: dict[int, Task] = {}  # over in this round, and not yet decided
        self._parked: defaultdict[int, dict[int, Task]] = defaultdict(dict)  # by epoch
        self.curves: defaultdict[int, list[float]] = defaultdict(list)
        trials = ledger.trials()
        for number, _epoch, metrics in ledger.epochs():
            self.curves[number].append(self._value(metrics))
        tasks = self._agenda.replay(trials, self.curves)
        self._states = {trial.number: trial.state for trial in trials}
        self._losses: Counter[int] = Counter()  # of a worker, by trial
        self._num_done_before = sum(state.is_final for state in self._states.values())
        self._next_pack = 1 + max((trial.pack for trial in trials), default=-1)
        self._num_epochs = sum(map(len, self.curves.values()))
        self._best: tuple[int, float] | None = None
        self._remark = ""
        self.pack_size = self._auto_pack_size()
        for _, kind, detail in ledger.events():
            if kind == "out_of_memory":
                self.pack_size = min(self.pack_size, int(detail["fits"]))
            elif kind == "worker_died":
                self._losses.update(detail["trials"])
        self._again: deque[dict[int, Task]] = deque()
        unfinished: defaultdict[DataView | int, dict[int, Task]] = defaultdict(dict)
        for trial in trials:
            number, task = trial.number, tasks[trial.number]
            if trial.state is State.PARKED:
                self._parked[len(self.curves[number])][number] = task
            elif not trial.state.is_final:
                together = trial.pack if self._is_deterministic else task.view
                unfinished[together][number] = task
            if trial.state is State.COMPLETE:
                self._note_best(number, task)
        for of_view in unfinished.values():
            self._again += _chunks(of_view, self.pack_size)

    @property
    def progress(self) -> tuple[int, int]:
        """How many trials are done, of how many."""
        done = sum(state.is_final for state in self._states.values())
        return done, self._agenda.num_trials

    @property
    def parks_at(self) -> int:
        """A pack that is down to so many trials on a rung parks them."""
        return self.pack_size // PARK_FRACTION if self._parks else 0

    @property
    def waits_for(self) -> int:
        """So many trials that are parked on one rung continue before new ones start."""
        return max(1, self.pack_size // WAIT_FRACTION)

    @property
    def is_done(self) -> bool:
        """Whether every trial of the agenda is in a final state, and its pack over."""
        if self._live:
            return False
        done, total = self.progress
        return done == total

    def _auto_pack_size(self) -> int:
        asked = self._experiment.search.pack_size
        if asked != "auto":
            return asked
        agenda = self._agenda
        rounds = agenda.num_rounds
        if rounds > 1:
            rounds = max(rounds, ROUNDS_PER_PLACE * self.num_places)
        largest = MAX_AUTO_PACK["gpu" if self._experiment.resources.gpus_per_pack else "cpu"]
        return min(max(1, agenda.num_trials // rounds), largest)

    def next_pack(self, ray_id: str) -> PackTask | None:
        """Hand out the next pack; None where there is none for now.

        Args:
            ray_id: Ray Tune's name of the pack, for `take` and `end`.
        """
        if len(self._live) >= self.num_places:
            return None
        if not self._handed_out:
            if self._is_deterministic and not self._again:
                self._begin_round()
            else:
                self._hand_out(*self._next_trials())
        if not self._handed_out:
            return None
        task = self._handed_out.popleft()
        self._live[ray_id] = dict(task.tasks)
        self.show()
        return task

    @property
    def is_round_over(self) -> bool:
        """Whether no pack trains or is to be trained before something new is chosen."""
        return not (self._live or self._handed_out or self._again)

    def _begin_round(self) -> None:
        """Choose a pack for every place, unless the last round is not over yet."""
        if self._live or self.is_done:
            return
        with self._ledger.together():
            for _ in range(self.num_places):
                self._hand_out(*self._next_trials())

    def _hand_out(self, epoch: int, tasks: dict[int, Task]) -> None:
        """Make a pack of trials that have trained some epochs, unless there are no trials."""
        if not tasks:
            return
        pack = self._next_pack
        self._next_pack += 1
        if all(self._states.get(number) is State.PARKED for number in tasks):
            self._ledger.move(pack, tasks)
        else:
            self._ledger.hand_out(pack, {number: task.config for number, task in tasks.items()})
        self._states |= dict.fromkeys(tasks, State.RUNNING)
        logger.info("pack %d: trials %s from epoch %d", pack, _spans(tasks), epoch + 1)
        recorded = max(len(self.curves[number]) for number in tasks)
        self._handed_out.append(PackTask(pack, tasks, epoch, recorded))

    def _next_trials(self) -> tuple[int, dict[int, Task]]:
        """Return how many epochs the next pack's trials have trained, and the trials.

        Packs that lost their worker come first, then parked trials, those of the rung where most
        are parked, then new ones. While there are new ones, parked trials wait until
        `waits_for` of them can train together: a trial alone takes three times as long as in a
        pack. They wait no longer, because until a long trial has ended, the sampler takes short
        ones for the best and asks for more of them. Once all trials have been handed out, a
        place takes only its share of the parked ones and leaves the others to the other places.
        """
        if self._again:
            tasks = self._again.popleft()
            # In a round what is recorded stands; elsewhere packs may be of several lengths.
            num_recorded = max(len(self.curves[number]) for number in tasks)
            return num_recorded if self._is_deterministic else 0, tasks
        epoch = max(self._parked, key=lambda epoch: (len(self._parked[epoch]), epoch), default=0)
        waiting = self._parked[epoch]
        is_last = len(self._states) == self._agenda.num_trials
        if not is_last and len(waiting) < self.waits_for:
            new = self._agenda.ask(self._num_new(), self.curves)
            if new:
                return 0, new
        share = -(-len(waiting) // self.num_places) if is_last else self.pack_size
        numbers = sorted(waiting)[: min(share, self.pack_size)]
        return epoch, {number: waiting.pop(number) for number in numbers}

    def _num_new(self) -> int:
        """Return how many new trials a pack gets: a whole pack, and in the end a place's share.

        A share is at least half a pack, because small packs take longer a trial.
        """
        left = self._agenda.num_trials - len(self._states)
        share = max(-(-left // self.num_places), -(-self.pack_size // 2))
        return min(self.pack_size, share)

    def is_open(self, ray_id: str) -> bool:
        """Whether a pack is not over."""
        return ray_id in self._live

    def has_live(self, ray_id: str) -> bool:
        """Whether a pack, not over, has trials that still train."""
        return bool(self._live[ray_id])

    def take(self, ray_id: str, result: PackResult) -> None:
        """Record a pack's report."""
        live = self._live[ray_id]
        self._record(result.pack, result.reports, live)
        self._held |= {number: live.pop(number) for number in result.held if number in live}
        if result.remark and not self._remark:
            self._remark = result.remark
            logger.warning("%s", result.remark)
        if result.error:
            self._fail(ray_id, result.error)
        if result.out_of_memory:
            self._halve(ray_id, "it ran out of memory")
        self.show()

    def take_round(self, reports: Mapping[int, Sequence[Report]]) -> None:
        """Record the reports that were held until the round's end, by pack."""
        with self._ledger.together():
            for pack, of_pack in reports.items():
                self._record(pack, of_pack, self._held)
        self.show()

    def remark(self, text: str) -> None:
        """Tell the user something, through the display and the log."""
        logger.warning("%s", text)
        self._remark = text
        self.show()

    def _record(self, pack: int, reports: Sequence[Report], tasks: dict[int, Task]) -> None:
        """Record those reports that belong to trials in `tasks`, and take ended ones out."""
        reports = [report for report in reports if report.number in tasks]
        self._ledger.record(pack, reports)
        for report in reports:
            # A pack that is trained again reports its first epochs once more.
            del self.curves[report.number][report.epoch - 1 :]
            self.curves[report.number].append(self._value(report.metrics))
            if report.state.is_final:
                task = tasks.pop(report.number)
                self._tell(report.number, report.state)
                if report.state is State.COMPLETE:
                    self._note_best(report.number, task)
            elif report.state is State.PARKED:
                self._states[report.number] = State.PARKED
                self._parked[report.epoch][report.number] = tasks.pop(report.number)
        self._num_epochs += len(reports)

    def _value(self, metrics: EpochMetrics) -> float:
        """Return the search's metric; NaN where a trial diverged, also for its accuracy."""
        value: float = getattr(metrics, self._experiment.search.metric)
        return value if metrics.is_finite else math.nan

    def end(self, ray_id: str, reason: str, *, is_memory: bool = False) -> None:
        """Record that a pack is over; trials that it leaves unfinished lost their worker."""
        if is_memory and self._live[ray_id]:
            self._halve(ray_id, reason)
        lost = self._live.pop(ray_id)
        if not lost:
            return
        logger.warning("trials %s lost their worker: %s", _spans(lost), reason)
        self._ledger.event("worker_died", trials=sorted(lost), reason=reason)
        self._losses.update(lost.keys())
        num_losses = max(self._losses[number] for number in lost)
        if num_losses < SPLIT_LOSSES:
            self._again.append(lost)
        elif len(lost) > 1:
            self._again += _chunks(lost, -(-len(lost) // 2))
        elif num_losses < MAX_LOSSES:
            self._again.append(lost)
        else:
            why = f"its worker was lost {num_losses} times, the last time: {reason}"
            self._give_up(set(lost), why)

    def release(self) -> None:
        """Mark the trials that a stop interrupted, so that a resume runs them again."""
        interrupted = [n for n, state in self._states.items() if state is State.RUNNING]
        self._ledger.finish(interrupted, State.WAITING)
        self._states |= dict.fromkeys(interrupted, State.WAITING)

    def show(self, phase: str = "searching") -> None:
        """Tell the display the progress."""
        done, total = self.progress
        seconds = time.monotonic() - self._started
        fresh = done - self._num_done_before
        self._observe(
            Snapshot(
                phase=phase,
                num_trials=total,
                states=Counter(self._states.values()),
                num_packs=len(self._live),
                best=self._best,
                num_epochs=self._num_epochs,
                seconds=seconds,
                seconds_left=seconds / fresh * (total - done) if fresh else None,
                remark=self._remark,
            )
        )

    def _halve(self, ray_id: str, reason: str) -> None:
        """Split a pack that ran out of memory in two; later packs are no larger than a half."""
        lost = self._live[ray_id]
        if len(lost) == 1:
            self._give_up(set(lost), f"{reason}, and it was alone")
        else:
            self.pack_size = min(self.pack_size, -(-len(lost) // 2))
            logger.warning("trials %s: %s; packs of %d now", _spans(lost), reason, self.pack_size)
            self._ledger.event("out_of_memory", trials=sorted(lost), fits=self.pack_size)
            self._again += _chunks(lost, self.pack_size)
        self._live[ray_id] = {}

    def _fail(self, ray_id: str, error: str) -> None:
        numbers = set(self._live[ray_id])
        logger.error("a pack raised; its trials %s fail\n%s", _spans(numbers), error)
        self._give_up(numbers, error)
        self._live[ray_id] = {}

    def _give_up(self, numbers: set[int], error: str) -> None:
        if not numbers:
            return
        self._ledger.finish(numbers, State.FAIL, error)
        for number in sorted(numbers):
            self._tell(number, State.FAIL)

    def _tell(self, number: int, state: State) -> None:
        self._states[number] = state
        self._agenda.tell(number, state, self.curves[number])

    def _note_best(self, number: int, task: Task) -> None:
        value = trial_value(self.curves[number], task.config.learning_rate_schedule)
        sign = 1 if self._experiment.search.mode == "min" else -1
        if self._best is None or sign * value < sign * self._best[1]:
            self._best = (number, value)


def _chunks(tasks: dict[int, Task], size: int) -> list[dict[int, Task]]:
    items = list(tasks.items())
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


def _spans(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [n for i, n in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1] != n + 1]
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))
