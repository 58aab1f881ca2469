"""Search and resume: prepare a run folder, its dataset and its cluster, and drive the search."""

from __future__ import annotations

import importlib
import json
import logging
import signal
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tune_softmax import environment, results
from tune_softmax.cluster import connect
from tune_softmax.data import load_dataset
from tune_softmax.errors import (
    ClusterLostError,
    ExperimentError,
    ResultsError,
    SearchInterruptedError,
)
from tune_softmax.ledger import Ledger
from tune_softmax.metrics import State
from tune_softmax.progress import Snapshot
from tune_softmax.results import RunFolder, free_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune_softmax.cluster import Cluster
    from tune_softmax.data import Dataset
    from tune_softmax.experiment import Experiment
    from tune_softmax.results import Results

__all__ = ["resume", "search"]

logger = logging.getLogger("tune_softmax")


def search(
    experiment: Experiment,
    *,
    run_dir: Path | str | None = None,
    address: str | None = None,
    data_dir: Path | str | None = None,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Results:
    """Search an experiment's space and return what was found.

    Args:
        experiment: What to search; see `experiment.load`.
        run_dir: The run folder to make; by default the first free one of runs/NAME,
            runs/NAME-2, and so on.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are; see `data.load_dataset`.
        observe: Called with every change, to display it.

    Returns:
        The run's results. A time budget may have left trials for `resume`.

    Raises:
        ExperimentError: There is nothing to search.
        DataError: The dataset cannot be had.
        ClusterError: A request that no node can ever meet.
        ResultsError: The run folder is in use or cannot be written.
        SearchInterruptedError: A signal stopped the search; the run can be resumed.
    """
    experiment.check_searchable()
    folder = RunFolder(Path(run_dir) if run_dir else free_folder(experiment.name))
    folder.check_free()
    with _prepared(experiment, address, data_dir, observe) as (dataset, cluster):
        folder.create()
        with folder.writing(), _logging_to(folder.log):
            _write_description(folder, experiment, dataset)
            ledger = Ledger.create(folder.ledger, {"dataset_checksum": dataset.checksum})
            return _run(folder, ledger, dataset, cluster, experiment=experiment, observe=observe)


def resume(
    run: Path | str,
    *,
    address: str | None = None,
    data_dir: Path | str | None = None,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Results:
    """Run what is left of a search.

    Finished, stopped and failed trials stay as they are; the others run again under their own
    numbers, then the sampler goes on.

    Args:
        run: The run folder.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are.
        observe: Called with every change, to display it.

    Returns:
        The run's results.

    Raises:
        ResultsError: There is no run, it is in use, or its dataset has changed.
    """
    folder = RunFolder(Path(run))
    found = results.load(folder.path)
    if not _num_left(found):
        return found
    with (
        folder.writing(),
        _logging_to(folder.log),
        _prepared(found.experiment, address, data_dir, observe) as (dataset, cluster),
    ):
        ledger = Ledger.open(folder.ledger, writable=True)
        recorded = ledger.meta()["dataset_checksum"]
        if dataset.checksum != recorded:
            raise ResultsError(
                f"{folder.path}: the run was made with data of checksum {recorded[:12]}, but the "
                f"dataset there now has {dataset.checksum[:12]}; give the same data by --data-dir"
            )
        return _run(folder, ledger, dataset, cluster, experiment=found.experiment, observe=observe)


def _num_left(found: Results) -> int:
    done = found.count(State.COMPLETE, State.PRUNED, State.FAIL)
    return found.experiment.num_trials - done


@contextmanager
def _prepared(
    experiment: Experiment,
    address: str | None,
    data_dir: Path | str | None,
    observe: Callable[[Snapshot], None],
) -> Iterator[tuple[Dataset, Cluster]]:
    """Load the dataset while Ray starts, and check that the cluster can run a pack."""

    def tell(phase: str) -> None:
        observe(Snapshot(phase, experiment.search.num_trials, Counter()))

    options = experiment.dataset
    with connect(address) as connecting:
        tell("loading the dataset")
        dataset = load_dataset(
            options.name,
            path=options.path,
            validation=options.validation,
            train_fraction=options.train_fraction,
            split_seed=options.split_seed,
            data_dir=Path(data_dir) if data_dir else None,
        )
        _check_batch_size(experiment, len(dataset.train))
        importlib.import_module("tune_softmax.driver")  # Ray Tune and Optuna, seconds
        tell(f"joining the cluster at {address}" if address else "starting Ray on this machine")
        cluster = connecting.result()
        cluster.num_packs(experiment.resources)
        tell("starting workers")
        yield dataset, cluster


def _check_batch_size(experiment: Experiment, num_images: int) -> None:
    largest = experiment.space.largest("batch_size")
    if largest > num_images:
        raise ExperimentError(
            f"{experiment.name}: space.batch_size: at most the {num_images:,} training images of "
            f"{experiment.dataset.name}, got up to {largest:,}; lower it, or hold out less"
        )


def _write_description(folder: RunFolder, experiment: Experiment, dataset: Dataset) -> None:
    folder.experiment.write_text(experiment.to_yaml())
    description = {
        "command": sys.argv,
        **environment.describe(),
        "seed": experiment.search.seed,
        "split_seed": experiment.dataset.split_seed,
        "dataset": dataset.name,
        "dataset_checksum": dataset.checksum,
    }
    folder.environment.write_text(json.dumps(description, indent=2) + "\n")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Stop:
    """A request to stop: set by a signal or by the time budget, looked at between events."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.deadline: float | None = None

    @property
    def is_due(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.signal is not None


@contextmanager
def _interruptible(time_budget_s: float | None) -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second SIGINT ends at once."""
    stop = _Stop()
    stop.deadline = time.monotonic() + time_budget_s if time_budget_s else None

    def request(number: int, _frame: object) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(
    folder: RunFolder,
    ledger: Ledger,
    dataset: Dataset,
    cluster: Cluster,
    *,
    experiment: Experiment,
    observe: Callable[[Snapshot], None],
) -> Results:
    """Drive the search and say how it ended."""
    from tune_softmax.driver import Job, drive

    with closing(ledger), _interruptible(experiment.search.time_budget_s) as stop:
        job = Job(experiment, ledger, dataset, cluster, lambda: stop.is_due, observe)
        outcome = drive(job)
        reason = "finished"
        if outcome.was_stopped:
            reason = f"stopped by {stop.signal.name if stop.signal else 'the time budget'}"
        ledger.event("ended", reason=reason)
        logger.info("%s: %d of %d trials done", reason, outcome.num_done, outcome.num_trials)
    if stop.signal is not None:
        raise SearchInterruptedError(
            stop.signal, folder.path, outcome.num_done, outcome.num_trials
        )
    if outcome.num_done < outcome.num_trials and not outcome.was_stopped:
        raise ClusterLostError(
            f"{folder.path}: Ray ended after {outcome.num_done} of {outcome.num_trials} trials; "
            f"nothing done is lost, go on with `tune-softmax resume {folder.path}`"
        )
    return results.load(folder.path)
