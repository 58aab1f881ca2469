"""`search` and `resume`: from an experiment to a run folder with its results.

Ray takes seconds to start. What it does not need, such as pandas and SQLAlchemy, is imported
meanwhile.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tune_softmax.errors import ResultsError, command
from tune_softmax.experiment import as_experiment
from tune_softmax.export.background import NO_TASKS, BackgroundTasks
from tune_softmax.run.folder import SEARCH, RunFolder, free_folder
from tune_softmax.scheduler.warm_start import Past, from_json, to_json, warmed
from tune_softmax.studies import session, stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tune_softmax.cluster.connect import Cluster
    from tune_softmax.data.dataset import Dataset
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.ledger import Ledger
    from tune_softmax.run.postgresql import ServerLocation
    from tune_softmax.run.results import Results
    from tune_softmax.scheduler.dispatcher import Job
    from tune_softmax.scheduler.progress import Snapshot
    from tune_softmax.studies.stopping import Stop

__all__ = ["resume", "search"]


def search(
    experiment: Experiment | Mapping[str, object] | Path | str,
    *,
    run_dir: Path | str | None = None,
    address: str | None = None,
    data_dir: Path | str | None = None,
    ledger_url: str | None = None,
    warm_start: Path | str | None = None,
    background: BackgroundTasks = NO_TASKS,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Results:
    """Search an experiment's space and return what was found.

    Args:
        experiment: What to search: an experiment, the path of an experiment file, or a mapping
            with the keys of one.
        run_dir: The run folder to make; by default the first free one of runs/NAME,
            runs/NAME-2, and so on.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are; see `data.load_dataset`.
        ledger_url: A PostgreSQL database to keep the ledger in; by default it is a SQLite file in
            the run folder.
        warm_start: The folder of another run, whose best trials are tried first and, where the
            spaces agree, whose history the sampler learns from.
        background: What to do meanwhile: copies, an Optuna study.
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
    experiment = as_experiment(experiment)
    experiment.check_searchable()
    history: list[Past] = []
    if warm_start is not None:
        experiment, history = warmed(experiment, _results(warm_start))
    folder = RunFolder(Path(run_dir) if run_dir else free_folder(experiment.name))
    folder.check_free()
    server = None if ledger_url is None else _reachable(ledger_url, folder)
    with (
        stopping.interruptible() as stop,
        session.prepared(experiment, address, data_dir, observe) as (dataset, cluster),
    ):
        folder.create()
        with folder.writing(), session.logging_to(folder.log):
            if server is not None:
                folder.place_ledger(server)
            meta = {
                "dataset_checksum": dataset.checksum,
                "experiment": experiment.to_yaml(),
                "history": to_json(history),
            }
            # Before the ledger: a run that has one must have what a resume reads.
            session.write_description(folder, experiment, dataset)
            from tune_softmax.run.ledger import Ledger

            ledger = Ledger.create(folder.ledger, meta)
            with closing(ledger), background.running(folder):
                job = _job(experiment, history, ledger, dataset, cluster, stop, observe)
                session.run(folder, job, cluster, stop, experiment.search.time_budget_s)
    return _results(folder.path)


