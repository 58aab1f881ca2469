"""A ledger in one SQLite file: how it is opened and closed, what is lost, and what SQLite says.

While a process writes, new transactions are in SQLite's write-ahead log, the file `-wal`, and
their number is in a file of our own, `-commits` (see `commit_count`). A writer that closes leaves
one plain file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tune_softmax import files
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError, command
from tune_softmax.run.commit_count import CommitCount, DamagedCount
from tune_softmax.run.no_run import no_run_message
from tune_softmax.run.open_file import OpenFile
from tune_softmax.run.rescue import rescue

__all__ = ["SqliteFile"]

_LOCK_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# What SQLite says when the file is sound and the file system is in the way.
_STORAGE_CODES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
# The exceptions: the file ends too early, or the file system contradicts itself.
_DAMAGE_CODES = {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}
_SIDE_FILES = ("-wal", "-shm", "-journal", "-commits")
_ABANDONED: list[SqliteFile] = []  # kept open to the process's end, see `close`
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_WAL_MODE = 2  # in byte 18 of the header, https://www.sqlite.org/fileformat.html


class SqliteFile:
    """Where a SQLite ledger lies.

    Args:
        path: The file.
        writable: Whether this process will write; one at a time may.
        is_new: Whether to make it.

    Raises:
        ResultsError: There is no such file, or there is one already.
        DamagedRunError: What lies beside it is no file, or lies there alone.
        StorageError: What lies beside it cannot be read.
    """

    def __init__(self, path: Path, *, writable: bool, is_new: bool = False) -> None:
        self.name = str(path)
        self._path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._opened: OpenFile | None = None  # once writing begins
        self._displaced: str | None = None  # what to say of a file that is no longer there
        self._check_free() if is_new else self._check_there()
        self._count = CommitCount(self._beside("-commits"))
        # Read before the ledger, which may only be further on when its turn comes.
        try:
            self._known = self._count.read()
        except OSError as error:
            raise StorageError(
                f"{self._count.path}: cannot be read ({error.strerror}); give read access"
            ) from error
        mode = "mode=rwc" if is_new else "mode=rw" if writable else "mode=ro"
        self.engine = self._make_engine(mode, writable=writable)

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _check_free(self) -> None:
        for path in (self._path, *map(self._beside, _SIDE_FILES)):
            if path.exists():
                raise ResultsError(
                    f"{path}: there is a run already; resume it or choose another folder"
                )

    def _check_there(self) -> None:
        for path in map(self._beside, _SIDE_FILES):
            # SQLite would write through a link, and a link may lead out of the run's folder.
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise DamagedRunError(f"{path}: must be a file; restore the folder from a copy")
            if path.exists() and not self._path.exists():
                raise DamagedRunError(
                    f"{self._path}: is missing, though {path.name} is there; restore the folder "
                    "from a copy"
                )
        if not self._path.is_file():
            raise ResultsError(no_run_message(self._path.parent))
        if _names_super_journal(self._beside("-journal")):
            raise DamagedRunError(
                f"{self._beside('-journal')}: names another file, which SQLite would delete; "
                "restore the folder from a copy"
            )

    def _make_engine(self, mode: str, *, writable: bool) -> sa.Engine:
        path = self._path
        if not os.access(path.parent, os.W_OK):
            if not self._beside("-wal").exists():
                mode = "immutable=1"  # or SQLite would make a file beside it even to read
            elif not self._beside("-shm").exists():
                # SQLite would have to make one, too; and where there is none, nobody writes.
                path = self._copied()
        uri = f"{path.absolute().as_uri()}?{mode}"

        def connect() -> sqlite3.Connection:
            # Without Python's own way to begin transactions, which leaves CREATE TABLE out.
            connection = sqlite3.connect(
                uri, uri=True, check_same_thread=False, isolation_level=None
            )
            if writable:
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
            return connection

        engine = sa.create_engine(
            "sqlite://", creator=connect, poolclass=sa.pool.SingletonThreadPool
        )

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def _copied(self) -> Path:
        self._copy = tempfile.TemporaryDirectory(prefix="tune-softmax-")
        for path in (self._path, self._beside("-wal")):
            shutil.copy(path, self._copy.name)
        return Path(self._copy.name) / self._path.name

    # What is lost

    def check_made(self) -> None:
        """Check that the file is a database with something in it.

        Raises:
            ResultsError: Its writer has not come so far yet, or never came so far.
            DamagedRunError: It is no database, holds what no ledger does, or all that was in it is
                lost.
        """
        with self.engine.connect() as connection:
            kinds = connection.exec_driver_sql("SELECT type, name FROM sqlite_master").all()
            # A view or a computed column may have no end, and a trigger changes what is written.
            foreign = [f"{kind} {name!a}" for kind, name in kinds if kind in {"view", "trigger"}]
            columns = (
                "SELECT m.name, x.name FROM sqlite_master AS m, pragma_table_xinfo(m.name) AS x"
            )
            computed = connection.exec_driver_sql(f"{columns} WHERE x.hidden").all()
            foreign += [f"computed column {name!a}" for _, name in computed]
        if foreign:
            raise DamagedRunError(
                f"{self._path}: holds the {foreign[0]:.80}, which no ledger does; restore the "
                "folder from a copy"
            )
        if kinds:
            return
        if self._known == 0:
            raise ResultsError(
                f"{self._path}: the search has not begun to write; if none runs, one was killed "
                "before its first trial: remove the folder and search again"
            )
        raise DamagedRunError(f"{self._path}: is empty; restore the folder from a copy")

    def loss(self, found: int) -> tuple[int | None, str] | None:
        """Compare how many transactions the ledger holds with what is known beside it.

        Returns:
            How many are lost, None if that cannot be told, and what to say of it; or None where
            nothing is lost.
        """
        known = self._known
        if isinstance(known, DamagedCount) or (known is None and self._lacks_count()):
            state = "is missing" if known is None else "is damaged"
            return None, (
                f"{self._count.path}: {state}, so it cannot be told whether the end of "
                f"the ledger is lost; restore the folder from a copy, or {self._accept('go on')}"
            )
        if known is not None and found < known:
            return known - found, (
                f"{self._path}: holds {found} of {known} transactions, the last {known - found} "
                f"are lost with the end of {self._beside('-wal').name}; restore the folder from a "
                f"copy, or {self._accept('run their trials again')}"
            )
        return None

    def _accept(self, purpose: str) -> str:
        return f"{purpose} after `{command('check', self._path.parent, '--accept-loss')}`"

    def _lacks_count(self) -> bool:
        """Say whether the file needs a write-ahead log and nothing counts the transactions.

        Asked twice, because a writer may come or go in between.
        """
        for _attempt in range(2):
            with self._path.open("rb") as file:
                header = file.read(20)
            if header[18:19] != bytes([_WAL_MODE]) or self._count.path.exists():
                return False
        return True

    def begin_writing(self, commits: int) -> None:
        """Start the write-ahead log and the count of transactions beside it.

        Raises:
            StorageError: The folder cannot be written.
        """
        try:
            self._count.begin(commits)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._pragma("user_version") == "0":
            self._pragma(f"user_version={secrets.randbits(31) or 1}")  # see `OpenFile`
        self._pragma("journal_mode=WAL")
        self._opened = OpenFile(self._path)

    def check_in_place(self) -> None:
        """Check that what this process writes is still the file at its path.

        Raises:
            StorageError: It was deleted, moved or overwritten. The message says what is lost and
                how to go on; what was deleted is saved beside its folder first.
        """
        if self._displaced is None and self._opened is not None and not self._opened.is_in_place():
            self._displaced = self._describe_displaced(self._opened)
        if self._displaced is not None:
            raise StorageError(self._displaced)

    def _describe_displaced(self, opened: OpenFile) -> str:
        run = self._path.parent
        if opened.is_overwritten:
            return (
                f"{self._path}: was overwritten while this process wrote it, and what it held is "
                "lost; restore the folder from a copy, or search again into another one"
            )
        path, count_path = opened.present_path(), self._count.present_path()
        if path is not None and count_path is not None and path.parent == count_path.parent:
            return (
                f"{run}: was moved to {path.parent} while this process wrote it; what is done is "
                f"kept there, go on with `{command('resume', path.parent)}`"
            )
        what = "deleted" if path is None else "moved"
        try:
            with closing(self.engine.raw_connection()) as connection:
                driver: Any = connection.driver_connection
                saved = rescue(driver, run)
        except (StorageError, sa.exc.DBAPIError, sqlite3.Error) as error:
            return (
                f"{self._path}: was {what} while this process wrote it, and what it held is lost: "
                f"{error}; restore the folder from a copy, or search again"
            )
        return (
            f"{self._path}: was {what} while this process wrote it; what is done is saved in "
            f"{saved}, go on with `{command('resume', saved)}`"
        )

    def note_commit(self, commits: int) -> None:
        """Count a transaction that is on the disk, where it should be.

        Raises:
            StorageError: The folder cannot be written, or the file is no longer at its path.
        """
        self.check_in_place()
        try:
            self._count.set(commits)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file; a writer leaves one plain file that can be copied and read anywhere.

        Where another process reads at this moment, the write-ahead log and the count stay beside
        the file; they are whole together.
        """
        if self._opened is not None and (self._displaced or not self._opened.is_at_path()):
            # SQLite would write over, or remove by their names, what may be others' files.
            _ABANDONED.append(self)
            return
        if self._count.is_open:
            mode = None
            with suppress(sa.exc.DBAPIError, sqlite3.Error):
                mode = self._pragma("journal_mode=DELETE")
            self._count.close()
            if mode == "delete":
                self._count.path.unlink(missing_ok=True)
        self.engine.dispose()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self._copy is not None:
            self._copy.cleanup()

    def _pragma(self, statement: str) -> str:
        """Give SQLite a command; return what it answers, empty where that is nothing."""
        with (
            closing(self.engine.raw_connection()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute(f"PRAGMA {statement}")
            return "".join(str(answer) for (answer,) in cursor.fetchall())

    def _unwritable(self, error: OSError) -> StorageError:
        reason = f"{self._path.parent}: cannot write there ({error})"
        return StorageError(f"{reason}; make room or give write access, then resume the run")

    # Checks, errors

    def faults(self, connection: sa.Connection) -> list[str]:
        """Return what SQLite's own checks find wrong with the file.

        Args:
            connection: Within a transaction.
        """
        wrong = []
        try:
            for (text,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                if text != "ok":
                    wrong += [
                        f"{self._path.name}: SQLite's integrity check: {line}"
                        for line in text.splitlines()
                    ]
            for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                wrong.append(f"table {table}, row {row}: belongs to no row of table {parent}")
        except sa.exc.DatabaseError as error:
            wrong.append(f"{self._path.name}: SQLite's integrity check: {error.orig}")
        return wrong

    def translated(self, error: Exception) -> ResultsError:
        """Return our error for one of SQLite's, or for its words that cannot be read."""
        try:
            self.check_in_place()
        except StorageError as displaced:
            return displaced
        if _is_undecodable(error):  # the message would hold the row's bytes
            return DamagedRunError(
                f"{self._path}: a row is damaged, its text cannot be decoded; restore the folder "
                "from a copy"
            )
        error = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        # The low byte of an extended code is the plain one.
        if code & 0xFF in _LOCK_CODES:
            return StorageError(
                f"{self._path}: another process has the file locked; wait until it has ended, or "
                "stop it, then repeat the command"
            )
        if code & 0xFF in _STORAGE_CODES and code not in _DAMAGE_CODES:
            return StorageError(
                f"{self._path}: SQLite says '{error}'; make room or give write access, then "
                "resume the run"
            )
        return DamagedRunError(
            f"{self._path}: SQLite says '{error}'; restore the folder from a copy"
        )


def _names_super_journal(path: Path) -> bool:
    """Say whether a journal is one of several of one transaction, which none of a ledger is.

    https://www.sqlite.org/fileformat.html, section 3: its last 8 bytes are then the magic of its
    first.
    """
    try:
        with files.open_regular(path) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - len(_JOURNAL_MAGIC)))
            return file.read() == _JOURNAL_MAGIC
    except FileNotFoundError:
        return False


def _is_undecodable(error: Exception) -> bool:
    """Say whether a row's text is not UTF-8."""
    if isinstance(error, UnicodeDecodeError):
        return True
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    is_ours = isinstance(original, sqlite3.OperationalError)
    return is_ours and str(original).startswith("Could not decode to UTF-8")
