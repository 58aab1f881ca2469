"""A run as an Optuna study in a SQLite file, for optuna-dashboard and Optuna's own analyses.

The ledger stays the truth: the study is made from it and never read back. Writing a trial again
changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import optuna
import sqlalchemy as sa

from tune_softmax import files
from tune_softmax.errors import ResultsError, StorageError
from tune_softmax.export.optuna_rows import STUDY_ID, TABLES, RunContents, rows_of_trial
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.study import distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.run.records import TrialRecord

__all__ = ["StudyFile", "default_path", "export", "path_of", "url_of"]

SCHEMA = "v3.2.0.a"
OWNER = "tune_softmax_run"  # the study's attribute that says from which run it was made


def default_path(folder: RunFolder) -> Path:
    """Return the file of a run's study, where no other is named."""
    return folder.path / "optuna.db"


def url_of(path: Path) -> str:
    """Return how Optuna names a study's file.

    Raises:
        ResultsError: No URL names it, because its path is not UTF-8.
    """
    if _as_utf8(str(path)) != str(path):
        raise ResultsError(
            f"{path}: Optuna cannot open a study there, for the path is not UTF-8; name another "
            "file: --output FILE"
        )
    url = sa.URL.create("sqlite", database=str(path)).render_as_string()
    if sa.make_url(url).database == str(path):
        return url
    # SQLAlchemy below 2.1 encodes and decodes nothing, but hands on what SQLite decodes itself.
    return f"sqlite:///file:{quote(str(path))}?uri=true"


def _as_utf8(text: str) -> str:
    """Return a path's text with bytes that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def path_of(output: str) -> Path:
    """Return the file that a user names, as a path or as sqlite:///FILE.

    Raises:
        ResultsError: It is another URL, for a study is one file.
    """
    if "://" not in output:
        return Path(output)
    try:
        url = sa.make_url(output)
    except (sa.exc.ArgumentError, ValueError):
        url = sa.URL.create("")
    if url.drivername != "sqlite" or not url.database or url.host:
        raise ResultsError(
            f"--output {output}: must be a file or sqlite:///FILE, for a study is one file"
        )
    return Path(url.database)


def export(folder: RunFolder, path: Path) -> int:
    """Write a run as an Optuna study.

    Args:
        folder: The run, finished or not.
        path: The SQLite file; an earlier export there is replaced, whole.

    Returns:
        How many trials there are.

    Raises:
        ResultsError: There is no run, or a file at the path that is no export.
        StorageError: The file cannot be written.
    """
    if path.exists() and _owner(path) is None:
        raise ResultsError(f"{path}: there is a file already, and no export; name another")
    run = _read(folder)
    _make(folder, run, path)
    return len(run.trials)


class StudyFile:
    """A run's study in a file, to be brought up to date again and again.

    Args:
        folder: The run.
        path: Where the study of this run is, or is made; any other file there is replaced.
    """

    def __init__(self, folder: RunFolder, path: Path) -> None:
        self._folder = folder
        self._path = path
        self._rows: _Rows | None = None

    def update(self) -> bool:
        """Write what is new in the run, in one transaction.

        Returns:
            Whether there is a study; there is none before the run has begun.

        Raises:
            ResultsError: The run cannot be read.
            StorageError: The file cannot be written.
        """
        run = _read(self._folder)
        if not run.has_begun:
            return False
        if self._rows is None:
            if _owner(self._path) != run.owner:
                _make(self._folder, run, self._path)
            self._rows = _Rows(self._path)
        with _translating(self._path):
            self._rows.write(run)
        return True


# --- A run --------------------------------------------------------------------------------------


def _read(folder: RunFolder) -> RunContents:
    with closing(Ledger.open(folder.ledger)) as ledger, ledger.snapshot():
        trials, epochs, events = ledger.trials(), ledger.epochs(), ledger.events()
    by_trial: dict[int, list[tuple[int, EpochMetrics]]] = {trial.number: [] for trial in trials}
    for number, epoch, metrics in epochs:
        by_trial[number].append((epoch, metrics))
    first = datetime.fromisoformat(events[0][0]) if events else datetime.fromtimestamp(0, UTC)
    return RunContents(
        experiment=folder.read_experiment(),
        has_begun=bool(events),
        started=first.astimezone(UTC).replace(tzinfo=None),  # as Optuna keeps times
        trials=trials,
        epochs=by_trial,
    )


# --- A study's file -----------------------------------------------------------------------------


def _owner(path: Path) -> str | None:
    """Return from which run a study was made; None if the file is no export."""
    statement = "SELECT value_json FROM study_user_attributes WHERE study_id = ? AND key = ?"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            (value,) = file.execute(statement, (STUDY_ID, OWNER)).fetchone() or ("null",)
            return str(json.loads(value)) if value != "null" else None
    except (sqlite3.Error, ValueError):
        return None


def _make(folder: RunFolder, run: RunContents, path: Path) -> None:
    url_of(path)  # what no URL names would be of no use
    with _translating(path), files.replacing(path) as draft:
        _make_empty(folder, run, draft)
        _Rows(draft).write(run)


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    """Turn what the file system, SQLite, SQLAlchemy and Optuna complain of into our error."""
    try:
        yield
    except (
        OSError,
        sqlite3.Error,
        sa.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
    ) as error:
        reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise StorageError(f"{path}: cannot be written ({reason})") from error


def _make_empty(folder: RunFolder, run: RunContents, path: Path) -> None:
    """Let Optuna make its tables and a study without trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=_engine_options(path))
    if storage.get_current_version() != SCHEMA:
        raise ResultsError(
            f"Optuna {optuna.__version__} keeps studies in schema "
            f"{storage.get_current_version()}, this tune_softmax writes {SCHEMA}; install a "
            "version of Optuna that has it"
        )
    search = run.experiment.search
    study = optuna.create_study(
        study_name=_as_utf8(folder.path.absolute().name),
        storage=storage,
        direction="minimize" if search.mode == "min" else "maximize",
    )
    study.set_user_attr(OWNER, run.owner)
    study.set_user_attr("experiment", run.experiment.name)
    study.set_user_attr("dataset", run.experiment.dataset.name)
    study.set_user_attr("constants", run.experiment.space.constants)
    # As Study.set_metric_names does, without its warning that it is new.
    storage.set_study_system_attr(STUDY_ID, "study:metric_names", [search.metric])
    storage.remove_session()


