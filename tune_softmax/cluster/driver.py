"""Drive one agenda in Ray Tune: join the dispatcher, the judge and the packs.

Ray Tune's own folder is scratch, and what Ray pickles of the driver is empty: what a resume needs
is in the run folder.
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
from tune_softmax.scheduler.asha import Rungs
from tune_softmax.scheduler.dispatcher import Dispatcher
from tune_softmax.scheduler.judge import Judge

if TYPE_CHECKING:
    from ray import tune
else:
    tune = fast_start.import_tune()

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ray.tune.experiment import Trial

    from tune_softmax.scheduler.dispatcher import Job
    from tune_softmax.scheduler.judge import Verdict

__all__ = ["KeepPlacement", "Outcome", "drive"]

# What Ray Tune's schedulers answer.
CONTINUE: str = tune.schedulers.TrialScheduler.CONTINUE
STOP: str = tune.schedulers.TrialScheduler.STOP

logger = logging.getLogger("tune_softmax")

_P = ParamSpec("_P")
_T = TypeVar("_T")


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


def drive(job: Job, folder: Path) -> Outcome:
    """Run packs in Ray Tune until nothing is left or a stop is due; leave the ledger in order.

    Args:
        job: What to train.
        folder: Where Ray Tune may write what nobody reads.
    """
    dispatcher = Dispatcher(job)
    job.ledger.event("started", places=dispatcher.num_places, pack_size=dispatcher.pack_size)
    logger.info("started: %d places, packs of %d", dispatcher.num_places, dispatcher.pack_size)
    was_stopped = False
    try:
        _tune(job, dispatcher, folder)
    except _Leave:
        dispatcher.release()
        was_stopped = not dispatcher.is_done
    except _Broken as broken:
        raise broken.error from broken.error.__cause__
    return Outcome(*dispatcher.progress, was_stopped)


class _Leave(BaseException):
    """Leaves Ray Tune's loop at once.

    `Exception` would make it wait for busy workers. Its own way out takes a second: it waits for
    idle ones too, and saves a state that nobody reads.
    """


class _Broken(BaseException):
    """Carries an error of ours past Ray Tune, which takes an `Exception` for its trial's."""

    def __init__(self, error: TuneSoftmaxError) -> None:
        super().__init__(error)
        self.error = error


