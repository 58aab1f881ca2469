"""The ledger's tables, and the checksums that show every row that is changed, lost or added.

Each row carries the CRC-32 of its values. One row more, the seal, counts the transactions and
holds for every table how many rows there are and the sum of their checksums, so that a row that
is gone is missed as well as one that is altered.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from tune_softmax.metrics import CURVES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "EPOCHS",
    "EVENTS",
    "META",
    "METADATA",
    "SCHEMA_VERSION",
    "SEALED",
    "TESTS",
    "TRIALS",
    "Batch",
    "Fetched",
    "Seal",
    "fetch",
    "is_as_written",
    "make_tables",
    "place",
    "read_seal",
]

_T = TypeVar("_T")

SCHEMA_VERSION = 2

METADATA = sa.MetaData()


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(name, METADATA, *columns, sa.Column("checksum", sa.BigInteger, nullable=False))


def _number(*, of: str = "") -> sa.Column[int]:
    reference = [sa.ForeignKey(of)] if of else []
    return sa.Column("number", sa.Integer, *reference, primary_key=True, autoincrement=False)


META = _table(
    "meta",
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
TRIALS = _table(
    "trials",
    _number(),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("pack", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("rung", sa.Integer),
    sa.Column("error", sa.Text),
)
EPOCHS = _table(
    "epochs",
    _number(of="trials.number"),
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(curve, sa.Float) for curve in CURVES),
    sa.Column("seconds", sa.Float, nullable=False),
)
TESTS = _table(
    "tests",
    _number(of="trials.number"),
    sa.Column("loss", sa.Float),
    sa.Column("accuracy", sa.Float),
    sa.Column("confusion", sa.Text, nullable=False),
)
EVENTS = _table(
    "events",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
SEALED = (META, TRIALS, EPOCHS, TESTS, EVENTS)

SEAL = _table(
    "seal",
    sa.Column("commits", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("totals", sa.Text, nullable=False),
)

_MODULUS = 2**64  # of the sums, so that their length is bounded
_EPOCH = struct.Struct(f"<2q{len(CURVES) + 1}d")  # number, epoch; the curves, seconds
_to_json = json.JSONEncoder(separators=(",", ":"), default=repr).encode
_CHUNK = 10_000  # rows at a time, because databases bound the parameters of a statement
_ALTERED = "is not what was written, its checksum differs"


@dataclass(frozen=True, slots=True)
class Seal:
    """What a sound ledger holds.

    Attributes:
        commits: Transactions so far.
        totals: By table's name, how many rows it has and the sum of their checksums.
    """

    commits: int
    totals: Mapping[str, tuple[int, int]]


def _checksum(table: sa.Table, values: Iterable[Any]) -> int | None:
    """Return the CRC-32 of a row's values, None where they cannot be those of such a row.

    A row of epochs counts as 8 bytes a number, NULL as NaN, because there are many and writing
    numbers out is slow; a row of any other table as a JSON array.
    """
    if table is not EPOCHS:
        return zlib.crc32(_to_json(list(values)).encode())
    numbers = list(values)
    if None in numbers:
        numbers = [math.nan if number is None else number for number in numbers]
    try:
        return zlib.crc32(_EPOCH.pack(*numbers))
    except struct.error:
        return None


def is_as_written(table: sa.Table, row: Mapping[str, object]) -> bool:
    """Say whether a row, its checksum last, still has the values it was written with."""
    *values, checksum = row.values()
    return checksum is not None and checksum == _checksum(table, values)


def _plain(value: Any) -> object:  # noqa: ANN401 - any column's value
    """Return a value as every database gives it back: SQL has no NaN, SQLite no minus zero."""
    if isinstance(value, float):
        return None if math.isnan(value) else value + 0.0
    if isinstance(value, str):
        # PostgreSQL's text holds no NUL, and UTF-8 no lone surrogate.
        return str(value).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return value


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole table.

    Attributes:
        rows: In the order of their key, as mappings without the checksum.
        faults: What is wrong with single rows, by their place in `rows`.
        loss: What is wrong with the table as a whole, beyond single rows.
    """

    rows: list[dict[str, Any]]
    faults: dict[int, str]
    loss: str | None


def fetch(connection: sa.Connection, table: sa.Table) -> Fetched:
    """Read a whole table and hold it against its checksums and the seal.

    Args:
        connection: Within a transaction, so that rows and seal are of one moment.
        table: Any of `SEALED`.

    Raises:
        ValueError: The seal itself is damaged.
    """
    rows = _rows(connection, _whole(table))
    faults = {}
    total = 0
    for index, row in enumerate(rows):
        is_sound = is_as_written(table, row)
        checksum = row.pop("checksum")
        if is_sound:
            total += checksum
        else:
            faults[index] = _ALTERED
    num_rows, sealed_total = read_seal(connection).totals[table.name]
    loss = None
    if num_rows != len(rows):
        loss = f"has {len(rows)} rows where {num_rows} were written"
    elif not faults and sealed_total != total % _MODULUS:
        loss = "has older rows than those that were written"
    return Fetched(rows, faults, loss)


@cache
def _whole(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).order_by(*table.primary_key)


@cache
def _update(table: sa.Table) -> sa.Update:
    new: dict[str, Any] = {column.name: sa.bindparam(f"new_{column.name}") for column in table.c}
    return table.update().where(*(key == new[key.name] for key in table.primary_key)).values(new)


def _rows(connection: sa.Connection, statement: sa.Select[Any]) -> list[dict[str, Any]]:
    names = statement.selected_columns.keys()
    return [dict(zip(names, row, strict=True)) for row in connection.execute(statement).all()]


