"""The ledger in a SQLite file: what is lost or altered is recovered or named, never ignored."""

import functools
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError
from tune_softmax.metrics import EpochMetrics, FinalTest, Report, State
from tune_softmax.run import sqlite
from tune_softmax.run.ledger import Ledger

CONFIG = Config(batch_size=64, num_epochs=5, learning_rate=0.1)
NUM_TRIALS = 12


@pytest.fixture
def path(tmp_path):
    """Return where a ledger goes."""
    return tmp_path / "run.db"


@pytest.fixture
def ledger(path):
    """Return a new ledger, open for writing."""
    with closing(Ledger.create(path, {"dataset_checksum": "abc"})) as ledger:
        yield ledger


def reports(epoch, state=State.RUNNING):
    """Return one epoch of every trial."""
    return [
        Report(n, epoch, EpochMetrics(1 / (n + epoch), 0.5, 1.0, 0.25, 0.125), state, 1)
        for n in range(NUM_TRIALS)
    ]


def write(ledger, num_epochs=5):
    """Write trials, epochs, events and a test-set result."""
    ledger.event("started")
    ledger.hand_out(0, dict.fromkeys(range(NUM_TRIALS), CONFIG))
    for epoch in range(1, num_epochs):
        ledger.record(0, reports(epoch))
    test = FinalTest(0.5, 0.75, ((3, 1), (0, 4)))
    last = [Report(0, num_epochs, EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.1), State.COMPLETE, 1)]
    ledger.record(0, [*last, *reports(num_epochs, State.PRUNED)[1:]])
    ledger.hand_out(1, {NUM_TRIALS: CONFIG})
    final = Report(NUM_TRIALS, 1, EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.1), State.COMPLETE, test=test)
    ledger.record(1, [final])
    ledger.event("ended", reason="finished")


def read_whole(path, *, writable=False):
    """Read everything in a ledger."""
    with closing(Ledger.open(path, writable=writable)) as reader:
        meta, tests = reader.meta(), reader.test_results()
        return meta, reader.trials(), reader.epochs(), tests, reader.events()


def die():
    """Be gone at once, as after a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder):
    """Return what is in a folder."""
    return sorted(file.name for file in folder.iterdir())


# One plain file, and what lies beside it meanwhile


def test_a_closed_ledger_is_one_plain_file(ledger, path):
    """What lies beside the file while it is written is gone once it is closed."""
    write(ledger)
    assert names(path.parent) == ["run.db", "run.db-commits", "run.db-shm", "run.db-wal"]
    ledger.close()
    assert names(path.parent) == ["run.db"]


def test_a_reader_does_not_keep_the_writer_from_closing(ledger, path):
    """The writer closes in peace, the reader goes on reading, and the next one misses nothing."""
    write(ledger)
    with closing(Ledger.open(path)) as reader:
        assert len(reader.trials()) == NUM_TRIALS + 1
        with reader.snapshot():
            assert len(reader.trials()) == NUM_TRIALS + 1
            ledger.close()
        assert len(reader.trials()) == NUM_TRIALS + 1
    assert len(read_whole(path)[1]) == NUM_TRIALS + 1
    assert "run.db-commits" in names(path.parent)
    read_whole(path, writable=True)
    assert names(path.parent) == ["run.db"]


def test_readers_take_nothing_for_a_loss_while_writers_come_and_go(path):
    """Whatever of the files beside the ledger they meet, they see all that was committed."""
    Ledger.create(path, {}).close()
    num_events = 0

    def come_and_go():
        nonlocal num_events
        for _ in range(15):
            with closing(Ledger.open(path, writable=True)) as writer:
                writer.event("again")
                num_events += 1

    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(come_and_go)
        num_readings = 0
        while not writing.done():
            before = num_events
            with closing(Ledger.open(path)) as reader:
                assert len(reader.events()) >= before
            num_readings += 1
        writing.result()
    assert num_readings > 15
    assert len(read_whole(path)[4]) == num_events == 15


# Places that may not be written


@pytest.fixture
def disk(tmp_path):
    """Return a file system of 1 MB of its own, and the function that mounts it anew."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder],  # noqa: S607
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")

    mount("size=1m")
    try:
        yield folder, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


