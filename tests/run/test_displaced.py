"""A ledger that is deleted, moved or overwritten while it is written: said at once, and saved."""

import re
import shlex
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
import run_folders

from tune_softmax.errors import StorageError
from tune_softmax.metrics import State
from tune_softmax.run.check import check
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.results import load


@pytest.fixture
def writing(tmp_path):
    """Return a run with two complete trials, and its ledger, open for writing."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    run_folders.train(ledger, range(2))
    yield folder.path, ledger
    with suppress(StorageError):
        ledger.close()


def refused(ledger):
    """Return the message that stops the writer, and stops it again."""
    messages = []
    for _again in range(2):
        with pytest.raises(StorageError) as caught:
            run_folders.train(ledger, [2], pack=1)
        assert caught.value.exit_code == 4
        messages.append(str(caught.value))
    ledger.close()
    assert messages[0] == messages[1]
    return messages[0]


def resumed(message):
    """Return the run that the advice names."""
    (line,) = re.findall(r"go on with `tune-softmax resume (.*)`$", message)
    (path,) = shlex.split(line)
    return Path(path)


def assert_whole(run):
    """Hold a run to what was committed, and go on with it."""
    assert load(run).count(State.COMPLETE) == 2
    with closing(Ledger.open(run / "run.db", writable=True)) as ledger:
        run_folders.train(ledger, [2], pack=1)
    assert check(run).num_trials == 3


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made anew"])
def test_what_was_deleted_is_saved_beside_it(writing, again):
    """The process still holds all that was committed; another run in its place stays whole."""
    run, ledger = writing
    shutil.rmtree(run)
    if again:
        run_folders.finished(run, num_trials=5)
    message = refused(ledger)
    assert message.startswith(f"{run}/run.db: was deleted while this process wrote it; what is ")
    assert resumed(message) == run.with_name("run-rescued")
    assert_whole(resumed(message))
    if again:
        assert check(run).num_trials == 5
    else:
        assert not run.exists()


def test_another_rescue_takes_another_name(writing):
    """Nothing that is there is written over."""
    run, ledger = writing
    run.with_name("run-rescued").mkdir()
    shutil.rmtree(run)
    assert resumed(refused(ledger)) == run.with_name("run-rescued-2")


def test_what_was_moved_is_kept_where_it_is(writing):
    """The folder's new place is named, and nothing is copied."""
    run, ledger = writing
    run.rename(run.with_name("a new place"))
    message = refused(ledger)
    assert message.startswith(f"{run}: was moved to {run.with_name('a new place')} while this ")
    assert resumed(message) == run.with_name("a new place")
    assert_whole(resumed(message))
    assert [path.name for path in run.parent.iterdir()] == ["a new place"]


def test_a_ledger_that_was_moved_alone_is_saved(writing):
    """What is in its log is not with it."""
    run, ledger = writing
    (run / "run.db").rename(run.parent / "elsewhere.db")
    message = refused(ledger)
    assert message.startswith(f"{run}/run.db: was moved while this process wrote it; what is done")
    assert_whole(resumed(message))


def test_a_ledger_that_was_overwritten_is_left_alone(writing, tmp_path):
    """What it held is lost; what is there now is somebody's, and not written over."""
    run, ledger = writing
    other = run_folders.finished(tmp_path / "other", num_trials=4)
    shutil.copyfile(other.ledger, run / "run.db")
    message = refused(ledger)
    assert message.startswith(f"{run}/run.db: was overwritten while this process wrote it, and ")
    assert "restore the folder from a copy" in message
    assert (run / "run.db").read_bytes() == other.ledger.read_bytes()


def test_what_cannot_be_saved_is_said_to_be_lost(writing):
    """With the reason."""
    run, ledger = writing
    shutil.rmtree(run)
    run.with_name("run-rescued").touch()
    for count in range(2, 1000):
        run.with_name(f"run-rescued-{count}").touch()
    message = refused(ledger)
    assert "what it held is lost" in message
    assert "cannot save the run there" in message


def test_a_touched_ledger_is_in_place(writing):
    """Only its times have changed."""
    run, ledger = writing
    (run / "run.db").touch()
    run_folders.train(ledger, [2], pack=1)
    (run / "run.db").touch()
    run_folders.train(ledger, [3], pack=2)
    ledger.close()
    assert check(run).num_trials == 4


def test_a_checkpoint_of_another_process_is_no_overwriting(writing):
    """A tool that copies SQLite files all the time brings the log into the file."""
    run, ledger = writing
    with closing(sqlite3.connect(run / "run.db")) as other:
        (busy, pages, moved) = other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        assert not busy
        assert pages == moved > 0
        run_folders.train(ledger, [2], pack=1)
    ledger.close()
    assert check(run).num_trials == 3


def test_a_long_run_is_in_place_all_the_time(writing):
    """SQLite writes the file itself now and then, which is no reason to stop."""
    run, ledger = writing
    before = (run / "run.db").stat().st_mtime_ns
    for number in range(2, 40):
        run_folders.train(ledger, [number], pack=number)
        ledger.event("note", text="x" * 300_000)
    assert (run / "run.db").stat().st_mtime_ns > before, "no checkpoint has come"
    ledger.close()
    assert check(run).num_trials == 40
