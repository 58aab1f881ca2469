"""A run folder: the names of its files, and who may write it.

Nothing in a run folder is ever unpickled, so that one may come from a stranger.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from tune_softmax import files
from tune_softmax.errors import (
    DamagedRunError,
    ExperimentError,
    ResultsError,
    RunInUseError,
    StorageError,
    command,
)
from tune_softmax.experiment import experiment as experiments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.postgresql import ServerLocation

__all__ = ["SEARCH", "BestFolder", "RunFolder", "free_folder"]

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
            text = files.read_text(self._ledger_url)
        except (FileNotFoundError, NotADirectoryError):
            return self.path / "run.db"
        except (OSError, ValueError) as error:
            raise DamagedRunError(f"{self._ledger_url}: cannot be read ({error})") from error
        from tune_softmax.run.postgresql import ServerLocation

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
            files.write_atomically(self._ledger_url, f"{location}\n")
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
        from tune_softmax.run.ledger import Ledger

        with closing(Ledger.open(self.ledger)) as ledger:
            return ledger.meta().get("kind", SEARCH)

    def read_experiment(self) -> Experiment:
        """Return the experiment that the run was made with.

        Raises:
            DamagedRunError: Its file cannot be read, or says nothing that makes sense.
        """
        try:
            return experiments.load(self.experiment)
        except ExperimentError as error:
            raise DamagedRunError(f"{error}; restore the folder from a copy") from error

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
                f"{self.path}: the folder is not empty; go on with "
                f"`{command('resume', self.path)}` if it is a run, or choose another "
                "--run-dir"
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
            DamagedRunError: A link leads out of it, or its log is no file.
        """
        self._check_own_files()
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

    def _check_own_files(self) -> None:
        """Refuse what a run cannot or must not write to: the folder may come from a stranger."""
        written = (self.path / "run.db", self.log, self._lock, self.best.path, self.confirm.path)
        for path in written:
            if path.is_symlink():
                raise DamagedRunError(
                    f"{path}: must not be a link, for a run is written in its own folder alone; "
                    "put in its place what it leads to"
                )
        if self.log.exists() and not self.log.is_file():
            raise DamagedRunError(f"{self.log}: must be a file; remove what is there")

    def _note_writer(self, text: str) -> None:
        try:
            files.write_atomically(self._writer, text)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write there ({error})") from error

    def record_test_opening(self, **detail: object) -> None:
        """Record in the ledger that the test set is about to be looked at, and for what.

        Raises:
            RunInUseError: Another process writes the run.
            StorageError: The ledger cannot be written.
        """
        from tune_softmax.run.ledger import Ledger

        with self.writing(), closing(Ledger.open(self.ledger, writable=True)) as ledger:
            ledger.event("test_opened", **detail)

    def _describe_writer(self) -> str:
        try:
            writer = files.read_json(self._writer)
            if writer["host"] == socket.gethostname():
                os.kill(writer["process"], 0)  # raises OSError for one that was killed before
            return f"process {writer['process']} on {writer['host']} (since {writer['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def free_folder(name: str, parent: Path = Path("runs")) -> Path:
    """Return the first of PARENT/NAME, PARENT/NAME-2, and so on that holds nothing yet."""
    names = (name if copy == 1 else f"{name}-{copy}" for copy in itertools.count(1))
    folders = (parent / candidate for candidate in names)
    return next(
        folder
        for folder in folders
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    )