def test_a_closed_ledger_on_a_read_only_disk_is_read(disk):
    """SQLite need not make a file beside it; and to write is refused."""
    folder, remount = disk
    with closing(Ledger.create(folder / "run.db", {})) as ledger:
        write(ledger)
    before = read_whole(folder / "run.db")
    remount("ro")
    assert read_whole(folder / "run.db") == before
    with pytest.raises(StorageError, match="give write access") as caught:
        Ledger.open(folder / "run.db", writable=True)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("left", [["run.db-shm"], []], ids=["with -shm", "without -shm"])
def test_a_killed_run_on_a_read_only_disk_shows_all_that_was_committed(disk, in_child, left):
    """The write-ahead log counts, though it cannot be merged into the file."""
    folder, remount = disk
    path = folder / "run.db"

    def write_and_die():
        write(Ledger.create(path, {}))
        die()

    assert in_child(write_and_die) == -signal.SIGKILL
    if not left:
        (folder / "run.db-shm").unlink()
    remount("ro")
    assert len(read_whole(path)[2]) == NUM_TRIALS * 5 + 1
    with closing(Ledger.open(path)) as reader:
        assert reader.contents().faults == []
    assert names(folder) == ["run.db", "run.db-commits", *left, "run.db-wal"]


def test_a_disk_that_fills_up_is_a_storage_error_and_loses_nothing(disk):
    """Exit code 4; what was committed is there, and writing goes on once there is room."""
    folder, _ = disk
    path = folder / "run.db"
    ballast = folder / "ballast"
    ledger = Ledger.create(path, {})
    ledger.hand_out(0, dict.fromkeys(range(NUM_TRIALS), CONFIG))
    ballast.write_bytes(bytes(500_000))
    with pytest.raises(StorageError, match=r"disk is full.*; make room") as caught:
        record_without_end(ledger)
    num_epochs = len(ledger.epochs()) // NUM_TRIALS
    assert caught.value.exit_code == 4
    assert num_epochs
    assert len(read_whole(path)[2]) == NUM_TRIALS * num_epochs
    ledger.close()  # as a search does that ends by this error
    assert len(read_whole(path)[2]) == NUM_TRIALS * num_epochs
    ballast.unlink()
    with closing(Ledger.open(path, writable=True)) as ledger:
        ledger.record(0, reports(num_epochs + 1))
        assert ledger.contents().faults == []
    assert len(read_whole(path)[2]) == NUM_TRIALS * (num_epochs + 1)


def test_a_file_that_may_not_grow_is_a_storage_error_and_loses_nothing(ledger, path):
    """Exit code 4; what was committed is there, and writing goes on once that is allowed."""
    ledger.hand_out(0, dict.fromkeys(range(NUM_TRIALS), CONFIG))
    with (
        small_files(),
        pytest.raises(StorageError, match=r"disk I/O error.*; make room or give") as caught,
    ):
        record_without_end(ledger)
    assert caught.value.exit_code == 4
    num_epochs = len(read_whole(path)[2]) // NUM_TRIALS
    assert num_epochs
    ledger.record(0, reports(num_epochs + 1))
    ledger.close()
    assert len(read_whole(path)[2]) == NUM_TRIALS * (num_epochs + 1)


def record_without_end(ledger):
    """Record one epoch after the other."""
    for epoch in itertools.count(1):
        ledger.record(0, reports(epoch))


@contextmanager
def small_files():
    """Let no file of this process grow beyond 200 kB."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_ledger_is_not_made_where_there_is_no_folder(path):
    """A file that cannot be made is a storage error."""
    with pytest.raises(StorageError, match=r"nowhere: cannot write there .*No such file"):
        Ledger.create(path.parent / "nowhere" / "run.db", {})


# Files that are no ledger


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>" * 100, "not a database"),
        (b"SQLite format 3\0" + bytes(2000), "not a database"),
    ],
)
def test_a_file_of_another_kind_is_damaged(path, content, reason):
    """Exit code 5, with SQLite's own reason; and it stays as it is."""
    path.write_bytes(content)
    for writable in (False, True):
        with pytest.raises(DamagedRunError, match=f"{reason}.*; restore the folder"):
            Ledger.open(path, writable=writable)
    assert path.read_bytes() == content


