"""A run folder: the names of its files, who may write it, and its results as dataframes.

Nothing in a run folder is ever unpickled, so that one may come from a stranger.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pandas as pd

from tune_softmax import experiment as experiments
from tune_softmax.config import HYPERPARAMETERS
from tune_softmax.errors import (
    DamagedRunError,
    ExperimentError,
    ResultsError,
    RunInUseError,
    StorageError,
)
from tune_softmax.ledger import Ledger
from tune_softmax.metrics import CURVES, State
from tune_softmax.postgresql import ServerLocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment import Experiment
    from tune_softmax.ledger import TrialRecord
    from tune_softmax.metrics import EpochMetrics

__all__ = ["SEARCH", "Best", "BestFolder", "Results", "RunFolder", "free_folder", "load"]

SEARCH = "search"
"""The kind of a run whose ledger names no other."""


@dataclass(frozen=True, slots=True)
class BestFolder:
    """The folder of a search's confirmed winner; the only place that knows its files' names."""

    path: Path

    @property
    def configuration(self) -> Path:
        """Which trial it is, its hyperparameters, and what its model takes and gives."""
        return self.path / "configuration.json"

    @property
    def weights(self) -> Path:
        """The model's weights."""
        return self.path / "weights.safetensors"

    @property
    def confusion(self) -> Path:
        """The confusion matrix as a picture."""
        return self.path / "confusion.png"

    @property
    def evaluation(self) -> Path:
        """What it does on the test set; written last, so that where it is all of them are."""
        return self.path / "evaluation.json"

    def remove(self) -> None:
        """Remove the evaluation, if there is one: the winner is no longer known."""
        self.evaluation.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder; the only place that knows the names of its files."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment, every default written out."""
        return self.path / "experiment.yaml"

    @property
    def ledger(self) -> Path | ServerLocation:
        """The ledger: trials, epochs, events; a file here, or where a file here says.

        Raises:
            DamagedRunError: That file names no ledger.
        """
        try:
            text = self._ledger_url.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return self.path / "run.db"
        except (OSError, ValueError) as error:
            raise DamagedRunError(f"{self._ledger_url}: cannot be read ({error})") from error
        try:
            return ServerLocation.parse(text.strip())
        except ResultsError as error:
            raise DamagedRunError(f"{self._ledger_url}: {error}") from error

    @property
    def _ledger_url(self) -> Path:
        return self.path / "ledger.url"

    def place_ledger(self, location: ServerLocation) -> None:
        """Note that a new run's ledger is in a PostgreSQL database, before it is made there.

        Raises:
            StorageError: The folder cannot be written.
        """
        try:
            self._ledger_url.write_text(f"{location}\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write there ({error})") from error

    @property
    def environment(self) -> Path:
        """Versions, hardware, seeds, checksums, command."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What happened, in order."""
        return self.path / "log.txt"

    @property
    def kind(self) -> str:
        """What the run is: a search, or what its ledger says instead.

        Raises:
            ResultsError: There is no run.
            DamagedRunError: Its ledger cannot be read.
        """
        with closing(Ledger.open(self.ledger)) as ledger:
            return ledger.meta().get("kind", SEARCH)

    @property
    def confirm(self) -> RunFolder:
        """The confirmation of a search's best trials, a run of its own."""
        return RunFolder(self.path / "confirm")

    @property
    def best(self) -> BestFolder:
        """The confirmed winner."""
        return BestFolder(self.path / "best")

    @property
    def _lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def _writer(self) -> Path:
        return self.path / "writer.json"

    def check_free(self) -> None:
        """Refuse a folder that holds something, or that cannot be made or written to.

        Raises:
            ResultsError: There is something in it already.
            StorageError: It is no folder, or cannot become one.
        """
        places = (self.path, *self.path.absolute().parents)
        there = next(path for path in places if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            reason = "cannot be written to" if there.is_dir() else "is not a folder"
            raise StorageError(f"{self.path}: {there} {reason}; choose another --run-dir")
        if there == self.path and any(there.iterdir()):
            raise ResultsError(
                f"{self.path}: the folder is not empty; go on with `tune-softmax resume "
                f"{self.path}` if it is a run, or choose another --run-dir"
            )

    def create(self) -> None:
        """Make the folder.

        Raises:
            ResultsError: There is something in it already.
            StorageError: It cannot be made.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot make the run folder ({error}); choose another --run-dir"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run's lock, for one process may write it at a time.

        Raises:
            RunInUseError: Another process holds it; the message says which, where, since when.
            StorageError: The folder cannot be written.
        """
        lock = filelock.FileLock(self._lock, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise RunInUseError(
                f"{self.path}: {self._describe_writer()} writes this run; wait until it ends or "
                "stop it first"
            ) from error
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write there ({error})") from error
        try:
            writer = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            self._note_writer(json.dumps(writer))
            yield
        finally:
            with suppress(OSError):  # it only names the writer; the lock decides
                self._writer.unlink()
            lock.release()

    def _note_writer(self, text: str) -> None:
        try:
            self._writer.write_text(text)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write there ({error})") from error

    def record_test_opening(self, **detail: object) -> None:
        """Record in the ledger that the test set is about to be looked at, and for what.

        Raises:
            RunInUseError: Another process writes the run.
            StorageError: The ledger cannot be written.
        """
        with self.writing(), closing(Ledger.open(self.ledger, writable=True)) as ledger:
            ledger.event("test_opened", **detail)

    def _describe_writer(self) -> str:
        try:
            writer = json.loads(self._writer.read_text())
            return f"process {writer['process']} on {writer['host']} (since {writer['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def free_folder(name: str) -> Path:
    """Return the first of runs/NAME, runs/NAME-2, and so on that holds nothing yet."""
    names = (name if copy == 1 else f"{name}-{copy}" for copy in itertools.count(1))
    folders = (Path("runs") / candidate for candidate in names)
    return next(
        folder
        for folder in folders
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    )


@dataclass(frozen=True, slots=True)
class Best:
    """A search's best trial.

    Attributes:
        number: The trial's number.
        metric: By which it is the best.
        value: The metric after the trial's last epoch.
        epoch: The epoch that the value is of, the trial's last.
        config: Its hyperparameters.
    """

    number: int
    metric: str
    value: float
    epoch: int
    config: Config


@dataclass(frozen=True, slots=True)
class Results:
    """What a run has found so far.

    Attributes:
        folder: Where the run is.
        experiment: What was asked.
        trials: One row a trial, failed and stopped ones too: `number`, `state`, each
            hyperparameter under its own name, `last_` and `best_` validation loss and accuracy,
            `last_` training loss and accuracy, `epochs_trained`, `best_epoch` by the
            experiment's metric, `rung`, `pack`, `attempts`, `seconds` (its share of the packs'
            wall clock), `error`.
        epochs: One row a trial and epoch: `trial`, `epoch`, the four curves, `seconds`.
    """

    folder: RunFolder
    experiment: Experiment
    trials: pd.DataFrame
    epochs: pd.DataFrame

    def best(self) -> Best:
        """Return the best trial by the experiment's metric after its last epoch.

        Trials that ran all their epochs come first; a stopped one counts only where there is no
        other, because its configuration asked for more epochs than its value had.

        Raises:
            ResultsError: No trial has a value yet.
        """
        metric = self.experiment.search.metric
        for state in (State.COMPLETE, State.PRUNED, State.RUNNING, State.WAITING):
            rows = self.ranked(self.trials[self.trials["state"] == state])
            if len(rows):
                row = rows.iloc[0]
                number = int(row["number"])
                return Best(
                    number=number,
                    metric=metric,
                    value=float(row[f"last_{metric}"]),
                    epoch=int(row["epochs_trained"]),
                    config=self.config(number),
                )
        raise ResultsError(f"{self.folder.path}: no trial has a result yet")

    def config(self, number: int) -> Config:
        """Return a trial's hyperparameters.

        Args:
            number: The trial's number.

        Raises:
            ResultsError: There is no such trial.
        """
        rows = self.trials[self.trials["number"] == number]
        if rows.empty:
            known = f"only 0 to {len(self.trials) - 1}" if len(self.trials) else "nor any other"
            raise ResultsError(f"{self.folder.path}: there is no trial {number}, {known}")
        values = {name: _plain(rows[name].iloc[0]) for name in HYPERPARAMETERS}
        return self.experiment.space.config(
            {name: values[name] for name in self.experiment.space.searched}
        )

    def ranked(self, trials: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return trials that have a value, the best first."""
        rows = self.trials if trials is None else trials
        column = f"last_{self.experiment.search.metric}"
        ascending = self.experiment.search.mode == "min"
        valued = rows.dropna(subset=[column])
        return valued.sort_values([column, "number"], ascending=[ascending, True])

    def count(self, *states: State) -> int:
        """Return how many trials are in any of the given states."""
        return int(self.trials["state"].isin(states).sum())


def load(run: Path | str) -> Results:
    """Read a run, finished or not, from its folder.

    Args:
        run: The run folder.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Its files contradict themselves.
    """
    folder = RunFolder(Path(run))
    ledger = Ledger.open(folder.ledger)
    try:
        experiment = experiments.load(folder.experiment)
        with ledger.snapshot():
            trials, epochs = ledger.trials(), ledger.epochs()
    except ExperimentError as error:
        raise DamagedRunError(f"{error}; restore the folder from a copy") from error
    finally:
        ledger.close()
    epoch_frame = _epoch_frame(epochs)
    try:
        trial_frame = _trial_frame(trials, epoch_frame, experiment)
    except (ValueError, TypeError) as error:
        raise DamagedRunError(
            f"{folder.ledger}: table trials holds a value of the wrong type ({error}); restore "
            "the folder from a copy"
        ) from error
    return Results(folder, experiment, trial_frame, epoch_frame)


def _epoch_frame(epochs: Sequence[tuple[int, int, EpochMetrics]]) -> pd.DataFrame:
    rows = [{"trial": number, "epoch": epoch, **asdict(m)} for number, epoch, m in epochs]
    frame = pd.DataFrame(rows, columns=["trial", "epoch", *CURVES, "seconds"])
    types = dict.fromkeys(["trial", "epoch"], "int64")
    return frame.astype(types | dict.fromkeys([*CURVES, "seconds"], "float64"))


def _trial_frame(
    trials: Sequence[TrialRecord], epochs: pd.DataFrame, experiment: Experiment
) -> pd.DataFrame:
    columns = ["number", "state", *HYPERPARAMETERS, "rung", "pack", "attempts", "error"]
    rows = [
        {**asdict(trial.config), **{n: getattr(trial, n) for n in columns if hasattr(trial, n)}}
        for trial in trials
    ]
    frame = pd.DataFrame(rows, columns=columns)
    by_trial = epochs.groupby("trial")
    measured = by_trial[list(CURVES)].last(skipna=False).add_prefix("last_")
    measured["best_validation_loss"] = by_trial["validation_loss"].min()
    measured["best_validation_accuracy"] = by_trial["validation_accuracy"].max()
    measured["epochs_trained"] = by_trial.size()
    metric = epochs.dropna(subset=[experiment.search.metric]).groupby("trial")
    values = metric[experiment.search.metric]
    rows_of_best = values.idxmin() if experiment.search.mode == "min" else values.idxmax()
    measured["best_epoch"] = epochs["epoch"].loc[rows_of_best].set_axis(rows_of_best.index)
    measured["seconds"] = by_trial["seconds"].sum()
    frame = frame.join(measured, on="number")
    order = [
        *("number", "state", *HYPERPARAMETERS),
        *(f"{which}_{curve}" for curve in CURVES[2:] for which in ("last", "best")),
        *(f"last_{curve}" for curve in CURVES[:2]),
        *("epochs_trained", "best_epoch", "rung", "pack", "attempts", "seconds", "error"),
    ]
    frame["epochs_trained"] = frame["epochs_trained"].fillna(0)
    frame["seconds"] = frame["seconds"].fillna(0.0)
    types = dict.fromkeys(order, "float64")
    types |= dict.fromkeys(["state", "learning_rate_schedule", "error"], "str")
    types |= dict.fromkeys(["best_epoch", "rung"], "Int64")
    integers = ["number", "batch_size", "num_epochs", "hidden_units"]
    types |= dict.fromkeys([*integers, "epochs_trained", "pack", "attempts"], "int64")
    return frame[order].astype(types)


def _plain(value: object) -> object:
    """Return a numpy scalar as Python's own number."""
    return value.item() if hasattr(value, "item") else value
