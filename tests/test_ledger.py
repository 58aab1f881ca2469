"""The ledger: what is committed stays true, whoever dies, and what is damaged is said to be."""

import math
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax import sqlite_file
from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError
from tune_softmax.ledger import Ledger
from tune_softmax.metrics import EpochMetrics, Report, State

CONFIG = Config(batch_size=64, num_epochs=5, learning_rate=0.1)


def metrics(loss, seconds=0.5):
    """Return an epoch whose validation loss is `loss`."""
    return EpochMetrics(2.0, 0.25, loss, 0.75, seconds)


def reports(numbers, epoch, state=State.RUNNING, loss=1.0, **more):
    """Return one epoch's report of every trial."""
    return [Report(number, epoch, metrics(loss), state, **more) for number in numbers]


@pytest.fixture
def path(tmp_path):
    """Return where a ledger goes."""
    return tmp_path / "run.db"


@pytest.fixture
def ledger(path):
    """Return a new ledger, open for writing."""
    with closing(Ledger.create(path, {"dataset_checksum": "abc"})) as ledger:
        yield ledger


def execute(path, statement):
    """Change a ledger behind its back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def run_python(code, *arguments):
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# What is written


def test_what_is_written_is_read_back_by_another_ledger(ledger, path):
    """Identity, trials, epochs and events come back as they went in, each in order."""
    configs = {1: CONFIG, 0: Config(batch_size=8, num_epochs=1, learning_rate=1e-3, momentum=0.9)}
    assert ledger.hand_out(3, configs) == {0: 1, 1: 1}
    ledger.record(3, reports([1, 0], 1, loss=0.1 + 0.2, rung=1))
    ledger.event("started", places=2, words=["a", "b"])
    ledger.event("ended")
    with closing(Ledger.open(path)) as reader:
        assert reader.meta() == {"dataset_checksum": "abc", "schema_version": "2"}
        trials = reader.trials()
        assert [trial.number for trial in trials] == [0, 1]
        assert {trial.number: trial.config for trial in trials} == configs
        assert {(t.state, t.pack, t.attempts, t.rung, t.error) for t in trials} == {
            (State.RUNNING, 3, 1, 1, None)
        }
        assert reader.epochs() == [(n, 1, metrics(0.1 + 0.2)) for n in (0, 1)]
        events = reader.events()
        assert [event[1:] for event in events] == [
            ("started", {"places": 2, "words": ["a", "b"]}),
            ("ended", {}),
        ]
        assert all(at.endswith("+00:00") for at, _, _ in events)


def test_a_trial_handed_out_again_keeps_its_number_and_gets_another_attempt(ledger):
    """The second pack holds the trial; its first configuration stays."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.finish([0], State.WAITING)
    assert ledger.hand_out(1, {0: CONFIG, 2: CONFIG}) == {0: 2, 2: 1}
    assert [(t.number, t.pack, t.attempts, t.state) for t in ledger.trials()] == [
        (0, 1, 2, State.RUNNING),
        (1, 0, 1, State.RUNNING),
        (2, 1, 1, State.RUNNING),
    ]


def test_a_pack_that_lost_its_trials_is_not_heard(ledger):
    """A late report of an attempt that is over changes nothing, not even beside a valid one."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.hand_out(1, {0: CONFIG})
    ledger.record(0, reports([0], 1))
    assert ledger.epochs() == []
    ledger.record(0, reports([0, 1], 1, State.COMPLETE))
    assert [(n, epoch) for n, epoch, _ in ledger.epochs()] == [(1, 1)]
    assert [trial.state for trial in ledger.trials()] == [State.RUNNING, State.COMPLETE]


def test_a_finished_trial_is_not_heard_again(ledger):
    """An epoch after the final state is left out."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, State.PRUNED, rung=1))
    ledger.record(0, reports([0], 2, State.COMPLETE))
    (trial,) = ledger.trials()
    assert (trial.state, trial.rung, len(ledger.epochs())) == (State.PRUNED, 1, 1)


def test_an_epoch_reported_again_overwrites(ledger):
    """The second attempt's epochs replace the first's, and none is there twice."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, loss=9.0) + reports([0], 2, loss=8.0))
    ledger.hand_out(1, {0: CONFIG})
    ledger.record(1, reports([0], 1, loss=5.0))
    values = [(epoch, m.validation_loss) for _, epoch, m in ledger.epochs()]
    assert values == [(1, 5.0), (2, 8.0)]


def test_the_last_of_several_epochs_decides(ledger):
    """State, rung and error are those of a trial's last report."""
    ledger.hand_out(0, {0: CONFIG})
    last = reports([0], 2, State.FAIL, loss=math.inf, rung=2, error="diverged")
    ledger.record(0, reports([0], 1, rung=1) + last)
    (trial,) = ledger.trials()
    assert (trial.state, trial.rung, trial.error) == (State.FAIL, 2, "diverged")