def place(table: sa.Table, row: Mapping[str, Any]) -> str:
    """Say where a row is, in words."""
    keys = (f"{column.name} {row[column.name]}" for column in table.primary_key)
    return f"table {table.name}, {', '.join(keys)}"


def read_seal(connection: sa.Connection) -> Seal:
    """Read the seal.

    Raises:
        ValueError: It is not one that this module writes.
    """
    rows = _rows(connection, _whole(SEAL))
    if len(rows) != 1 or not is_as_written(SEAL, rows[0]):
        raise ValueError(f"table seal: must hold one sound row, got {len(rows)} rows")
    totals = {name: (n, total) for name, (n, total) in json.loads(rows[0]["totals"]).items()}
    return Seal(rows[0]["commits"], totals)


class Batch:
    """What one transaction writes: rows with their checksums, and the seal over them.

    Args:
        connection: Within a transaction.
        seal: What the ledger holds before; by default as it says itself.
    """

    def __init__(self, connection: sa.Connection, seal: Seal | None = None) -> None:
        self._connection = connection
        self._seal = seal or read_seal(connection)
        self._added: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        # Checksums before this batch by table and key, None where there is no such row.
        self._known: defaultdict[str, dict[tuple[object, ...], int | None]] = defaultdict(dict)

    def find(self, table: sa.Table, keys: Collection[object]) -> list[dict[str, Any]]:
        """Read rows of a table whose key is one column.

        Raises:
            ValueError: A row is not what was written.
        """
        (key,) = table.primary_key
        known = self._known[table.name]
        known |= {(value,): None for value in keys}
        found = []
        for some in _chunks(list(keys)):
            statement = _whole(table).where(key.in_(some))
            for row in _rows(self._connection, statement):
                if not is_as_written(table, row):
                    raise ValueError(f"{place(table, row)}: {_ALTERED}")
                known[row[key.name],] = row.pop("checksum")
                found.append(row)
        return found

    def put(self, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows; one whose key is there already takes its place.

        Args:
            table: Any of `SEALED`.
            rows: Every column but the checksum, in any order; no key twice.
        """
        for some in _chunks(rows):
            self._put(table, some)

    def event(self, kind: str, detail: Mapping[str, object]) -> None:
        """Write that something happened now."""
        before, _ = self._seal.totals[EVENTS.name]
        row = {
            "id": before + self._added[EVENTS.name][0] + 1,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "detail": json.dumps(detail),
        }
        self.put(EVENTS, [row])

    def _put(self, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
        names = [column.name for column in table.c if column is not table.c.checksum]
        keys = [column.name for column in table.primary_key]
        known = self._look_up(table, rows)
        new: list[dict[str, object]] = []
        changed: list[dict[str, object]] = []
        added = self._added[table.name]
        for row in rows:
            values = {name: _plain(row[name]) for name in names}
            checksum = _checksum(table, values.values())
            assert checksum is not None, f"no row of {table.name}: {values}"
            key = tuple(values[name] for name in keys)
            before, known[key] = known.get(key), checksum
            added[0] += before is None
            added[1] += checksum - (before or 0)
            (new if before is None else changed).append({**values, "checksum": checksum})
        if new:
            self._connection.execute(table.insert(), new)
        if changed:
            self._connection.execute(
                _update(table),
                [{f"new_{name}": value for name, value in row.items()} for row in changed],
            )

    def _look_up(
        self, table: sa.Table, rows: Sequence[Mapping[str, object]]
    ) -> dict[tuple[object, ...], int | None]:
        """Return the checksums of the rows that are there already, by their key."""
        known = self._known[table.name]
        keys = table.primary_key.columns
        if any(tuple(row[key.name] for key in keys) not in known for row in rows):
            first, *others = keys
            where = [first.in_([row[first.name] for row in rows])]
            for column in others:
                values: list[Any] = [row[column.name] for row in rows]
                where.append(column.between(min(values), max(values)))
            statement = sa.select(*keys, table.c.checksum).where(*where)
            for *key, checksum in self._connection.execute(statement):
                known[tuple(key)] = checksum
        return known

    def seal(self) -> int:
        """Write the seal over what this batch has put, as its last act.

        Returns:
            How many transactions the ledger holds with this one; it counts if it put anything.
        """
        if not self._added:
            return self._seal.commits
        totals = dict(self._seal.totals)
        for name, (num_rows, difference) in self._added.items():
            before, total = totals[name]
            totals[name] = (before + num_rows, (total + difference) % _MODULUS)
        commits = self._seal.commits + 1
        values = {"commits": commits, "totals": json.dumps(totals)}
        row = {**values, "checksum": _checksum(SEAL, values.values())}
        if self._seal.commits:
            self._connection.execute(SEAL.update().values(row))
        else:
            self._connection.execute(SEAL.insert(), row)
        return commits


def make_tables(connection: sa.Connection, meta: Mapping[str, str]) -> Batch:
    """Make a new ledger's tables.

    Args:
        connection: Within the transaction that makes them.
        meta: What identifies the run.

    Returns:
        The batch that has put `meta`, for its caller to put more and to seal.
    """
    METADATA.create_all(connection)
    batch = Batch(connection, Seal(0, {table.name: (0, 0) for table in SEALED}))
    rows = {**meta, "schema_version": str(SCHEMA_VERSION)}
    batch.put(META, [{"key": key, "value": value} for key, value in rows.items()])
    return batch
