"""The truth on disk: every trial, every epoch, every event of one run, in transactions.

One process writes. A trial is written before its configuration is handed out, an epoch of a pack
with all its trials in one transaction, a final state before the sampler hears of it. So whatever
was committed is true, and whatever was not can be done again. What is no longer as it was
written, or is gone, is a damaged run: every read holds its rows against their checksums.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from tune_softmax.errors import DamagedRunError, ResultsError
from tune_softmax.metrics import EpochMetrics, FinalTest, Report, State
from tune_softmax.run.postgresql import PostgresqlSchema, ServerLocation
from tune_softmax.run.records import (
    TrialRecord,
    epoch_row,
    new_trial_row,
    read_epoch,
    read_event,
    read_meta,
    read_test,
    read_trial,
    test_row,
)
from tune_softmax.run.sqlite import SqliteFile
from tune_softmax.run.tables import (
    EPOCHS,
    EVENTS,
    META,
    SCHEMA_VERSION,
    TESTS,
    TRIALS,
    Batch,
    fetch,
    is_as_written,
    make_tables,
    place,
    read_seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tune_softmax.config import Config

__all__ = ["Contents", "Ledger"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a ledger holds, sound or not.

    Attributes:
        meta: What identifies the run.
        trials: By number.
        epochs: (trial number, epoch, metrics), by trial and epoch.
        tests: Test-set results by trial number.
        events: (UTC time, kind, detail), in order.
        faults: What is wrong with tables and rows, each with its place; rows that cannot be read
            are here alone.
    """

    meta: dict[str, str]
    trials: list[TrialRecord]
    epochs: list[tuple[int, int, EpochMetrics]]
    tests: dict[int, FinalTest]
    events: list[tuple[str, str, dict[str, Any]]]
    faults: list[str]