def test_a_search_that_was_killed_before_it_wrote_has_lost_nothing(path, in_child, monkeypatch):
    """The message says so, and it is no damage."""

    def die_at_once(*_):
        die()

    monkeypatch.setattr("tune_softmax.run.ledger.make_tables", die_at_once)
    assert in_child(Ledger.create, path, {}) == -signal.SIGKILL
    for writable in (False, True):
        with pytest.raises(ResultsError, match="killed before its first trial: remove") as caught:
            Ledger.open(path, writable=writable)
        assert caught.value.exit_code == 2


def test_a_text_that_is_no_text_is_damage(ledger, path):
    """Bytes that are not UTF-8 are SQLite's to refuse, in our words."""
    write(ledger)
    ledger.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE trials SET config = CAST(x'ff' AS TEXT)")
    with pytest.raises(DamagedRunError, match="a row is damaged, its text cannot be decoded"):
        read_whole(path)


def test_a_message_holds_no_bytes_of_a_damaged_row(ledger, path):
    """They might be anything, also what a terminal obeys."""
    write(ledger)
    ledger.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE events SET detail = CAST(x'ff1b5b324a736563726574' AS TEXT)")
    with closing(Ledger.open(path)) as reader, pytest.raises(DamagedRunError) as caught:
        reader.events()
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


def test_a_lock_of_another_process_is_waited_for_and_named(ledger, path, monkeypatch):
    """It is no reason to make room; the advice is to wait."""
    ledger.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", functools.partial(connect, timeout=0.1))
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError) as caught:
            read_whole(path)
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        f"{path}: another process has the file locked; wait until it has ended, or stop it, then "
        "repeat the command"
    )
    read_whole(path)


# Damage


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """Return the files of a ledger that was closed, and what it holds."""
    path = tmp_path_factory.mktemp("closed") / "run.db"
    with closing(Ledger.create(path, {"dataset_checksum": "abc"})) as ledger:
        write(ledger)
    return contents_of(path.parent), read_whole(path)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the files of a ledger whose writer was killed, and what it holds.

    Part of it is in the file, the rest in the write-ahead log, behind whose end are older pages.
    """
    path = tmp_path_factory.mktemp("killed") / "run.db"

    ledger = Ledger.create(path, {"dataset_checksum": "abc"})
    ledger.event("long", text="x" * 50_000)
    ledger.hand_out(9, {99: CONFIG})
    with closing(ledger._storage.engine.raw_connection()) as connection:
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
    write(ledger)
    files, expected = contents_of(path.parent), read_whole(path)
    ledger.close()
    return files, expected


def contents_of(folder):
    """Return every file's bytes by name, as they are at this moment."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def truncated(share):
    """Return what cuts a file to a share of its length."""
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def flipped(seed):
    """Return what turns one bit of a file over, at a place drawn from the seed."""

    def flip(path):
        draw = random.Random(seed)  # noqa: S311 - which damage, no secret
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)

    return flip


def replaced(path):
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def overwritten(path):
    """Write garbage over a file's header."""
    data = path.read_bytes()
    path.write_bytes(random.Random(0).randbytes(100)[: len(data)] + data[100:])  # noqa: S311


DAMAGES = {
    **{f"cut to {share:.0%}": truncated(share) for share in (0, 0.25, 0.5, 0.75, 0.99)},
    "deleted": Path.unlink,
    "replaced by a folder": replaced,
    "garbage in the header": overwritten,
}


