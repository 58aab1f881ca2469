"""What trains next, and what became of it; the run's one writer.

Lost packs come first, then parked trials, then new ones; every event is in the ledger before
anybody else is told.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.metrics import State, trial_value
from tune_softmax.scheduler.messages import PackTask
from tune_softmax.scheduler.progress import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tune_softmax.config import Config
    from tune_softmax.data.dataset import Dataset, Split
    from tune_softmax.experiment.experiment import Asha, Experiment
    from tune_softmax.run.ledger import Ledger
    from tune_softmax.scheduler.agenda import Agenda, View
    from tune_softmax.scheduler.messages import PackResult

__all__ = ["Dispatcher", "Job"]

MAX_LOSSES = 3  # of a trial's worker; that a driver died is no fault of the trial
# Every place where a pack can run sees some rounds, so that the last ones leave none idle.
ROUNDS_PER_PLACE = 4
MAX_AUTO_PACK = {"cpu": 64, "gpu": 1024}
# A pack that is down to an eighth of its trials parks them, and a quarter of a pack goes on
# together. Measured with two packs of 32 at a time: half of a search's seconds went into packs of
# three trials or fewer.
PARK_FRACTION = 8
WAIT_FRACTION = 4

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class Job:
    """What one search or resume works with.

    Attributes:
        experiment: What is asked.
        agenda: The trials to train; the dispatcher replays the ledger into it.
        ledger: Open for writing.
        dataset: Training and validation images.
        num_places: How many packs run side by side.
        should_stop: Asked between events; the search ends once it is true.
        observe: Called with every change.
        asha: When poor trials are stopped; None: never.
        test: Test images to evaluate complete trials on; None for a search.
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