def resume(
    run: Path | str,
    *,
    address: str | None = None,
    data_dir: Path | str | None = None,
    num_trials: int | None = None,
    time_budget_s: float | None = None,
    background: BackgroundTasks = NO_TASKS,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Results:
    """Run the trials that a search has left, or more than it was asked for.

    Complete, stopped and failed trials stay as they are. The others run again under their own
    numbers; then the sampler goes on as an uninterrupted search would.

    Args:
        run: The run folder.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are.
        num_trials: More trials than the search had.
        time_budget_s: More seconds than the search had, all told.
        background: What to do meanwhile: copies, an Optuna study.
        observe: Called with every change, to display it.

    Returns:
        The run's results.

    Raises:
        ResultsError: There is no run, it is no search, it is in use, or its dataset or
            experiment has changed.
    """
    folder = RunFolder(Path(run))
    if folder.kind != SEARCH:
        raise ResultsError(
            f"{folder.path}: is no search but of the kind {folder.kind}; "
            f"`{command('resume', folder.path)}` knows how to go on with it"
        )
    recorded = folder.read_experiment()
    experiment = _extended(folder, recorded, num_trials, time_budget_s)
    if not _num_left(folder, experiment):
        return _results(folder.path)
    from tune_softmax.run.ledger import Ledger

    with (
        folder.writing(),
        session.logging_to(folder.log),
        stopping.interruptible() as stop,
        closing(Ledger.open(folder.ledger, writable=True)) as ledger,
    ):
        meta = ledger.meta()
        session.check_unchanged(folder, meta, recorded)
        with session.prepared(experiment, address, data_dir, observe) as (dataset, cluster):
            session.check_dataset(folder, meta["dataset_checksum"], dataset)
            if meta.get("experiment") != experiment.to_yaml():
                changed = {"num_trials": experiment.search.num_trials}
                ledger.set_meta({"experiment": experiment.to_yaml()}, "extended", **changed)
                session.write_experiment(folder, experiment)
            history = from_json(meta.get("history", "[]"))
            with background.running(folder):
                job = _job(experiment, history, ledger, dataset, cluster, stop, observe)
                session.run(folder, job, cluster, stop, experiment.search.time_budget_s)
    return _results(folder.path)


def _results(run: Path | str) -> Results:
    from tune_softmax.run import results

    return results.load(run)


def _reachable(ledger_url: str, folder: RunFolder) -> ServerLocation:
    from tune_softmax.run.ledger import Ledger
    from tune_softmax.run.postgresql import ServerLocation

    server = ServerLocation.choose(ledger_url, folder.path.name)
    Ledger.check_reachable(server)
    return server


def _num_left(folder: RunFolder, experiment: Experiment) -> int:
    from tune_softmax.run.ledger import Ledger

    with closing(Ledger.open(folder.ledger)) as ledger:
        ledger.epochs()  # so that a damaged run is refused before anything is written beside it
        done = sum(trial.state.is_final for trial in ledger.trials())
    return experiment.num_trials - done


def _extended(
    folder: RunFolder, recorded: Experiment, num_trials: int | None, time_budget_s: float | None
) -> Experiment:
    """Return the run's experiment with more trials or more time.

    Raises:
        ResultsError: It asks for less than there was.
    """
    search = recorded.search
    in_all = recorded.num_trials
    if in_all < search.num_trials and num_trials not in {None, search.num_trials}:
        raise ResultsError(
            f"{folder.path}: --num-trials {num_trials}: the run has {in_all} trials, for its grid "
            f"has {recorded.space.grid_size} configurations; nothing can be added, leave it out"
        )
    given = {"num_trials": num_trials, "time_budget_s": time_budget_s}
    for name, value in given.items():
        before = getattr(search, name)
        if value is not None and before is not None and value < before:
            raise ResultsError(
                f"{folder.path}: --{name.replace('_', '-')} {value:g}: a run can be extended, not "
                f"cut short, and it has {before:g}; give more, or leave it out"
            )
    changes = {name: value for name, value in given.items() if value is not None}
    search = search.model_copy(update=changes)
    return recorded.model_copy(update={"search": search})


def _job(  # noqa: PLR0917 - each is what it says
    experiment: Experiment,
    history: list[Past],
    ledger: Ledger,
    dataset: Dataset,
    cluster: Cluster,
    stop: Stop,
    observe: Callable[[Snapshot], None],
) -> Job:
    from tune_softmax.scheduler.dispatcher import Job
    from tune_softmax.scheduler.study import Study

    return Job(
        experiment=experiment,
        agenda=Study(experiment.space, experiment.search, history),
        ledger=ledger,
        dataset=dataset,
        num_places=cluster.num_packs(experiment.resources),
        should_stop=lambda: stop.is_due,
        observe=observe,
        asha=experiment.search.asha,
        is_deterministic=experiment.search.deterministic,
    )
