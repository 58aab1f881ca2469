"""Checksums and the seal: whatever is written, they fit; whatever is changed then, they do not."""

import json
import math
import struct
import zlib

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.run.tables import (
    EPOCHS,
    EVENTS,
    META,
    SEAL,
    TRIALS,
    Batch,
    fetch,
    make_tables,
    read_seal,
)


@pytest.fixture
def connection():
    """Return a connection to a new ledger in memory, within a transaction."""
    with sa.create_engine("sqlite://").begin() as connection:
        make_tables(connection, {"key": "value"}).seal()
        yield connection


def trial(number, **values):
    """Return a row of trials."""
    row = {"number": number, "state": "RUNNING", "config": "{}", "pack": 0, "attempts": 1}
    return {**row, "rung": None, "error": None, **values}


def epoch(number, epoch, loss=1.0):
    """Return a row of epochs."""
    curves = dict.fromkeys(["train_loss", "train_accuracy", "validation_accuracy"], 0.5)
    row = {"number": number, "epoch": epoch, **curves}
    return {**row, "validation_loss": loss, "seconds": 0.25}


def put(connection, table, *rows):
    """Write rows in a batch of their own."""
    batch = Batch(connection)
    batch.put(table, rows)
    return batch.seal()


def test_a_checksum_is_the_crc_32_that_is_documented(connection):
    """Of the values as a JSON array; of an epoch's as 8 bytes a number, NULL as NaN."""
    put(connection, TRIALS, trial(3, error="näh"))
    put(connection, EPOCHS, epoch(3, 1, loss=math.nan))
    text = json.dumps([3, "RUNNING", "{}", 0, 1, None, "näh"]).replace(", ", ",").encode()
    assert connection.scalar(sa.select(TRIALS.c.checksum)) == zlib.crc32(text)
    numbers = struct.pack("<qqddddd", 3, 1, 0.5, 0.5, math.nan, 0.5, 0.25)
    assert connection.scalar(sa.select(EPOCHS.c.checksum)) == zlib.crc32(numbers)


def test_the_seal_counts_transactions_rows_and_the_sum_of_checksums(connection):
    """Recomputed from the tables by plain sums."""
    assert put(connection, TRIALS, trial(0), trial(1)) == 2
    assert put(connection, TRIALS, trial(1, attempts=2), trial(2)) == 3
    seal = read_seal(connection)
    assert seal.commits == 3
    sums = {
        table.name: tuple(
            connection.execute(
                sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(table.c.checksum), 0))
            ).one()
        )
        for table in (META, TRIALS, EPOCHS, EVENTS)
    }
    assert sums["trials"][0] == 3
    assert {name: seal.totals[name] for name in sums} == sums


def test_a_batch_that_puts_nothing_is_no_transaction(connection):
    """The count stays."""
    batch = Batch(connection)
    batch.put(TRIALS, [])
    assert batch.find(TRIALS, [0]) == []
    assert batch.seal() == 1 == read_seal(connection).commits


ROWS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(1, 3),
        st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    ),
    max_size=6,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_whatever_is_put_is_found_sound(batches):
    """The last of each key, in order of the keys, and neither checksum nor seal objects."""
    expected = {}
    with sa.create_engine("sqlite://").begin() as connection:
        make_tables(connection, {}).seal()
        for rows in batches:
            put(connection, EPOCHS, *(epoch(*row) for row in rows))
            expected |= {row[:2]: row[2] for row in rows}
        fetched = fetch(connection, EPOCHS)
    assert (fetched.faults, fetched.loss) == ({}, None)
    found = {(row["number"], row["epoch"]): row["validation_loss"] for row in fetched.rows}
    assert list(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key] == value or (found[key] is None and math.isnan(value))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_changed_behind_the_ledgers_back_is_found(data):
    """Any other value in any column of any row, any row gone, and any row added."""
    rows = [trial(number, error=f"error {number}") for number in range(4)]
    with sa.create_engine("sqlite://").begin() as connection:
        make_tables(connection, {}).seal()
        put(connection, TRIALS, *rows)
        column = data.draw(st.sampled_from([*TRIALS.c, None]))
        number = data.draw(st.integers(0, 3))
        at = TRIALS.c.number == number
        if column is None:
            connection.execute(TRIALS.delete().where(at))
        elif column is TRIALS.c.number:
            twin = connection.execute(sa.select(TRIALS).where(at)).one()
            connection.execute(TRIALS.insert(), {**twin._mapping, "number": 4 + number})
        else:
            before = connection.scalar(sa.select(column).where(at))
            kind = st.text() if column.type.python_type is str else st.integers(-(2**31), 2**31)
            value = data.draw(kind.filter(lambda value: value != before))
            connection.execute(TRIALS.update().where(at).values({column.name: value}))
        fetched = fetch(connection, TRIALS)
    assert fetched.faults or fetched.loss


def test_a_table_that_went_back_in_time_is_found(connection):
    """Every row fits its checksum, and the number of rows is right, but the sum is not."""
    put(connection, TRIALS, trial(0))
    before = connection.execute(sa.select(TRIALS)).one()
    put(connection, TRIALS, trial(0, attempts=2))
    connection.execute(TRIALS.update().values(before._mapping))
    fetched = fetch(connection, TRIALS)
    assert (fetched.faults, fetched.loss) == ({}, "has older rows than those that were written")


@pytest.mark.parametrize(
    "harm",
    [
        SEAL.delete(),
        SEAL.update().values(commits=7),
        SEAL.update().values(totals="{}"),
        SEAL.update().values(checksum=0),
        SEAL.insert().values(commits=9, totals="{}", checksum=0),
    ],
    ids=["gone", "count", "totals", "checksum", "second row"],
)
def test_a_damaged_seal_is_not_believed(connection, harm):
    """Without it nothing is known to be whole."""
    connection.execute(harm)
    for use in (lambda: fetch(connection, TRIALS), lambda: Batch(connection)):
        with pytest.raises(ValueError, match="table seal: must hold one sound row, got"):
            use()


def test_a_text_where_a_number_belongs_is_no_row_of_epochs(connection):
    """It has no form of which there were a checksum."""
    put(connection, TRIALS, trial(0))
    put(connection, EPOCHS, epoch(0, 1))
    connection.execute(EPOCHS.update().values(train_loss=sa.literal_column("'low'")))
    assert fetch(connection, EPOCHS).faults == {0: "is not what was written, its checksum differs"}


def test_rows_are_found_and_altered_ones_refused(connection):
    """Of the keys asked for, those that are there."""
    put(connection, TRIALS, trial(0), trial(1), trial(2))
    assert Batch(connection).find(TRIALS, [2, 0, 7]) == [trial(0), trial(2)]
    connection.execute(TRIALS.update().where(TRIALS.c.number == 1).values(pack=9))
    with pytest.raises(ValueError, match="table trials, number 1: is not what was written"):
        Batch(connection).find(TRIALS, [0, 1])


def test_events_are_numbered_without_a_gap(connection):
    """Through batches and within one."""
    for kinds in (["a"], ["b", "c"]):
        batch = Batch(connection)
        for kind in kinds:
            batch.event(kind, {"kind": kind})
        batch.seal()
    rows = fetch(connection, EVENTS).rows
    assert [(row["id"], row["kind"]) for row in rows] == [(1, "a"), (2, "b"), (3, "c")]