@pytest.mark.parametrize("final", [State.COMPLETE, State.PRUNED, State.FAIL])
def test_finish_leaves_final_states_alone(ledger, final):
    """Only running and waiting trials take a state without an epoch."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.record(0, reports([0], 1, final))
    ledger.finish([0, 1, 7], State.WAITING)
    ledger.finish([0, 1], State.FAIL, "its worker died")
    assert [(t.state, t.error) for t in ledger.trials()] == [
        (final, None),
        (State.FAIL, "its worker died"),
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 5e-324, 1.7e308])
def test_every_number_survives(ledger, value):
    """Curves of a diverged trial come back as they were."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, loss=value))
    ((_, _, read),) = ledger.epochs()
    assert read.validation_loss == pytest.approx(value, rel=0, abs=0, nan_ok=True)
    assert read.is_finite == math.isfinite(value)


def test_nothing_reported_is_nothing_written(ledger):
    """A pack without reports is no error."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, [])
    assert ledger.epochs() == []


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("hand_out"), st.sets(st.integers(0, 4), min_size=1)),
        st.tuples(
            st.just("record"),
            st.sets(st.integers(0, 4), min_size=1),
            st.sampled_from([State.RUNNING, State.COMPLETE, State.PRUNED, State.FAIL]),
            st.booleans(),
        ),
        st.tuples(
            st.just("finish"),
            st.sets(st.integers(0, 4)),
            st.sampled_from([State.WAITING, State.FAIL]),
        ),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(OPERATIONS)
def test_any_sequence_leaves_the_ledger_as_a_plain_model_has_it(operations):
    """Each number once, epochs without a gap, attempts counted, final states kept."""
    state, attempts, pack_of, trained = {}, {}, {}, {}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Ledger.create(Path(folder) / "run.db", {})) as ledger,
    ):
        for pack, (kind, numbers, *rest) in enumerate(operations):
            if kind == "hand_out":
                left = {n for n in numbers if not state.get(n, State.WAITING).is_final}
                if not left:
                    continue
                for n in left:
                    state[n], pack_of[n] = State.RUNNING, pack
                    attempts[n] = attempts.get(n, 0) + 1
                handed = ledger.hand_out(pack, dict.fromkeys(left, CONFIG))
                assert handed == {n: attempts[n] for n in left}
            elif kind == "record":
                new_state, is_stale = rest
                for n in numbers & pack_of.keys():
                    epoch = trained.get(n, 0) + 1
                    ledger.record(-1 if is_stale else pack_of[n], reports([n], epoch, new_state))
                    if not is_stale and state[n] is State.RUNNING:
                        state[n], trained[n] = new_state, epoch
            else:
                ledger.finish(numbers, rest[0])
                known = {n for n in numbers if n in state and not state[n].is_final}
                state |= dict.fromkeys(known, rest[0])
        assert {t.number: t.state for t in ledger.trials()} == state
        assert {t.number: t.attempts for t in ledger.trials()} == attempts
        assert [(n, epoch) for n, epoch, _ in ledger.epochs()] == [
            (n, epoch) for n in sorted(trained) for epoch in range(1, trained[n] + 1)
        ]


# Who else is there, and who dies

WRITE_UNTIL_KILLED = """
import os, pathlib, signal, sys
import sqlalchemy
from tune_softmax.config import Config
from tune_softmax.ledger import Ledger
from tune_softmax.metrics import EpochMetrics, Report

path, where, when = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger.create(path, {})
config = Config(batch_size=1, num_epochs=99, learning_rate=1.0)
ledger.hand_out(0, dict.fromkeys(range(200), config))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

for epoch in range(1, 99):
    if epoch == when:
        if where == "before the commit":
            sqlalchemy.event.listen(ledger._storage.engine, "commit", die)
        elif where == "within the transaction":
            @sqlalchemy.event.listens_for(ledger._storage.engine, "after_cursor_execute")
            def dying(_connection, _cursor, statement, *_):
                if statement.startswith("INSERT INTO epochs"):
                    die()
    ledger.record(0, [Report(n, epoch, EpochMetrics(1, 1, 1, 1, 1)) for n in range(200)])
    if epoch == when:
        die()