def _engine_options(path: Path) -> dict[str, Any]:
    """Return options for a SQLite engine; a URL would not take every path."""

    def connect() -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        connection.execute("PRAGMA synchronous=OFF")  # what is lost can be made again
        return connection

    return {"creator": connect, "poolclass": sa.pool.NullPool}


class _Rows:
    """Writes a run's trials into the study of one file."""

    def __init__(self, path: Path) -> None:
        self._engine = sa.create_engine("sqlite://", **_engine_options(path))
        self._tables = sa.MetaData()
        self._tables.reflect(self._engine, only=TABLES)
        self._written: dict[int, tuple[TrialRecord, int]] = {}

    def write(self, run: RunContents) -> None:
        """Bring the study to where the run is, in one transaction."""
        distributions = {n: distribution(d) for n, d in run.experiment.space.searched.items()}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        now = {trial.number: (trial, len(run.epochs[trial.number])) for trial in run.trials}
        for number, (trial, _) in now.items():
            before, num_epochs = self._written.get(number, (None, 0))
            if now[number] == (before, num_epochs):
                continue
            is_same_attempt = before is not None and before.attempts == trial.attempts
            fresh = run.epochs[number][num_epochs if is_same_attempt else 0 :]
            for name, added in rows_of_trial(run, trial, fresh, distributions).items():
                rows[name] += added
        with self._engine.begin() as connection:
            if not self._written:  # whatever an earlier process left here
                for name in TABLES:
                    connection.execute(self._tables.tables[name].delete())
            for name, added in rows.items():
                if added:
                    # Each table has a unique key, so that a row that is there is replaced.
                    replace = self._tables.tables[name].insert().prefix_with("OR REPLACE")
                    connection.execute(replace, added)
        self._written = now
