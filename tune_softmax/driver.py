"""Drive one search in Ray Tune: join the study, the referee and the packs through the ledger.

The driver alone writes the ledger. Ray Tune's own folder is scratch, and what Ray pickles of the
driver is empty: what a resume needs is in the run folder.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_softmax.asha import Referee
from tune_softmax.metrics import State
from tune_softmax.progress import Snapshot
from tune_softmax.study import Study
from tune_softmax.worker import PARK_FRACTION, PackTrainable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tune_softmax.cluster import Cluster
    from tune_softmax.config import Config
    from tune_softmax.data import Dataset
    from tune_softmax.experiment import Experiment
    from tune_softmax.ledger import Ledger

__all__ = ["Job", "Outcome", "drive"]

MAX_ATTEMPTS = 3
# The sampler learns between packs, so a search asks in at least this many rounds; and every
# place where a pack can run sees some rounds, so that the last ones do not leave places idle.
MIN_ROUNDS = 8
ROUNDS_PER_PLACE = 4
MAX_AUTO_PACK = {"cpu": 64, "gpu": 1024}

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class Job:
    """What one search or resume works with.

    Attributes:
        experiment: What to search.
        ledger: Open for writing.
        dataset: Training and validation images.
        cluster: Where packs run.
        should_stop: Asked between events; the search ends once it is true.
        observe: Called with every change.
    """

    experiment: Experiment
    ledger: Ledger
    dataset: Dataset
    cluster: Cluster
    should_stop: Callable[[], bool]
    observe: Callable[[Snapshot], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a search ended.

    Attributes:
        num_done: Trials in a final state.
        num_trials: Trials in all.
        was_stopped: Whether it was told to stop.
    """

    num_done: int
    num_trials: int
    was_stopped: bool


def drive(job: Job) -> Outcome:
    """Run packs in Ray Tune until nothing is left or a stop is due; leave the ledger in order."""
    driver = _Driver(job)
    job.ledger.event("started", places=driver.num_places, pack_size=driver.pack_size)
    logger.info("started: %d places, packs of %d", driver.num_places, driver.pack_size)
    was_stopped = False
    try:
        _tune(job, driver)
    except _StopSearch:
        driver.release()
        was_stopped = True
    return Outcome(*driver.progress, was_stopped)


class _StopSearch(BaseException):
    """Leaves Ray Tune's loop at once: `Exception` would make it wait for busy workers."""


def _tune(job: Job, driver: _Driver) -> None:
    experiment = job.experiment
    settings = {
        "seed": experiment.search.seed,
        "metric": experiment.search.metric,
        "cpus_per_pack": experiment.resources.cpus_per_pack,
        "reduction": experiment.model.reduction,
        "initial_std": experiment.model.initial_std,
    }
    trainable = tune.with_parameters(
        PackTrainable, dataset=job.dataset, settings=settings, referee=_start_referee(driver)
    )
    resources = {
        "CPU": experiment.resources.cpus_per_pack,
        "GPU": experiment.resources.gpus_per_pack,
    }
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=_PackSearcher(driver),
            num_samples=-1,  # the searcher says when it is finished
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"pack-{trial.config['pack']}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(job.cluster.folder / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            callbacks=[_StopWatch(driver)],
        ),
    )
    tuner.fit()


def _start_referee(driver: _Driver) -> Any:  # noqa: ANN401 - an actor handle has no type
    search = driver.experiment.search
    if search.asha is None:
        return None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Referee)
    max_epochs = int(driver.experiment.space.largest("num_epochs"))
    referee = actor.remote(search.asha, search.mode, max_epochs, search.seed)
    if driver.curves:
        recorded = {number: dict(enumerate(curve, 1)) for number, curve in driver.curves.items()}
        referee.replay.remote(recorded)
    return referee