"""


@pytest.mark.parametrize(
    ("where", "kept"),
    [("within the transaction", 2), ("before the commit", 2), ("after the commit", 3)],
)
def test_a_killed_writer_leaves_whole_epochs(path, where, kept):
    """Whenever the process is killed, an epoch of the pack is there whole or not at all."""
    killed = run_python(WRITE_UNTIL_KILLED, path, where, 3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with closing(Ledger.open(path)) as reader:
        epochs = [(n, epoch) for n, epoch, _ in reader.epochs()]
        assert epochs == [(n, epoch) for n in range(200) for epoch in range(1, kept + 1)]
        assert {trial.state for trial in reader.trials()} == {State.RUNNING}


READ = """
import pathlib, sys
from tune_softmax.ledger import Ledger
ledger = Ledger.open(pathlib.Path(sys.argv[1]))
print(len(ledger.trials()), len(ledger.epochs()))
ledger.close()
"""


def test_another_process_reads_while_this_one_writes(ledger, path):
    """A reader sees what is committed, even in the middle of a transaction."""
    ledger.hand_out(0, {0: CONFIG})
    with ledger._storage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trials")
        done = run_python(READ, path)
        assert done.stdout == "1 0\n", done.stderr
        connection.rollback()


def test_a_closed_ledger_is_one_plain_file(ledger, path):
    """What lies beside the file while it is written is gone once it is closed."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == ["run.db"]


def test_a_reader_does_not_keep_the_writer_from_closing(ledger, path):
    """The writer closes in peace, and the reader goes on reading."""
    ledger.hand_out(0, {0: CONFIG})
    with closing(Ledger.open(path)) as reader:
        assert len(reader.trials()) == 1
        ledger.close()
        assert len(reader.trials()) == 1
    with closing(Ledger.open(path)) as reader:
        assert len(reader.trials()) == 1


def test_a_ledger_in_a_read_only_folder_is_read_without_a_trace(ledger, path, monkeypatch):
    """SQLite makes no file beside the ledger, and may not write."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.close()
    monkeypatch.setattr(sqlite_file.os, "access", lambda *_: False)
    before = path.stat()
    with closing(Ledger.open(path)) as reader:
        assert len(reader.trials()) == 1
        assert [file.name for file in path.parent.iterdir()] == ["run.db"]
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with (
        closing(Ledger.open(path, writable=True)) as writer,
        pytest.raises(StorageError, match="give write access"),
    ):
        writer.event("ended")


def test_a_killed_run_in_a_read_only_folder_shows_all_that_was_committed(path, monkeypatch):
    """What is in the write-ahead log counts where the log cannot be merged into the file."""
    assert run_python(WRITE_UNTIL_KILLED, path, "after the commit", 1).returncode == -9
    monkeypatch.setattr(sqlite_file.os, "access", lambda *_: False)
    with closing(Ledger.open(path)) as reader:
        assert (len(reader.trials()), len(reader.epochs())) == (200, 200)


def test_a_reader_may_not_write(ledger, path):
    """Only a ledger that was opened for writing takes anything."""
    with closing(Ledger.open(path)) as reader, pytest.raises(StorageError, match="readonly"):
        reader.event("ended")
    assert ledger.events() == []


# What is refused


def test_a_full_disk_is_a_storage_error_and_loses_nothing(ledger):
    """Exit code 4; what was committed is there, and writing goes on once there is room."""
    ledger.hand_out(0, {0: CONFIG})
    with ledger._storage.engine.connect() as connection:
        num_pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={num_pages}")
    with pytest.raises(StorageError, match="'database or disk is full'; make room") as caught:
        ledger.event("text", long="x" * 10_000)
    assert caught.value.exit_code == 4
    assert len(ledger.trials()) == 1
    with ledger._storage.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={num_pages + 10}")
    ledger.event("text", long="x" * 10_000)
    assert len(ledger.events()) == 1


def test_a_ledger_is_not_made_where_one_is(ledger, path):
    """The first run's ledger stays as it is."""
    ledger.hand_out(0, {0: CONFIG})
    with pytest.raises(ResultsError, match="there is a run already; resume it or choose another"):
        Ledger.create(path, {})
    assert len(ledger.trials()) == 1


