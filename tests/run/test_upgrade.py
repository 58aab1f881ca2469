"""Ledgers of earlier releases: read as they are, and upgraded on top of a copy."""

import logging
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

ASSETS = Path(__file__).parents[1] / "assets" / "v0.1.0"
# Trials, those done, epochs and events of each run, as its own release said.
RUNS = {"finished": (12, 12, 108, 2), "stopped": (32, 16, 139, 2), "killed": (24, 16, 139, 1)}


@pytest.fixture(params=RUNS)
def name(request):
    """Return the name of a run of release 0.1.0."""
    return request.param


@pytest.fixture
def run(name, tmp_path):
    """Return the folder of a run of release 0.1.0."""
    return shutil.copytree(ASSETS / name, tmp_path / name)


def rows_of(path):
    """Return every row of a ledger of schema 1, as SQLite gives them."""
    with closing(sqlite3.connect(path)) as connection:
        tables = {
            "meta": "SELECT * FROM meta ORDER BY 1",
            "trials": "SELECT * FROM trials ORDER BY 1",
            "epochs": "SELECT * FROM epochs ORDER BY 1, 2",
            "events": "SELECT * FROM events ORDER BY 1",
        }
        return {table: connection.execute(select).fetchall() for table, select in tables.items()}


def rows_of_new(path):
    """Return the same columns of an upgraded ledger."""
    return {table: [row[:-1] for row in rows] for table, rows in rows_of(path).items()}


def files_of(folder):
    """Return every file's bytes, but for SQLite's index of the log, which readers make."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith("-shm")}


def die(*_):
    """Be gone at once, as after a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_of_an_earlier_release_is_read_without_a_change(name, run):
    """Dataframes, test results (there are none) and contents; every byte stays."""
    num_trials, num_done, num_epochs, num_events = RUNS[name]
    before = files_of(run)
    found = results.load(run)
    assert (len(found.trials), len(found.epochs)) == (num_trials, num_epochs)
    assert found.count(State.COMPLETE, State.PRUNED) == num_done
    assert 0.1 < found.best().value < 1
    with closing(Ledger.open(run / "run.db")) as ledger:
        contents = ledger.contents()
        assert (contents.faults, contents.tests, ledger.test_results()) == ([], {}, {})
        assert len(contents.events) == num_events
    assert files_of(run) == before


def test_an_upgrade_keeps_every_row_and_a_copy(name, run, caplog):
    """To write it is to upgrade it; the copy beside it is the ledger as it was."""
    before = rows_of(shutil.copytree(run, run.parent / "untouched") / "run.db")
    frames = results.load(run)
    with caplog.at_level(logging.WARNING), closing(Ledger.open(run / "run.db", writable=True)):
        pass
    assert "upgraded from schema 1 to 2; the ledger as it was is in run.db.v1.bak" in caplog.text
    after = rows_of_new(run / "run.db")
    upgraded = after["events"].pop()
    assert upgraded[2:] == ("upgraded", '{"from": 1, "to": 2, "copy": "run.db.v1.bak"}')
    after["meta"] = [(k, "1" if k == "schema_version" else v) for k, v in after["meta"]]
    assert after == before
    assert rows_of(run / "run.db.v1.bak") == before
    found = results.load(run)
    assert found.trials.equals(frames.trials)
    assert found.epochs.equals(frames.epochs)
    others = set(files_of(ASSETS / name)) - {"run.db-wal"}
    assert set(files_of(run)) == {*others, "run.db.v1.bak"}


def test_an_upgraded_ledger_goes_on(run):
    """Trials are handed out and recorded, and the next writer upgrades nothing."""
    config = Config(batch_size=16, num_epochs=1, learning_rate=0.1)
    with closing(Ledger.open(run / "run.db", writable=True)) as ledger:
        assert ledger.hand_out(50, {40: config}) == {40: 1}
        metrics = EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.1)
        ledger.record(50, [Report(40, 1, metrics, State.COMPLETE)])
    with closing(Ledger.open(run / "run.db", writable=True)) as ledger:
        assert ledger.contents().faults == []
        assert [kind for _, kind, _ in ledger.events()].count("upgraded") == 1
    assert results.load(run).count(State.RUNNING) == (8 if run.name == "killed" else 0)


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE meta", "INSERT INTO epochs", "DROP TABLE old_m"]
)
def test_a_killed_upgrade_leaves_the_ledger_as_it_was(run, in_child, statement):
    """It is one transaction; the next writer upgrades it."""
    before = results.load(run).trials

    def upgrade_and_die():
        def dying(_connection, _cursor, text, *_):
            if text.startswith(statement):
                die()

        sa.event.listen(sa.Engine, "after_cursor_execute", dying)
        Ledger.open(run / "run.db", writable=True)

    assert in_child(upgrade_and_die) == -signal.SIGKILL
    with closing(Ledger.open(run / "run.db")) as reader:
        assert reader.meta()["schema_version"] == "1"
    assert results.load(run).trials.equals(before)
    Ledger.open(run / "run.db", writable=True).close()
    assert results.load(run).trials.equals(before)


def test_an_upgrade_killed_after_its_commit_is_done(run, in_child, monkeypatch):
    """The count beside the log is behind then, and nothing is missing."""
    before = results.load(run).trials
    monkeypatch.setattr("tune_softmax.run.sqlite.SqliteFile.note_commit", die)
    assert in_child(lambda: Ledger.open(run / "run.db", writable=True)) == -signal.SIGKILL
    with closing(Ledger.open(run / "run.db")) as reader:
        assert reader.meta()["schema_version"] == "2"
    assert results.load(run).trials.equals(before)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("UPDATE trials SET state = 'DONE' WHERE number = 3", "number 3: cannot be read"),
        ("UPDATE epochs SET number = 99 WHERE number = 3", "belongs to no row of table trials"),
    ],
)
def test_a_damaged_ledger_is_not_upgraded(tmp_path, harm, reason):
    """What is wrong must not get a checksum that says it is right."""
    run = shutil.copytree(ASSETS / "finished", tmp_path / "run")
    with closing(sqlite3.connect(run / "run.db")) as connection, connection:
        connection.execute(harm)
    before = files_of(run)
    with pytest.raises(DamagedRunError, match=reason):
        Ledger.open(run / "run.db", writable=True)
    assert files_of(run) == before


def test_the_opening_of_the_test_set_upgrades_too(tmp_path):
    """`train RUN` writes into a run of an earlier release."""
    run = shutil.copytree(ASSETS / "finished", tmp_path / "run")
    RunFolder(run).record_test_opening(command="train", trial=1)
    with closing(Ledger.open(run / "run.db")) as ledger:
        assert [kind for _, kind, _ in ledger.events()][-2:] == ["upgraded", "test_opened"]