class Dispatcher:
    """Says what the next pack is, and notes what became of each.

    Between events its state is the ledger's, mirrored in memory.

    Args:
        job: What the run works with; its ledger is replayed.

    Attributes:
        num_places: How many packs run side by side.
        pack_size: Trials of a new pack, at most.
        parks_at: A pack that is down to so many trials on a rung parks them.
        waits_for: So many that are parked on one rung go on before new ones begin.
        curves: The metric after each epoch, by trial number.
    """

    def __init__(self, job: Job) -> None:
        experiment, ledger = job.experiment, job.ledger
        self._experiment = experiment
        self.num_places = job.num_places
        self._agenda = job.agenda
        self._ledger = ledger
        self._observe = job.observe
        self._started = time.monotonic()
        self._live: dict[str, dict[int, Config]] = {}  # trials by Ray's trial id
        self._parked: defaultdict[int, dict[int, Config]] = defaultdict(dict)  # by epoch
        self.curves: defaultdict[int, list[float]] = defaultdict(list)
        trials = ledger.trials()
        for number, _epoch, metrics in ledger.epochs():
            self.curves[number].append(getattr(metrics, experiment.search.metric))
        self._agenda.replay(trials, self.curves)
        self._states = {trial.number: trial.state for trial in trials}
        self._losses: Counter[int] = Counter()  # of a worker, by trial
        self._num_done_before = sum(state.is_final for state in self._states.values())
        self._next_pack = 1 + max((trial.pack for trial in trials), default=-1)
        self._num_epochs = sum(map(len, self.curves.values()))
        self._best: tuple[int, float] | None = None
        self._remark = ""
        self.pack_size = self._auto_pack_size()
        self.parks_at = self.pack_size // PARK_FRACTION if job.asha else 0
        self.waits_for = max(1, self.pack_size // WAIT_FRACTION)
        for _, kind, detail in ledger.events():
            if kind == "out_of_memory":
                self.pack_size = min(self.pack_size, int(detail["fits"]))
            elif kind == "worker_died":
                self._losses.update(detail["trials"])
        self._again: deque[dict[int, Config]] = deque()
        left: defaultdict[View, dict[int, Config]] = defaultdict(dict)
        for trial in trials:
            if trial.state is State.PARKED:
                self._parked[len(self.curves[trial.number])][trial.number] = trial.config
            elif not trial.state.is_final:
                left[self._view(trial.number, trial.config)][trial.number] = trial.config
            if trial.state is State.COMPLETE:
                self._note_best(trial.number, trial.config)
        for configs in left.values():
            self._again += _chunks(configs, self.pack_size)

    @property
    def progress(self) -> tuple[int, int]:
        """How many trials are done, of how many."""
        done = sum(state.is_final for state in self._states.values())
        return done, self._agenda.num_trials

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

    def _view(self, number: int, config: Config) -> View:
        return self._agenda.task(number, config).view

    def next_pack(self, ray_id: str) -> PackTask | None:
        """Hand out the next pack; None where there is none for now.

        Args:
            ray_id: What Ray Tune calls the pack, for `take` and `end`.
        """
        if len(self._live) >= self.num_places:
            return None
        epoch, configs = self._next_trials()
        if not configs:
            return None
        pack = self._next_pack
        self._next_pack += 1
        if epoch:
            self._ledger.move(pack, configs)
        else:
            self._ledger.hand_out(pack, configs)
        self._live[ray_id] = dict(configs)
        self._states |= dict.fromkeys(configs, State.RUNNING)
        logger.info("pack %d: trials %s from epoch %d", pack, _spans(configs), epoch + 1)
        self.show()
        tasks = {number: self._agenda.task(number, config) for number, config in configs.items()}
        recorded = max(len(self.curves[number]) for number in configs)
        return PackTask(pack, tasks, epoch, recorded)

    def _next_trials(self) -> tuple[int, dict[int, Config]]:
        """Return what the next pack trains, and how many epochs it has behind it.

        Lost packs come first, then parked trials, those of the rung where most wait, then new
        ones. Parked ones wait for a place, and while there are new ones also for company: a trial
        alone takes three times as long as in a pack. They wait no longer than that, for until a
        long trial has ended, the sampler takes short ones for the best there are, and asks for
        more of them. Once all trials have been handed out, a place takes its share of those that
        wait, for the others will be free as well.
        """
        if self._again:
            return 0, self._again.popleft()
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
        """Return how many new trials a pack gets: all that fit, but in the end a place's share.

        A share is half a pack at least, for small packs take longer a trial.
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
        reports = [report for report in result.reports if report.number in live]
        self._ledger.record(result.pack, reports)
        metric = self._experiment.search.metric
        for report in reports:
            # A pack that is trained again reports its first epochs once more.
            del self.curves[report.number][report.epoch - 1 :]
            self.curves[report.number].append(getattr(report.metrics, metric))
            if report.state.is_final:
                self._finish(ray_id, report.number, report.state)
            elif report.state is State.PARKED:
                self._states[report.number] = State.PARKED
                self._parked[report.epoch][report.number] = live.pop(report.number)
        self._num_epochs += len(reports)
        if result.remark and not self._remark:
            self._remark = result.remark
            logger.warning("%s", result.remark)
        if result.error:
            self._fail(ray_id, result.error)
        if result.out_of_memory:
            self._halve(ray_id, "it ran out of memory")
        self.show()

    def end(self, ray_id: str, reason: str, *, is_memory: bool = False) -> None:
        """Note that a pack is over; trials it leaves unfinished lost their worker."""
        if is_memory and self._live[ray_id]:
            self._halve(ray_id, reason)
        lost = self._live.pop(ray_id)
        if not lost:
            return
        logger.warning("trials %s lost their worker: %s", _spans(lost), reason)
        self._ledger.event("worker_died", trials=sorted(lost), reason=reason)
        self._losses.update(lost.keys())
        worn = {number for number in lost if self._losses[number] >= MAX_LOSSES}
        self._give_up(worn, f"its worker was lost {MAX_LOSSES} times, the last time: {reason}")
        again = {number: config for number, config in lost.items() if number not in worn}
        if again:
            self._again.append(again)

    def release(self) -> None:
        """Mark what a stop cut off, for a resume to run again; parked trials stay so."""
        cut_off = [number for trials in self._live.values() for number in trials]
        self._ledger.finish(cut_off, State.WAITING)

    def show(self, phase: str = "searching") -> None:
        """Tell the display."""
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
        """Train a pack that memory was too little for again in halves, and remember their size."""
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

    def _finish(self, ray_id: str, number: int, state: State) -> None:
        config = self._live[ray_id].pop(number)
        self._tell(number, state)
        if state is State.COMPLETE:
            self._note_best(number, config)

    def _tell(self, number: int, state: State) -> None:
        self._states[number] = state
        self._agenda.tell(number, state, self.curves[number])

    def _note_best(self, number: int, config: Config) -> None:
        value = trial_value(self.curves[number], config.learning_rate_schedule)
        sign = 1 if self._experiment.search.mode == "min" else -1
        if self._best is None or sign * value < sign * self._best[1]:
            self._best = (number, value)


def _chunks(configs: dict[int, Config], size: int) -> list[dict[int, Config]]:
    items = list(configs.items())
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


def _spans(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: 0-31, 40."""
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [n for i, n in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1] != n + 1]
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))