class Ledger:
    """One run's ledger, in a SQLite file or in a schema of a PostgreSQL database.

    `create` and `open` make one.
    """

    def __init__(self, storage: SqliteFile | PostgresqlSchema) -> None:
        self._storage = storage
        self._shared: sa.Connection | None = None  # while `snapshot` lasts
        self._batch: Batch | None = None  # while `together` lasts

    @classmethod
    def create(cls, location: Path | ServerLocation, meta: Mapping[str, str]) -> Ledger:
        """Make a new ledger, open for writing.

        Args:
            location: A file that does not exist yet, or a schema that does not.
            meta: What identifies the run, for `meta` to give back.

        Raises:
            ResultsError: There is a ledger already.
            StorageError: It cannot be written there.
        """
        storage = _storage(location, writable=True, is_new=True)
        ledger = cls(storage)
        with ledger._kept_if_sound():
            storage.begin_writing(0)
            with storage.engine.begin() as connection:
                commits = make_tables(connection, meta).seal()
            storage.note_commit(commits)
        return ledger

    @classmethod
    def open(cls, location: Path | ServerLocation, *, writable: bool = False) -> Ledger:
        """Open a ledger.

        Args:
            location: Where it is.
            writable: Whether this process will write; one at a time may. All that it holds is
                checked first.

        Raises:
            ResultsError: There is no ledger there, or it has another schema.
            DamagedRunError: It is not a ledger, something of it is lost, or it contradicts itself.
            RunInUseError: Another session writes it.
            StorageError: It cannot be reached, or not be written.
        """
        return cls._opened(location, writable=writable, accepts_loss=False)

    @classmethod
    def accept_loss(cls, location: Path | ServerLocation) -> None:
        """Go on without the last transactions of a ledger, if they are lost.

        What is left is the ledger as it was before them; an event records it. Where nothing is
        lost, nothing changes.

        Raises:
            DamagedRunError: More is wrong with it than a lost end.
        """
        cls._opened(location, writable=True, accepts_loss=True).close()

    @classmethod
    def check_reachable(cls, location: ServerLocation) -> None:
        """See that a database answers, before work begins whose results are to go there.

        Raises:
            ResultsError: The driver is not installed.
            StorageError: The database cannot be reached.
        """
        ledger = cls(_storage(location, writable=False))
        with closing(ledger), ledger._reading():
            pass

    @classmethod
    def _opened(
        cls, location: Path | ServerLocation, *, writable: bool, accepts_loss: bool
    ) -> Ledger:
        storage = _storage(location, writable=writable)
        ledger = cls(storage)
        with ledger._kept_if_sound():
            storage.check_made()
            ledger._check_version()
            loss = ledger._loss()
            if loss is not None and not accepts_loss:
                raise DamagedRunError(loss[1])
            if writable:
                ledger._begin_writing()
            if loss is not None:
                ledger.event("loss_accepted", transactions=loss[0])
        return ledger

    @contextmanager
    def _kept_if_sound(self) -> Iterator[None]:
        """Close the ledger again if it cannot be opened."""
        try:
            with self._translating():
                yield
        except BaseException:
            self._storage.close()
            raise

    def _check_version(self) -> None:
        """Refuse a ledger of another schema; every schema keeps its version in a row of `meta`.

        The row is read by itself, because other schemas have other columns.
        """
        with self._reading() as connection:
            whole: sa.Select[Any] = sa.select(sa.literal_column("*")).select_from(META)
            rows = [dict(row) for row in connection.execute(whole).mappings()]
        row = next((row for row in rows if row.get("key") == "schema_version"), None)
        if row is None or "value" not in row:
            raise self._damaged(["table meta: names no schema version"])
        if "checksum" in row and not is_as_written(META, row):
            raise self._damaged([f"{place(META, row)}: is not what was written"])
        if row["value"] != str(SCHEMA_VERSION) or "checksum" not in row:
            raise ResultsError(
                f"{self._storage.name}: the ledger has schema version {row['value']}, this "
                f"tune_softmax reads version {SCHEMA_VERSION} alone; use the tune_softmax that "
                "wrote it (see environment.json), or search again"
            )

    def _loss(self) -> tuple[int | None, str] | None:
        with self._reading() as connection:
            return self._storage.loss(read_seal(connection).commits)

    def _begin_writing(self) -> None:
        if faults := self.contents().faults:
            raise self._damaged(faults)
        with self._reading() as connection:
            commits = read_seal(connection).commits
        self._storage.begin_writing(commits)

    def close(self) -> None:
        """Close the ledger; a writer's SQLite file is one plain file then, see `SqliteFile`."""
        self._storage.close()

    # Write

    def set_meta(self, values: Mapping[str, str], kind: str, **detail: object) -> None:
        """Change what identifies the run, and record why, in one transaction.

        Args:
            values: New values by key; other keys stay.
            kind: The event's kind.
            detail: The event's detail.
        """
        with self._transaction() as batch:
            batch.put(META, [{"key": key, "value": value} for key, value in values.items()])
            batch.event(kind, detail)

    def hand_out(self, pack: int, configs: Mapping[int, Config]) -> dict[int, int]:
        """Record that trials are about to train, before their configurations leave the driver.

        Args:
            pack: The pack they train in.
            configs: Hyperparameters by trial number; numbers known already are handed out again.

        Returns:
            Each trial's attempt, from 1.
        """
        with self._transaction() as batch:
            known = {row["number"]: row for row in batch.find(TRIALS, configs)}
            rows = [known.get(n) or new_trial_row(n, config) for n, config in configs.items()]
            attempts = {row["number"]: row["attempts"] + 1 for row in rows}
            handed = {"state": State.RUNNING, "pack": pack}
            batch.put(TRIALS, [{**r, **handed, "attempts": attempts[r["number"]]} for r in rows])
        return attempts

    def move(self, pack: int, numbers: Iterable[int]) -> None:
        """Record that parked trials go on in another pack, from where they are."""
        moved = {"pack": pack, "state": State.RUNNING}
        with self._transaction() as batch:
            rows = batch.find(TRIALS, list(numbers))
            parked = [row for row in rows if row["state"] == State.PARKED]
            batch.put(TRIALS, [{**row, **moved} for row in parked])

    def record(self, pack: int, reports: Sequence[Report]) -> None:
        """Record one or more epochs of a pack, with the final states they brought.

        A report of a trial that this pack no longer trains is left out: its attempt is over.

        Args:
            pack: The pack that reports.
            reports: In the order of their epochs.
        """
        with self._transaction() as batch:
            rows = batch.find(TRIALS, {report.number for report in reports})
            current = {
                row["number"]: row
                for row in rows
                if row["pack"] == pack and row["state"] == State.RUNNING
            }
            reports = [report for report in reports if report.number in current]
            batch.put(EPOCHS, [epoch_row(report) for report in reports])
            last = {report.number: report for report in reports}.values()
            rows = [
                {**current[r.number], "state": r.state, "rung": r.rung, "error": r.error}
                for r in last
            ]
            batch.put(TRIALS, [row for row in rows if row != current[row["number"]]])
            batch.put(TESTS, [test_row(r.number, r.test) for r in last if r.test is not None])

    def finish(self, numbers: Iterable[int], state: State, error: str | None = None) -> None:
        """Give trials a state without an epoch: FAIL for a lost pack, WAITING for a stopped one.

        Trials in a final state keep it.
        """
        with self._transaction() as batch:
            rows = batch.find(TRIALS, list(numbers))
            unfinished = [row for row in rows if not State(row["state"]).is_final]
            batch.put(TRIALS, [{**row, "state": state, "error": error} for row in unfinished])

    def event(self, kind: str, **detail: object) -> None:
        """Record that something happened now."""
        with self._transaction() as batch:
            batch.event(kind, detail)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction of all that is written within: all of it is kept, or nothing."""
        with self._transaction() as batch:
            self._batch = batch
            try:
                yield
            finally:
                self._batch = None

    @contextmanager
    def _transaction(self) -> Iterator[Batch]:
        if self._batch is not None:
            yield self._batch
            return
        with self._translating():
            self._storage.check_in_place()
            with self._storage.engine.begin() as connection:
                batch = Batch(connection)
                yield batch
                commits = batch.seal()
            self._storage.note_commit(commits)

    # Read

    def meta(self) -> dict[str, str]:
        """Return what identifies the run.

        Raises:
            DamagedRunError: A row is not one that this module wrote, or is gone; so do the
                others that read.
        """
        return dict(self._sound(META, read_meta))

    def trials(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return self._sound(TRIALS, read_trial)

    def epochs(self) -> list[tuple[int, int, EpochMetrics]]:
        """Return every epoch as (trial number, epoch, metrics), by trial and epoch."""
        return self._sound(EPOCHS, read_epoch)

    def test_results(self) -> dict[int, FinalTest]:
        """Return the test-set results by trial number."""
        return dict(self._sound(TESTS, read_test))

    def events(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return every event as (UTC time, kind, detail), in order."""
        return self._sound(EVENTS, read_event)

    def contents(self) -> Contents:
        """Return all that there is, of one moment, and everything that is wrong with it."""
        with self.snapshot(), self._reading() as connection:
            faults = self._storage.faults(connection)
            whole: list[list[Any]] = []
            for table, read in (
                (META, read_meta),
                (TRIALS, read_trial),
                (EPOCHS, read_epoch),
                (TESTS, read_test),
                (EVENTS, read_event),
            ):
                values, wrong = self._read(connection, table, read)
                whole.append(values)
                faults += wrong
        meta, trials, epochs, tests, events = whole
        return Contents(dict(meta), trials, epochs, dict(tests), events, faults)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all that is read within be of one moment, whatever is written meanwhile."""
        with self._reading() as connection:
            self._shared = connection
            try:
                yield
            finally:
                self._shared = None

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if self._shared is not None:
            yield self._shared
            return
        with self._translating(), self._storage.engine.connect() as connection:
            yield connection

    def _sound(self, table: sa.Table, read: Callable[[dict[str, Any]], _T]) -> list[_T]:
        with self._reading() as connection:
            values, faults = self._read(connection, table, read)
        if faults:
            raise self._damaged(faults)
        return values

    def _read(
        self, connection: sa.Connection, table: sa.Table, read: Callable[[dict[str, Any]], _T]
    ) -> tuple[list[_T], list[str]]:
        """Return a table's values, and what is wrong with it."""
        faults = []
        values = []
        fetched = fetch(connection, table)
        for index, row in enumerate(fetched.rows):
            fault = fetched.faults.get(index)
            try:
                values.append(read(row))
            except (ValueError, TypeError, OverflowError) as error:
                fault = f"cannot be read ({error})"
            if fault is not None:
                faults.append(f"{place(table, row)}: {fault}")
        if fetched.loss is not None:
            faults.append(f"table {table.name}: {fetched.loss}")
        return values, faults

    def _damaged(self, faults: Sequence[str]) -> DamagedRunError:
        first, *others = faults
        more = f" (and {len(others)} more, see `tune-softmax check`)" if others else ""
        return DamagedRunError(
            f"{self._storage.name}: {first}{more}; restore the folder from a copy"
        )

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Turn what the database, a checksum or a row's value complains of into our errors."""
        try:
            yield
        except (sa.exc.DBAPIError, UnicodeDecodeError) as error:
            raise self._storage.translated(error) from error
        except ValueError as error:
            raise self._damaged([str(error)]) from error


def _storage(
    location: Path | ServerLocation, *, writable: bool, is_new: bool = False
) -> SqliteFile | PostgresqlSchema:
    if isinstance(location, Path):
        return SqliteFile(location, writable=writable, is_new=is_new)
    return PostgresqlSchema(location, writable=writable, is_new=is_new)
