"""What every run needs around its trials: data, a cluster, a log, and a way to stop well."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tune_softmax import files
from tune_softmax.data.dataset import load_for
from tune_softmax.errors import (
    ClusterLostError,
    ExperimentError,
    ResultsError,
    SearchInterruptedError,
    command,
)
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import State
from tune_softmax.run import environment
from tune_softmax.scheduler.progress import Snapshot
from tune_softmax.studies import stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tune_softmax.cluster.connect import Cluster
    from tune_softmax.data.dataset import Dataset
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.scheduler.dispatcher import Job
    from tune_softmax.studies.stopping import Stop

__all__ = [
    "ResultsImport",
    "check_dataset",
    "check_unchanged",
    "logging_to",
    "prepared",
    "run",
    "write_description",
    "write_experiment",
]

_T = TypeVar("_T")

logger = logging.getLogger("tune_softmax")


@contextmanager
def prepared(
    experiment: Experiment,
    address: str | None,
    data_dir: Path | str | None,
    observe: Callable[[Snapshot], None],
) -> Iterator[tuple[Dataset, Cluster]]:
    """Load the dataset and import while Ray starts; check that the cluster can run a pack."""

    def tell(phase: str) -> None:
        observe(Snapshot(phase, experiment.search.num_trials, Counter()))

    with ExitStack() as stack:
        tell("loading the dataset")
        loading = _in_background(
            partial(load_for, experiment.dataset, Path(data_dir) if data_dir else None)
        )
        from tune_softmax.cluster.connect import connect  # Ray, while images are inflated

        connecting = stack.enter_context(connect(address, experiment.resources))
        # Ray Tune, Optuna, SQLAlchemy.
        for slow in ("cluster.driver", "scheduler.study", "run.ledger"):
            importlib.import_module(f"tune_softmax.{slow}")
        dataset = loading.result()
        _check_batch_size(experiment, len(dataset.train))
        tell(f"joining the cluster at {address}" if address else "starting Ray on this machine")
        cluster = connecting.result()
        stopping.put_back()  # Ray has put handlers of its own before ours
        cluster.num_packs(experiment.resources)
        tell("starting workers")
        yield dataset, cluster


def _in_background(function: Callable[[], _T]) -> Future[_T]:
    """Call a function in a thread that a stop does not wait for, however long it downloads."""
    future: Future[_T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _check_batch_size(experiment: Experiment, num_images: int) -> None:
    largest = experiment.space.largest("batch_size")
    if largest > num_images:
        raise ExperimentError(
            f"{experiment.name}: space.batch_size: at most the {num_images:,} training images of "
            f"{experiment.dataset.name}, got up to {largest:,}; lower it, or hold out less"
        )


def write_description(folder: RunFolder, experiment: Experiment, dataset: Dataset) -> None:
    """Write what a run is made of: the experiment, and where and with what it runs."""
    write_experiment(folder, experiment)
    description = {
        "command": sys.argv,
        **environment.describe(),
        "seed": experiment.search.seed,
        "split_seed": experiment.dataset.split_seed,
        "dataset": dataset.name,
        "dataset_checksum": dataset.checksum,
    }
    files.write_atomically(folder.environment, json.dumps(description, indent=2) + "\n")


def write_experiment(folder: RunFolder, experiment: Experiment) -> None:
    """Write the experiment, or write it anew; whatever happens, the file is whole."""
    files.write_atomically(folder.experiment, experiment.to_yaml())


def check_unchanged(folder: RunFolder, meta: Mapping[str, str], now: Experiment) -> None:
    """Refuse a run whose experiment file no longer says what the run was made with.

    Where it runs may change, and a resume that was cut off may have left more trials or time.
    """
    if "experiment" not in meta:  # release 0.1.0 did not record it
        return
    made = experiments.parse(meta["experiment"], str(folder.experiment)).model_dump(mode="json")
    differences = [
        f"{section}.{key} was {made[section][key]!r} and is {value!r}"
        for section in ("dataset", "model", "space", "search")
        for key, value in now.model_dump(mode="json")[section].items()
        if value != made[section][key] and key not in {"num_trials", "time_budget_s", "path"}
    ]
    if differences:
        raise ResultsError(
            f"{folder.experiment}: the run was made with another experiment: "
            f"{'; '.join(differences)}; put it back, or begin a new search"
        )


def check_dataset(folder: RunFolder, recorded: str, dataset: Dataset) -> None:
    """Refuse to go on with a run on other images than it began with."""
    if dataset.checksum != recorded:
        raise ResultsError(
            f"{folder.path}: the run was made with data of checksum {recorded[:12]}, but the "
            f"dataset there now has {dataset.checksum[:12]}; give the same data by --data-dir"
        )


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write our log to a file for as long as the context lasts."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk again
            handler.close()


class _LogFile(logging.FileHandler):
    """A log that leaves a full disk to the ledger, which stops the run with one message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing of a line that cannot be written."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class ResultsImport:
    """Imports what results need, pandas above all, where nobody waits for it.

    That is when a place has nothing left to train, or at the latest while Ray shuts down.
    """

    def __init__(self) -> None:
        self._has_begun = False

    def begin(self) -> None:
        """Import in the background, unless that has begun."""
        if not self._has_begun:
            self._has_begun = True
            reading = ("tune_softmax.run.results",)
            threading.Thread(target=importlib.import_module, args=reading, daemon=True).start()

    def with_last_pack(self, observe: Callable[[Snapshot], None]) -> Callable[[Snapshot], None]:
        """Return an observer that begins once the last pack trains alone, and tells `observe`."""

        def look(snapshot: Snapshot) -> None:
            observe(snapshot)
            num_left = snapshot.num_trials - snapshot.num_done
            if snapshot.num_packs == 1 and snapshot.states[State.RUNNING] == num_left:
                self.begin()

        return look