def test_a_ledger_is_not_made_where_there_is_no_folder(path):
    """A file that cannot be made is a storage error."""
    with pytest.raises(StorageError, match="nowhere: cannot write there .*No such file"):
        Ledger.create(path.parent / "nowhere" / "run.db", {})


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_file_is_no_ledger(tmp_path, name):
    """A missing file is named and not made, and a folder is no ledger."""
    with pytest.raises(ResultsError, match="no ledger there; name the folder of a run") as caught:
        Ledger.open(tmp_path / name)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>" * 100, "not a database"),
        (b"SQLite format 3\0" + bytes(2000), "not a database"),
    ],
)
def test_a_file_of_another_kind_is_damaged(path, content, reason):
    """Exit code 5, with SQLite's own reason."""
    path.write_bytes(content)
    with pytest.raises(DamagedRunError, match=f"{reason}.*; restore the folder") as caught:
        Ledger.open(path)
    assert caught.value.exit_code == 5
    assert path.read_bytes() == content


# SQL that harms a sound ledger, how it is read then, and the reason given.
HARMS = [
    ("DROP TABLE trials", "no such table: trials"),
    ("DROP TABLE epochs", "no such table: epochs"),
    ("DROP TABLE events", "no such table: events"),
    ("DROP TABLE meta", "no such table: meta"),
    ("ALTER TABLE epochs DROP COLUMN train_loss", "no such column"),
    ("DELETE FROM meta", "names no schema version"),
    ("UPDATE trials SET state = 'DONE'", "table trials, number 0: .*'DONE' is not a valid State"),
    ("UPDATE trials SET config = '{'", "table trials, number 0: cannot be read"),
    ("UPDATE trials SET config = '[]'", "table trials, number 0: cannot be read"),
    ("UPDATE trials SET config = '{\"lr\": 1}'", "unexpected keyword argument 'lr'"),
    ("UPDATE trials SET config = 7", "table trials, number 0: cannot be read"),
    ("UPDATE trials SET config = CAST(x'ff' AS TEXT)", "Could not decode to UTF-8"),
    ("UPDATE trials SET pack = 'first'", "table trials, number 0: cannot be read"),
    ("UPDATE epochs SET train_loss = 'low'", "table epochs, number 0, epoch 1: .*could not convert string"),
    ("UPDATE epochs SET epoch = 'one'", "table epochs, number 0, epoch one: cannot be read"),
    ("UPDATE events SET detail = 'x'", "table events, id 1: cannot be read"),
]


@pytest.mark.parametrize(("harm", "reason"), HARMS)
def test_a_harmed_ledger_says_what_is_wrong(ledger, path, harm, reason):
    """Every contradiction within the file is a damaged run, in one line."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1))
    ledger.event("started")
    ledger.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(harm)
    with pytest.raises(DamagedRunError, match=reason) as caught:
        read_whole(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["3", "0", "x"])
def test_another_schema_asks_for_the_version_that_wrote_it(ledger, path, version):
    """A ledger of another version is no damage, and is left alone."""
    ledger.close()
    checksum = zlib.crc32(f'["schema_version","{version}"]'.encode())
    change = f"UPDATE meta SET value = '{version}', checksum = {checksum}"
    execute(path, f"{change} WHERE key = 'schema_version'")
    with pytest.raises(ResultsError, match=f"schema version {version}, this .* reads 1 to 2") as caught:
        Ledger.open(path)
    assert caught.value.exit_code == 2


def test_a_cut_or_altered_file_is_read_or_refused_but_never_fails_otherwise(ledger, path):
    """Of 200 files cut short or with one bit turned over, each gives values or our error."""
    ledger.hand_out(0, dict.fromkeys(range(20), CONFIG))
    for epoch in range(1, 6):
        ledger.record(0, reports(range(20), epoch))
    ledger.event("started")
    ledger.close()
    whole = path.read_bytes()
    draw = random.Random(0)  # noqa: S311 - which damage, no secret
    num_refused = 0
    for case in range(200):
        data = bytearray(whole)
        place = draw.randrange(len(data))
        if case % 4:
            data[place] ^= 1 << draw.randrange(8)
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            read_whole(path)
        except ResultsError as error:
            num_refused += 1
            assert error.exit_code in {2, 5}, error  # noqa: PT017 - both ways out are right
    assert 50 <= num_refused < 200


def read_whole(path):
    """Read everything in a ledger."""
    with closing(Ledger.open(path)) as reader:
        return reader.trials(), reader.epochs(), reader.events()