def suffer(state, folder, name, damage):
    """Damage one file of a ledger; return in which of the ways of use the loss was named.

    What is not named must be there, all of it.
    """
    files, expected = state
    named = []
    for writable in (False, True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        damage(folder / name)
        try:
            found = read_whole(folder / "run.db", writable=writable)
        except ResultsError as error:
            assert error.exit_code in {2, 5}, error  # noqa: PT017 - both ways out are right
            assert str(error).startswith(str(folder / "run.db"))  # noqa: PT017
            named.append(writable)
        else:
            assert found == expected
    return named


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_closed_run_is_named(closed, tmp_path, damage):
    """There is no other copy of what is in it."""
    assert suffer(closed, tmp_path / "run", "run.db", DAMAGES[damage]) == [False, True]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.db", "run.db-wal", "run.db-commits"])
def test_a_damaged_file_of_a_killed_run_is_named(killed, tmp_path, name, damage):
    """Above all a cut write-ahead log, of which SQLite says nothing.

    Only the file itself may be cut where the log holds the newer pages, or where none are.
    """
    named = suffer(killed, tmp_path / "run", name, DAMAGES[damage])
    if name != "run.db":
        assert named == [False, True]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_of_the_log_is_made_anew(killed, tmp_path, damage):
    """SQLite needs nothing of the -shm file; only a folder in its place is in the way."""
    named = suffer(killed, tmp_path / "run", "run.db-shm", DAMAGES[damage])
    assert named == ([False, True] if damage == "replaced by a folder" else [])


def test_a_killed_run_whose_side_files_are_all_gone_is_named(killed, tmp_path):
    """The file alone knows that it is not all."""

    def alone(path):
        for suffix in ("-wal", "-shm", "-commits"):
            path.with_name(path.name + suffix).unlink()

    assert suffer(killed, tmp_path / "run", "run.db", alone) == [False, True]


@pytest.mark.parametrize(
    "seeds",
    [range(40), pytest.param(range(40, 500), marks=pytest.mark.slow)],
    ids=["40 places", "460 more"],
)
@pytest.mark.parametrize("name", ["run.db", "run.db-wal", "run.db-commits", "closed run.db"])
def test_a_bit_that_turns_over_changes_nothing_in_silence(closed, killed, tmp_path, name, seeds):
    """Wherever it is, what is read is what was written, or it is said that it is not."""
    state = closed if name == "closed run.db" else killed
    named = sum(
        bool(suffer(state, tmp_path / "run", name.split()[-1], flipped(f"{name} {seed}")))
        for seed in seeds
    )
    assert named >= len(seeds) / 10  # or the bits turned over were of no consequence


def test_damage_beside_damage_is_not_hidden(killed, tmp_path):
    """A count beside the log that cannot be read does not hide that the log was cut."""

    def both(path):
        os.truncate(path, path.stat().st_size // 2)
        path.with_name("run.db-commits").write_bytes(b"")

    assert suffer(killed, tmp_path / "run", "run.db-wal", both) == [False, True]


# The end that is lost, and going on without it


@pytest.fixture
def cut(tmp_path):
    """Return the ledger of a killed run whose log lost its last third, and the whole contents."""
    path = tmp_path / "whole" / "run.db"
    path.parent.mkdir()
    with closing(Ledger.create(path, {"dataset_checksum": "abc"})) as ledger:
        write(ledger)
        folder = shutil.copytree(path.parent, tmp_path / "run")
    log = folder / "run.db-wal"
    os.truncate(log, log.stat().st_size * 2 // 3)
    return folder / "run.db", read_whole(path)


def test_a_lost_end_is_counted_and_the_way_on_is_named(cut):
    """So many transactions of so many, of which file, and which command gives them up."""
    path, _ = cut
    with pytest.raises(DamagedRunError) as caught:
        Ledger.open(path)
    message = str(caught.value)
    assert re.match(rf"{path}: holds \d of 11 transactions, the last \d are lost with", message)
    assert "with the end of run.db-wal; restore the folder from a copy, or" in message
    assert message.endswith(f"after `tune-softmax check {path.parent} --accept-loss`")


def test_a_lost_end_that_is_accepted_leaves_what_was_before_it(cut):
    """The ledger is a sound earlier one then, and an event says how much is gone."""
    path, whole = cut
    Ledger.accept_loss(path)
    assert names(path.parent) == ["run.db"]
    meta, trials, epochs, _, events = read_whole(path)
    *before, (_, kind, detail) = events
    assert (kind, list(detail)) == ("loss_accepted", ["transactions"])
    assert 0 < detail["transactions"] < 11
    assert (meta, before) == (whole[0], whole[4][: len(before)])
    assert 0 < len(epochs) < len(whole[2])
    assert set(epochs) <= set(whole[2])
    assert {t.state for t in trials} == {State.RUNNING}
    with closing(Ledger.open(path, writable=True)) as ledger:
        assert ledger.hand_out(10, {0: CONFIG}) == {0: 2}


def test_a_count_that_is_gone_is_accepted_too(killed, tmp_path):
    """Nobody knows then whether anything is lost; the event says that."""
    files, whole = killed
    for name, content in files.items():
        if name != "run.db-commits":
            (tmp_path / name).write_bytes(content)
    Ledger.accept_loss(tmp_path / "run.db")
    found = read_whole(tmp_path / "run.db")
    assert found[:4] == whole[:4]
    assert found[4][-1][1:] == ("loss_accepted", {"transactions": None})


def test_to_accept_a_loss_where_none_is_changes_nothing(closed, tmp_path):
    """No event, no other byte."""
    files, whole = closed
    path = tmp_path / "run.db"
    path.write_bytes(files["run.db"])
    Ledger.accept_loss(path)
    assert read_whole(path) == whole


def test_other_damage_is_not_accepted(closed, tmp_path):
    """Rows that are altered or gone are no lost end."""
    files, _ = closed
    path = tmp_path / "run.db"
    path.write_bytes(files["run.db"])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM epochs WHERE epoch = 5")
    with pytest.raises(DamagedRunError, match="table epochs: has"):
        Ledger.accept_loss(path)


def test_every_commit_is_counted_beside_the_log(ledger, path):
    """The count is that of the ledger's own seal, of one length, and follows every transaction."""
    counter = path.with_name("run.db-commits")
    numbers = []
    for kind in ("one", "two"):
        ledger.event(kind)
        with ledger._storage.engine.connect() as connection:
            commits = connection.exec_driver_sql("SELECT commits FROM seal").scalar_one()
        content = counter.read_bytes()
        assert len(content) == 30
        assert int(content[:20]) == commits
        numbers.append(commits)
    assert numbers == [2, 3]
    ledger.record(0, [])  # writes nothing
    assert int(counter.read_bytes()[:20]) == 3


def test_a_transaction_that_fails_is_not_counted(ledger, path):
    """A reader would miss it otherwise."""
    write(ledger)

    def fail(*_):
        raise sqlite3.OperationalError("disk I/O error")

    before = path.with_name("run.db-commits").read_bytes()
    sa.event.listen(ledger._storage.engine, "commit", fail)
    with pytest.raises(sqlite3.OperationalError):
        ledger.event("lost")
    assert path.with_name("run.db-commits").read_bytes() == before
    sa.event.remove(ledger._storage.engine, "commit", fail)
    assert ledger.events()[-1][1] == "ended"
    assert read_whole(path)[4][-1][1] == "ended"
    assert sqlite.SqliteFile(path, writable=False).loss(11) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            (
                "ALTER TABLE epochs RENAME TO other; CREATE VIEW epochs AS WITH RECURSIVE n(x) AS "
                "(SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS number FROM n"
            ),
            "view 'epochs'",
        ),
        (
            "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM trials; END",
            "trigger 't'",
        ),
        (
            "ALTER TABLE trials ADD COLUMN x GENERATED ALWAYS AS (zeroblob(1000000000))",
            "computed column 'x'",
        ),
    ],
)
def test_what_no_ledger_holds_is_damage(ledger, path, change, named):
    """A stranger's file must not run what is in it: some of it would never end."""
    write(ledger)
    ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    for writable in (False, True):
        with pytest.raises(DamagedRunError, match=f"holds the {named}, which no ledger does"):
            Ledger.open(path, writable=writable)


def test_a_journal_that_names_another_file_is_damage(ledger, path):
    """SQLite would delete the file that such a journal names."""
    write(ledger)
    ledger.close()
    victim = path.with_name("victim")
    victim.write_text("mine\n")
    name, magic = str(victim).encode(), bytes.fromhex("d9d505f920a163d7")
    header = magic + (0).to_bytes(4) + bytes(4) + (1).to_bytes(4) + (512).to_bytes(4)
    end = name + len(name).to_bytes(4) + sum(name).to_bytes(4) + magic
    path.with_name("run.db-journal").write_bytes(header.ljust(512, b"\0") + bytes(4) + end)
    with pytest.raises(DamagedRunError, match="journal: names another file"):
        Ledger.open(path, writable=True)
    assert victim.exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", "-commits"])
def test_a_link_beside_the_file_is_damage(ledger, path, suffix):
    """SQLite would write through it."""
    write(ledger)
    ledger.close()
    path.with_name(f"run.db{suffix}").symlink_to(path.with_name("victim"))
    with pytest.raises(DamagedRunError, match=f"{suffix}: must be a file"):
        Ledger.open(path)
    assert not path.with_name("victim").exists()
