"""The truth on disk: every trial, every epoch, every event of one run, in transactions.

One process writes. A trial is written before its configuration is handed out, an epoch of a pack
with all its trials in one transaction, a final state before the sampler hears of it. So whatever
was committed is true, and whatever was not can be done again.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError
from tune_softmax.metrics import CURVES, EpochMetrics, Report, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["SCHEMA_VERSION", "Ledger", "TrialRecord"]

SCHEMA_VERSION = 1

# What SQLite says when the file is sound and the file system or another process is in the way.
_STORAGE_CODES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One row of the ledger's trials.

    Attributes:
        number: From 0, in the order of asking.
        state: Where it stands.
        config: Its hyperparameters.
        pack: The pack it trains in, or trained in last.
        attempts: How often it was handed out.
        rung: The highest of ASHA's rungs that it has reached, in epochs.
        error: Why it failed.
    """

    number: int
    state: State
    config: Config
    pack: int
    attempts: int
    rung: int | None
    error: str | None


_metadata = sa.MetaData()
_meta = sa.Table(
    "meta",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_trials = sa.Table(
    "trials",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("pack", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("rung", sa.Integer),
    sa.Column("error", sa.Text),
)
_epochs = sa.Table(
    "epochs",
    _metadata,
    sa.Column("number", sa.Integer, sa.ForeignKey("trials.number"), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    *(sa.Column(curve, sa.Float) for curve in CURVES),
    sa.Column("seconds", sa.Float, nullable=False),
)
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)


class Ledger:
    """One run's ledger in a SQLite file.

    Args:
        path: The file.
        writable: Whether this process will write.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._writable = writable
        self._engine = _engine(path, writable=writable)

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, str]) -> Ledger:
        """Make a new ledger.

        Args:
            path: A file that does not exist yet.
            meta: What identifies the run, for `meta` to give back.

        Raises:
            ResultsError: There is a ledger already.
            StorageError: The file cannot be written.
        """
        if path.exists():
            raise ResultsError(
                f"{path}: there is a run already; resume it or choose another folder"
            )
        ledger = cls(path, writable=True)
        with ledger._transaction() as connection:
            _metadata.create_all(connection)
            rows = {**meta, "schema_version": str(SCHEMA_VERSION)}
            connection.execute(
                _meta.insert(), [{"key": key, "value": value} for key, value in rows.items()]
            )
        return ledger

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Ledger:
        """Open a ledger.

        Args:
            path: Its file.
            writable: Whether this process will write; one at a time may.

        Raises:
            ResultsError: There is no such file, or a newer version wrote it.
            DamagedRunError: The file is not a ledger, or its contents contradict themselves.
        """
        if not path.is_file():
            raise ResultsError(f"{path}: no ledger there; name the folder of a run")
        ledger = cls(path, writable=writable)
        version = ledger.meta().get("schema_version")
        if version is None:
            raise DamagedRunError(
                f"{path}: names no schema version; restore the folder from a copy"
            )
        if version != str(SCHEMA_VERSION):
            raise ResultsError(
                f"{path}: the ledger has schema version {version}, this tune_softmax reads "
                f"{SCHEMA_VERSION}; use the version that wrote it (see environment.json)"
            )
        return ledger

    def close(self) -> None:
        """Close the file; a writer leaves one plain file that can be copied and read anywhere.

        Where another process reads at this moment, the write-ahead log stays beside the file;
        they are whole together.
        """
        if self._writable:
            with suppress(sa.exc.DBAPIError), self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
        self._engine.dispose()

    def meta(self) -> dict[str, str]:
        """Return what identifies the run."""
        return {row.key: row.value for row in self._rows(sa.select(_meta))}

    def hand_out(self, pack: int, configs: Mapping[int, Config]) -> dict[int, int]:
        """Record that trials are about to train, before their configurations leave the driver.

        Args:
            pack: The pack they train in.
            configs: Hyperparameters by trial number; numbers known already are handed out again.

        Returns:
            Each trial's attempt, from 1.
        """
        statement = insert(_trials)
        statement = statement.on_conflict_do_update(
            index_elements=["number"],
            set_={
                "state": State.RUNNING,
                "pack": pack,
                "attempts": _trials.c.attempts + 1,
            },
        )
        with self._transaction() as connection:
            connection.execute(
                statement,
                [
                    {
                        "number": number,
                        "state": State.RUNNING,
                        "config": json.dumps(asdict(config)),
                        "pack": pack,
                        "attempts": 1,
                    }
                    for number, config in configs.items()
                ],
            )
            rows = connection.execute(
                sa.select(_trials.c.number, _trials.c.attempts).where(_trials.c.pack == pack)
            )
            return {row.number: row.attempts for row in rows}

    def move(self, pack: int, numbers: Iterable[int]) -> None:
        """Record that running trials go on in another pack, from where they are."""
        with self._transaction() as connection:
            connection.execute(
                _trials.update()
                .where(_trials.c.number.in_(list(numbers)), _trials.c.state == State.RUNNING)
                .values(pack=pack)
            )

    def record(self, pack: int, reports: Sequence[Report]) -> None:
        """Record one or more epochs of a pack, with the final states they brought.

        A report of a trial that this pack no longer trains is left out: its attempt is over.

        Args:
            pack: The pack that reports.
            reports: In the order of their epochs.
        """
        with self._transaction() as connection:
            current = set(
                connection.scalars(
                    sa.select(_trials.c.number).where(
                        _trials.c.pack == pack, _trials.c.state == State.RUNNING
                    )
                )
            )
            reports = [report for report in reports if report.number in current]
            if not reports:
                return
            statement = insert(_epochs)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["number", "epoch"],
                    set_={name: statement.excluded[name] for name in (*CURVES, "seconds")},
                ),
                [{"number": r.number, "epoch": r.epoch, **_storable(r.metrics)} for r in reports],
            )
            last = {report.number: report for report in reports}
            connection.execute(
                _trials.update()
                .where(_trials.c.number == sa.bindparam("trial"))
                .values(state=sa.bindparam("s"), rung=sa.bindparam("r"), error=sa.bindparam("e")),
                [
                    {"trial": r.number, "s": r.state, "r": r.rung, "e": r.error}
                    for r in last.values()
                ],
            )

    def finish(self, numbers: Iterable[int], state: State, error: str | None = None) -> None:
        """Give trials a state without an epoch: FAIL for a lost pack, WAITING for a stopped one.

        Trials in a final state keep it.
        """
        with self._transaction() as connection:
            connection.execute(
                _trials.update()
                .where(
                    _trials.c.number.in_(list(numbers)),
                    _trials.c.state.in_([State.RUNNING, State.WAITING]),
                )
                .values(state=state, error=error)
            )

    def event(self, kind: str, **detail: object) -> None:
        """Record that something happened now."""
        with self._transaction() as connection:
            connection.execute(
                _events.insert().values(
                    at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    kind=kind,
                    detail=json.dumps(detail),
                )
            )

    def trials(self) -> list[TrialRecord]:
        """Return every trial, by number.

        Raises:
            DamagedRunError: A row is not one that this module writes.
        """
        try:
            return [
                TrialRecord(
                    number=row.number,
                    state=State(row.state),
                    config=Config(**json.loads(row.config)),
                    pack=int(row.pack),
                    attempts=int(row.attempts),
                    rung=row.rung,
                    error=row.error,
                )
                for row in self._rows(sa.select(_trials).order_by(_trials.c.number))
            ]
        except (ValueError, TypeError) as error:
            raise self._damaged("trials", error) from error

    def epochs(self) -> list[tuple[int, int, EpochMetrics]]:
        """Return every epoch as (trial number, epoch, metrics), by trial and epoch.

        Raises:
            DamagedRunError: A row is not one that this module writes.
        """
        statement = sa.select(_epochs).order_by(_epochs.c.number, _epochs.c.epoch)
        try:
            return [
                (int(row.number), int(row.epoch), EpochMetrics(*map(_readable, row[2:])))
                for row in self._rows(statement)
            ]
        except (ValueError, TypeError) as error:
            raise self._damaged("epochs", error) from error

    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return every event as (UTC time, kind, detail), in order.

        Raises:
            DamagedRunError: A row is not one that this module writes.
        """
        rows = self._rows(sa.select(_events).order_by(_events.c.id))
        try:
            return [(row.at, row.kind, json.loads(row.detail)) for row in rows]
        except (ValueError, TypeError) as error:
            raise self._damaged("events", error) from error

    def _rows(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(statement))
        except sa.exc.DBAPIError as error:
            raise _translated(error, self._path) from error
        except UnicodeDecodeError as error:  # of SQLite's own words about a damaged file
            reason = f"{self._path}: SQLite cannot even say what is wrong"
            raise DamagedRunError(f"{reason}; restore the folder from a copy") from error

    def _damaged(self, table: str, error: Exception) -> DamagedRunError:
        return DamagedRunError(
            f"{self._path}: table {table} holds a row that cannot be read ({error}); restore the "
            "folder from a copy"
        )

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise _translated(error, self._path) from error


def _engine(path: Path, *, writable: bool) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        mode = "mode=rwc" if writable else "mode=ro"
        if not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
            mode = "immutable=1"  # or SQLite would make a file beside it even to read
        uri = f"{path.absolute().as_uri()}?{mode}"
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        if writable:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
        return connection

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.SingletonThreadPool)


def _storable(metrics: EpochMetrics) -> dict[str, float | None]:
    """Return a row's values; SQL has no NaN, so it is NULL there."""
    values = asdict(metrics).items()
    return {name: None if math.isnan(value) else value for name, value in values}


def _readable(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _translated(error: sa.exc.DBAPIError, path: Path) -> ResultsError:
    reason = str(error.orig)
    code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code & 0xFF in _STORAGE_CODES:  # the low byte of an extended code is the plain one
        return StorageError(
            f"{path}: SQLite says {reason!r}; make room or give write access, then resume the run"
        )
    return DamagedRunError(f"{path}: SQLite says {reason!r}; restore the folder from a copy")