def _past_ray(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a method's own errors end the search, whoever calls it."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except TuneSoftmaxError as error:
            raise _Broken(error) from error

    return call


def _tune(job: Job, dispatcher: Dispatcher, folder: Path) -> None:
    experiment = job.experiment
    rungs = _rungs(job)
    settings = Settings(
        cpus_per_pack=experiment.resources.cpus_per_pack,
        reduction=experiment.model.reduction,
        initial_std=experiment.model.initial_std,
        precision=experiment.model.precision,
        rungs=rungs,
    )
    judge = Judge(
        rungs,
        metric=experiment.search.metric,
        mode=experiment.search.mode,
        parks_at=dispatcher.parks_at,
        curves=dispatcher.curves,
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
            scheduler=_PackScheduler(dispatcher, judge),
            num_samples=-1,  # `_Watch` ends the loop
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"pack-{trial.config['task'].pack}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            # In a notebook Ray would choose one that wipes what the cell has printed.
            progress_reporter=tune.CLIReporter(),
            callbacks=[
                _Watch(dispatcher, judge, job.should_stop, experiment.resources.report_timeout_s)
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
    """Ray Tune's view of the search: every suggestion is a pack."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: Ray pickles its searcher, and a resume reads the ledger."""
        return {}

    def set_search_properties(self, *_args: object, **_spec: object) -> bool:
        """Accept Ray Tune's own metric and space, which are not used."""
        return True

    @_past_ray
    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Give Ray Tune the next pack, or nothing for now; `_Watch` sees that all is done."""
        task = self._dispatcher.next_pack(trial_id)
        return None if task is None else {"task": task}

    def on_trial_result(self, *_args: object) -> None:
        """Leave that to `_PackScheduler`."""

    def on_trial_complete(self, *_args: object, **_result: object) -> None:
        """Leave that to `_PackScheduler`."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is saved."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a resume reads the ledger."""


class KeepPlacement(tune.schedulers.FIFOScheduler):
    """Leaves a pack to the worker that is starting for it.

    Ray Tune's own scheduler names a pack that waits, and a worker that is free takes it at once;
    the one that was starting is ended, and a new one started for the next pack. Where packs take
    less time than workers to start, that goes on to the end, and one place does the work of two.
    """

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """Name none: Ray Tune then starts packs in their order, each where there is room."""


class _PackScheduler(KeepPlacement):
    """Ray Tune's view of ASHA: what becomes of a pack after a report.

    Args:
        dispatcher: Who records it.
        judge: Who decides.
    """

    def __init__(self, dispatcher: Dispatcher, judge: Judge) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._judge = judge

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: Ray pickles its scheduler."""
        return {}

    @_past_ray
    def on_trial_result(self, _controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Take a report, not the pack's last, and tell the pack who of it goes on."""
        verdict = self._take(trial, result)
        if not self._dispatcher.has_live(trial.trial_id):
            self._dispatcher.end(trial.trial_id, "all its trials have ended")
            return STOP
        if verdict:
            trial.temporary_state.ray_actor.hear.remote(verdict.stopped, parks=verdict.parks)
        return CONTINUE

    @_past_ray
    def on_trial_complete(self, _controller: object, trial: Trial, result: dict[str, Any]) -> None:
        """Take a pack's last report; one that was ended above is over already."""
        if self._dispatcher.is_open(trial.trial_id):
            self._take(trial, result)
            self._dispatcher.end(trial.trial_id, "its worker ended without a word")

    def _take(self, trial: Trial, result: dict[str, Any]) -> Verdict:
        judged, verdict = self._judge.hear(trial.config["task"], result["result"])
        self._dispatcher.take(trial.trial_id, judged)
        return verdict


class _Watch(tune.Callback):
    """Looks, between Ray Tune's events, whether to leave, and whether every pack still reports.

    Args:
        dispatcher: Who is told.
        judge: Who has kept what a pack goes on from.
        should_stop: Asked between events.
        timeout_s: Seconds without a report after which a pack's worker is killed.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        judge: Judge,
        should_stop: Callable[[], bool],
        timeout_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._judge = judge
        self._should_stop = should_stop
        self._timeout_s = timeout_s
        self._heard: dict[Trial, float] = {}  # when each pack began or last reported
        self._killed: set[str] = set()
        self._on_warning = signal.getsignal(signal.SIGUSR1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: Ray pickles its callbacks."""
        return {}

    def setup(self, *_args: object, **_info: object) -> None:
        """Take SIGUSR1 back: Ray Tune catches it, and ends as if the search were over."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self._on_warning is not None:  # None: not set from Python
            signal.signal(signal.SIGUSR1, self._on_warning)

    def on_step_begin(self, **_info: object) -> None:
        """Leave Ray Tune's loop if all is done or a stop is due; kill workers that hang."""
        if self._dispatcher.is_done or self._should_stop():
            raise _Leave
        now = time.monotonic()
        for trial, heard in list(self._heard.items()):
            actor = trial.temporary_state.ray_actor
            if now - heard > self._timeout_s and actor is not None:
                self._killed.add(trial.trial_id)
                del self._heard[trial]
                ray.kill(actor)

    def on_trial_start(self, trial: Trial, **_info: object) -> None:
        """Note when a pack began, and give it the states of trials that were parked."""
        self._heard[trial] = time.monotonic()
        states = self._judge.states(trial.config["task"].tasks)
        if states:
            trial.temporary_state.ray_actor.go_on.remote(states)

    def on_trial_result(self, trial: Trial, **_info: object) -> None:
        """Note when a pack reported."""
        self._heard[trial] = time.monotonic()

    def on_trial_complete(self, trial: Trial, **_info: object) -> None:
        """Watch a pack no longer that is over."""
        self._heard.pop(trial, None)

    @_past_ray
    def on_trial_error(self, trial: Trial, **_info: object) -> None:
        """Tell why a pack lost its worker."""
        self._heard.pop(trial, None)
        error = trial.get_pickled_error()
        if trial.trial_id in self._killed:
            reason = f"it had not reported for {self._timeout_s:g} s and was killed"
        else:
            reason = _first_line(error)
        is_memory = isinstance(error, OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)
        self._dispatcher.end(trial.trial_id, reason, is_memory=is_memory)


def _first_line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    return lines[0] if lines else "its worker died"
