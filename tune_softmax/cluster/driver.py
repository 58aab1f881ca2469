"""Run the packs of one agenda in Ray Tune: dispatcher and ASHA here, packs in workers.

Nothing that Ray Tune writes is read again: a resume needs the run folder alone.
"""

from __future__ import annotations

import functools
import logging
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ray
from ray.exceptions import OutOfMemoryError

from tune_softmax.cluster import fast_start
from tune_softmax.cluster.worker import PackTrainable, Settings
from tune_softmax.errors import TuneSoftmaxError
from tune_softmax.scheduler.asha import AshaScheduler, Rungs
from tune_softmax.scheduler.dispatcher import Dispatcher

if TYPE_CHECKING:
    from ray import tune
else:
    tune = fast_start.import_tune()

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.tune.experiment import Trial

    from tune_softmax.cluster.connect import Cluster
    from tune_softmax.experiment.sections import Resources
    from tune_softmax.scheduler.dispatcher import Job
    from tune_softmax.scheduler.messages import Decision

__all__ = ["KeepPlacement", "Outcome", "drive"]

# Answers of a Ray Tune scheduler.
CONTINUE: str = tune.schedulers.TrialScheduler.CONTINUE
STOP: str = tune.schedulers.TrialScheduler.STOP

# How often the nodes are looked at, and for how long none may be able to run a pack before the
# user is told.
NODE_CHECK_S = 10.0
NO_NODE_S = 30.0

logger = logging.getLogger("tune_softmax")

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a search ended."""

    num_done: int
    num_trials: int
    was_stopped: bool


def drive(job: Job, cluster: Cluster) -> Outcome:
    """Run packs in Ray Tune until nothing is left or a stop is due.

    Args:
        job: What to train; its ledger can be resumed afterwards.
        cluster: Where packs run; Ray Tune writes to its folder.
    """
    dispatcher = Dispatcher(job)
    job.ledger.event("started", places=dispatcher.num_places, pack_size=dispatcher.pack_size)
    logger.info("started: %d places, packs of %d", dispatcher.num_places, dispatcher.pack_size)
    was_stopped = False
    try:
        _tune(job, dispatcher, cluster)
    except _Leave:
        dispatcher.release()
        was_stopped = not dispatcher.is_done
    except _Broken as broken:
        raise broken.error from broken.error.__cause__
    return Outcome(*dispatcher.progress, was_stopped)


class _Leave(BaseException):
    """Leaves Ray Tune's loop at once.

    An `Exception` would make Ray Tune wait for busy workers. Its regular end takes a second: it
    waits for idle workers too, and saves a state that is not needed.
    """


class _Broken(BaseException):
    """Carries one of our errors through Ray Tune, which takes an `Exception` for a trial's."""

    def __init__(self, error: TuneSoftmaxError) -> None:
        super().__init__(error)
        self.error = error


def _past_ray(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a method's own errors end the search, although Ray Tune calls it."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except TuneSoftmaxError as error:
            raise _Broken(error) from error

    return call


def _tune(job: Job, dispatcher: Dispatcher, cluster: Cluster) -> None:
    experiment = job.experiment
    rungs = _rungs(job)
    settings = Settings(
        cpus_per_pack=experiment.resources.cpus_per_pack,
        reduction=experiment.model.reduction,
        initial_std=experiment.model.initial_std,
        precision=experiment.model.precision,
        rungs=rungs,
    )
    asha = AshaScheduler(
        rungs,
        metric=experiment.search.metric,
        mode=experiment.search.mode,
        curves=dispatcher.curves,
        is_deterministic=job.is_deterministic,
    )
    trainable = tune.with_parameters(
        PackTrainable,
        dataset=job.dataset,
        test=job.test,
        settings=settings,
    )
    resources = {
        "CPU": experiment.resources.cpus_per_pack,
        "GPU": experiment.resources.gpus_per_pack,
    }
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=_PackSearcher(dispatcher),
            scheduler=_PackScheduler(dispatcher, asha),
            num_samples=-1,  # `_Watch` ends the loop
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"pack-{trial.config['task'].pack}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(cluster.folder / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            # In a notebook Ray's default would clear the cell's output.
            progress_reporter=tune.CLIReporter(),
            callbacks=[
                _Watch(dispatcher, asha, job.should_stop, experiment.resources.report_timeout_s),
                _NodeWatch(cluster, experiment.resources, dispatcher.remark),
            ],
        ),
    )
    with fast_start.tuning():
        tuner.fit()


def _rungs(job: Job) -> Rungs | None:
    if job.asha is None:
        return None
    max_epochs = int(job.experiment.space.largest("num_epochs"))
    return Rungs(job.asha, max_epochs, job.experiment.search.seed)


class _PackSearcher(tune.search.Searcher):
    """The search as a Ray Tune searcher: every suggestion is a pack."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: a resume reads the ledger."""
        return {}

    def set_search_properties(self, *_args: object, **_spec: object) -> bool:
        """Accept Ray Tune's own metric and space, which are not used."""
        return True

    @_past_ray
    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next pack, or None for now; `_Watch` ends the search."""
        task = self._dispatcher.next_pack(trial_id)
        return None if task is None else {"task": task}

    def on_trial_result(self, *_args: object) -> None:
        """Do nothing: `_PackScheduler` takes results."""

    def on_trial_complete(self, *_args: object, **_result: object) -> None:
        """Do nothing: `_PackScheduler` takes results."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a resume reads the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a resume reads the ledger."""


class KeepPlacement(tune.schedulers.FIFOScheduler):
    """Leaves a pack to the worker that is starting for it.

    Ray Tune's default gives a waiting pack to a free worker at once. It then ends the worker that
    was starting for the pack, and starts another for the next pack. Where a pack takes less time
    than a worker's start, this repeats until the end, and one place does the work of two.
    """

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """Return None: Ray Tune then starts packs in their order, each where there is room."""