def run(
    folder: RunFolder, job: Job, cluster: Cluster, stop: Stop, time_budget_s: float | None = None
) -> None:
    """Train what is left of an agenda, and record how it ended.

    Args:
        folder: The run's folder.
        job: What to train; its `should_stop` is `stop.is_due`.
        cluster: Where it runs.
        stop: Who says when to stop.
        time_budget_s: Seconds for all of the run, those of earlier attempts included.

    Raises:
        SearchInterruptedError: A signal stopped it; it can be resumed.
        ClusterLostError: Ray ended before it was done; it can be resumed.
    """
    from tune_softmax.cluster.driver import drive

    started = time.monotonic()
    if time_budget_s is not None:
        ended = [detail for _, kind, detail in job.ledger.events() if kind == "ended"]
        stop.deadline = started + time_budget_s - sum(d.get("seconds", 0) for d in ended)
    results = ResultsImport()
    with stop.gently(folder.path):
        outcome = drive(replace(job, observe=results.with_last_pack(job.observe)), cluster)
    results.begin()
    is_done = outcome.num_done == outcome.num_trials
    if outcome.was_stopped:
        reason = f"stopped by {stop.signal.name if stop.signal else 'the time budget'}"
    else:
        reason = "finished" if is_done else "lost the cluster"
    job.ledger.event("ended", reason=reason, seconds=round(time.monotonic() - started, 3))
    logger.info("%s: %d of %d trials done", reason, outcome.num_done, outcome.num_trials)
    if stop.signal is not None:
        raise SearchInterruptedError(
            stop.signal, folder.path, outcome.num_done, outcome.num_trials
        )
    if not (is_done or outcome.was_stopped):
        raise ClusterLostError(
            f"{folder.path}: Ray ended after {outcome.num_done} of {outcome.num_trials} trials; "
            f"nothing done is lost, go on with `{command('resume', folder.path)}`"
        )