class _Driver:
    """The search's state between Ray Tune's events: the ledger and what mirrors it in memory."""

    def __init__(self, job: Job) -> None:
        experiment, ledger = job.experiment, job.ledger
        self.experiment = experiment
        self.should_stop = job.should_stop
        self.num_places = job.cluster.num_packs(experiment.resources)
        self._ledger = ledger
        self._observe = job.observe
        self._started = time.monotonic()
        self._live: dict[str, dict[int, Config]] = {}  # trials by Ray's trial id
        self._parked: defaultdict[int, dict[int, Config]] = defaultdict(dict)  # by epoch
        self._study = Study(experiment.space, experiment.search)
        self.curves: defaultdict[int, list[float]] = defaultdict(list)
        trials = ledger.trials()
        for number, _epoch, metrics in ledger.epochs():
            self.curves[number].append(getattr(metrics, experiment.search.metric))
        self._study.replay(trials, self.curves)
        self._states = {trial.number: trial.state for trial in trials}
        self._num_done_before = sum(state.is_final for state in self._states.values())
        self._next_pack = 1 + max((trial.pack for trial in trials), default=-1)
        self._num_epochs = sum(map(len, self.curves.values()))
        self._best: tuple[int, float] | None = None
        self.pack_size = self._pack_size()
        left = {trial.number: trial.config for trial in trials if not trial.state.is_final}
        self._again = deque(_chunks(left, self.pack_size))
        for trial in trials:
            self._note_best(trial.number, trial.state)

    @property
    def progress(self) -> tuple[int, int]:
        """How many trials are done, of how many."""
        done = sum(state.is_final for state in self._states.values())
        return done, self._study.num_trials

    def _pack_size(self) -> int:
        asked = self.experiment.search.pack_size
        if asked != "auto":
            return asked
        rounds = max(MIN_ROUNDS, ROUNDS_PER_PLACE * self.num_places)
        largest = MAX_AUTO_PACK["gpu" if self.experiment.resources.gpus_per_pack else "cpu"]
        return min(max(1, self._study.num_trials // rounds), largest)

    def next_pack(self, ray_id: str) -> dict[str, Any] | str | None:
        """Give Ray Tune the next pack, nothing for now, or word that all is done."""
        if len(self._live) >= self.num_places:
            return None
        epoch, configs = self._next_trials()
        if not configs:
            # A pack that still runs may lose its worker and come back.
            return None if self._live else Searcher.FINISHED
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
        trials = {str(number): asdict(config) for number, config in configs.items()}
        return {"pack": pack, "trials": trials, "epoch": epoch}

    def _next_trials(self) -> tuple[int, dict[int, Config]]:
        """Return what the next pack trains, and how many epochs it has behind it.

        Lost packs come first, then parked trials once they are more than a pack would park, then
        new ones; at the end of the search the rest of the parked ones, over the free places.
        """
        if self._again:
            return 0, self._again.popleft()
        fullest = max(self._parked, key=lambda epoch: len(self._parked[epoch]), default=0)
        waiting = dict(self._parked.get(fullest, {}))
        if len(waiting) <= self.pack_size // PARK_FRACTION:
            configs = self._study.ask(self.pack_size)
            if configs or not waiting:
                return 0, configs
            num_free = self.num_places - len(self._live)
            waiting = dict(list(waiting.items())[: -(-len(waiting) // num_free)])
        for number in waiting:
            del self._parked[fullest][number]
        return fullest, waiting

    def take(self, ray_id: str, result: dict[str, Any]) -> None:
        """Record a pack's report."""
        live = self._live[ray_id]
        reports = [report for report in result["reports"] if report.number in live]
        self._ledger.record(result["pack"], reports)
        metric = self.experiment.search.metric
        for report in reports:
            # A pack that is trained again reports its first epochs once more.
            del self.curves[report.number][report.epoch - 1 :]
            self.curves[report.number].append(getattr(report.metrics, metric))
            if report.state.is_final:
                self._finish(ray_id, report.number, report.state)
        self._num_epochs += len(reports)
        for number in result["parked"]:
            self._parked[result["epoch"]][number] = live.pop(number)
        if result["error"]:
            self._fail(ray_id, result["error"])
        self.show()

    def end(self, ray_id: str) -> None:
        """Note that a pack is over; trials it leaves unfinished lost their worker."""
        lost = self._live.pop(ray_id)
        if not lost:
            return
        attempts = {t.number: t.attempts for t in self._ledger.trials() if t.number in lost}
        worn = {number for number in lost if attempts[number] >= MAX_ATTEMPTS}
        again = {number: config for number, config in lost.items() if number not in worn}
        logger.warning("a worker died with trials %s in training", _spans(lost))
        self._ledger.event("worker_died", trials=sorted(lost))
        if worn:
            reason = f"its worker died {MAX_ATTEMPTS} times"
            self._ledger.finish(worn, State.FAIL, reason)
            for number in worn:
                self._tell(number, State.FAIL)
        if again:
            self._again.append(again)

    def release(self) -> None:
        """Mark what a stop cut off, for a resume to run again."""
        held = [*self._live.values(), *self._parked.values()]
        cut_off = [number for trials in held for number in trials]
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
            )
        )

    def _fail(self, ray_id: str, error: str) -> None:
        numbers = sorted(self._live[ray_id])
        logger.error("a pack raised; its trials %s fail\n%s", _spans(numbers), error)
        self._ledger.finish(numbers, State.FAIL, error)
        for number in numbers:
            self._finish(ray_id, number, State.FAIL)

    def _finish(self, ray_id: str, number: int, state: State) -> None:
        del self._live[ray_id][number]
        self._tell(number, state)

    def _tell(self, number: int, state: State) -> None:
        self._states[number] = state
        self._study.tell(number, state, self.curves[number])
        self._note_best(number, state)

    def _note_best(self, number: int, state: State) -> None:
        if state is not State.COMPLETE:
            return
        value = self.curves[number][-1]
        sign = 1 if self.experiment.search.mode == "min" else -1
        if self._best is None or sign * value < sign * self._best[1]:
            self._best = (number, value)


class _PackSearcher(Searcher):
    """Ray Tune's view of the search: every suggestion is a pack."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: Ray pickles its searcher, and a resume reads the ledger."""
        return {}

    def set_search_properties(self, *_args: object, **_spec: object) -> bool:
        """Accept Ray Tune's own metric and space, which are not used."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Give the next pack."""
        return self._driver.next_pack(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take a report, not the pack's last."""
        self._driver.take(trial_id, result)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002 - Ray's signature
    ) -> None:
        """Take a pack's last report, or note that its worker died."""
        if result is not None and not error:
            self._driver.take(trial_id, result)
        self._driver.end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is saved."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a resume reads the ledger."""


class _StopWatch(tune.Callback):
    """Looks between Ray Tune's events whether the search must stop."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: Ray pickles its callbacks."""
        return {}

    def on_step_begin(self, **_info: object) -> None:
        """Leave Ray Tune's loop if a stop is due."""
        if self._driver.should_stop():
            raise _StopSearch


def _chunks(configs: dict[int, Config], size: int) -> list[dict[int, Config]]:
    items = list(configs.items())
    return [dict(items[i : i + size]) for i in range(0, len(items), size)]


def _spans(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: 0-31, 40."""
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [n for i, n in enumerate(ordered) if i + 1 == len(ordered) or ordered[i + 1] != n + 1]
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))