class _PackScheduler(KeepPlacement):
    """ASHA as a Ray Tune scheduler: what a pack does after a report."""

    def __init__(self, dispatcher: Dispatcher, asha: AshaScheduler) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._asha = asha

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: a resume reads the ledger."""
        return {}

    @_past_ray
    def on_trial_result(self, _controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Take a report that is not the pack's last, and tell the pack the decision."""
        decision = self._take(trial, result)
        if not self._dispatcher.has_live(trial.trial_id):
            _end(self._dispatcher, self._asha, trial, "all its trials have ended")
            return STOP
        if decision:
            trial.temporary_state.ray_actor.apply.remote(decision)
        return CONTINUE

    @_past_ray
    def on_trial_complete(self, _controller: object, trial: Trial, result: dict[str, Any]) -> None:
        """Take a pack's last report, unless `on_trial_result` has ended the pack."""
        if self._dispatcher.is_open(trial.trial_id):
            self._take(trial, result)
            _end(self._dispatcher, self._asha, trial, "its worker ended without a word")

    def _take(self, trial: Trial, result: dict[str, Any]) -> Decision:
        decided, decision = self._asha.decide(
            trial.config["task"], result["result"], parks_at=self._dispatcher.parks_at
        )
        self._dispatcher.take(trial.trial_id, decided)
        return decision


class _Watch(tune.Callback):
    """Checks, between Ray Tune's events, whether to stop, and whether every pack still reports."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        asha: AshaScheduler,
        should_stop: Callable[[], bool],
        timeout_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._asha = asha
        self._should_stop = should_stop
        self._timeout_s = timeout_s
        self._reported: dict[Trial, float] = {}  # when each pack started or last reported
        self._killed: set[str] = set()
        self._on_warning = signal.getsignal(signal.SIGUSR1)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: a resume reads the ledger."""
        return {}

    def setup(self, *_args: object, **_info: object) -> None:
        """Restore our handler of SIGUSR1: Ray Tune's ends as if the search were over."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self._on_warning is not None:  # None: not set from Python
            signal.signal(signal.SIGUSR1, self._on_warning)

    def on_step_begin(self, **_info: object) -> None:
        """Leave Ray Tune's loop if all is done or a stop is due; kill workers that hang."""
        if self._dispatcher.is_done or self._should_stop():
            raise _Leave
        now = time.monotonic()
        for trial, reported in list(self._reported.items()):
            actor = trial.temporary_state.ray_actor
            if now - reported > self._timeout_s and actor is not None:
                self._killed.add(trial.trial_id)
                del self._reported[trial]
                ray.kill(actor)

    def on_trial_start(self, trial: Trial, **_info: object) -> None:
        """Note when a pack started, and send it the states of its parked trials."""
        self._reported[trial] = time.monotonic()
        states = self._asha.take_states(trial.config["task"].tasks)
        if states:
            trial.temporary_state.ray_actor.start_from.remote(states)

    def on_trial_result(self, trial: Trial, **_info: object) -> None:
        """Note when a pack reported."""
        self._reported[trial] = time.monotonic()

    def on_trial_complete(self, trial: Trial, **_info: object) -> None:
        """Watch a pack that is over no longer."""
        self._reported.pop(trial, None)

    @_past_ray
    def on_trial_error(self, trial: Trial, **_info: object) -> None:
        self._reported.pop(trial, None)
        error = trial.get_pickled_error()
        if trial.trial_id in self._killed:
            reason = f"it had not reported for {self._timeout_s:g} s and was killed"
        else:
            reason = _first_line(error)
        is_memory = isinstance(error, OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)
        _end(self._dispatcher, self._asha, trial, reason, is_memory=is_memory)


class _NodeWatch(tune.Callback):
    """Tells the user when no node can run a pack any more, and when one can again.

    Ray waits without a word for a node that may join; so does the search, and says so.

    Args:
        cluster: Whose nodes are looked at.
        resources: What a pack needs.
        tell: Called with a message for the user.
    """

    def __init__(
        self, cluster: Cluster, resources: Resources, tell: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._resources = resources
        self._tell = tell
        self._looked_at = time.monotonic()
        self._fit_at = time.monotonic()  # when a node could last run a pack
        self._has_told = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: a resume reads the ledger."""
        return {}

    def on_step_begin(self, **_info: object) -> None:
        """Look at the nodes every `NODE_CHECK_S` seconds."""
        now = time.monotonic()
        if now - self._looked_at < NODE_CHECK_S:
            return
        self._looked_at = now
        resources = self._resources
        if any(node.num_packs(resources) for node in self._cluster.nodes()):
            self._fit_at = now
            if self._has_told:
                self._has_told = False
                self._tell("a node of the cluster can run packs again: the search goes on")
        elif now - self._fit_at >= NO_NODE_S and not self._has_told:
            self._has_told = True
            self._tell(
                "no node of the cluster can run a pack now: waiting for one with "
                f"{resources.cpus_per_pack} CPUs and {resources.gpus_per_pack:g} GPUs"
            )


def _end(
    dispatcher: Dispatcher,
    asha: AshaScheduler,
    trial: Trial,
    reason: str,
    *,
    is_memory: bool = False,
) -> None:
    """Record that a pack is over, and what ASHA decides if a round ends with it."""
    dispatcher.end(trial.trial_id, reason, is_memory=is_memory)
    if dispatcher.is_round_over and (reports := asha.end_round()):
        dispatcher.take_round(reports)


def _first_line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    return lines[0] if lines else "its worker died"
