"""Copies during a search: when they are made, and that nothing they meet harms the run."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import run_folders
import s3_server

from tune_softmax.export import copies
from tune_softmax.export.copy_list import read_list
from tune_softmax.export.stores import Store
from tune_softmax.export.sync import _Syncer, syncing
from tune_softmax.metrics import State
from tune_softmax.run import results
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies import search


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Let copies take what they need of the processor, and be tried again soon."""
    monkeypatch.setattr("tune_softmax.export.sync.MAX_SHARE", 1.0)
    monkeypatch.setattr("tune_softmax.export.sync.FIRST_RETRY_S", 0.01)


@pytest.fixture
def shelf(tmp_path):
    """Return a store in a folder."""
    return Store.at(f"file://{tmp_path}/shelf")


@pytest.fixture
def proxy():
    """Return a proxy before the real S3 server that hands everything on, for now."""
    with s3_server.Proxy().running() as running:
        yield running


@pytest.fixture
def s3(monkeypatch, proxy):
    """Return a store in a bucket of its own, reached through the proxy."""
    s3_server.use(monkeypatch, proxy.url)
    return Store.at(f"s3://{s3_server.new_bucket()}/x")


def listed(store):
    """Return the names of the copies in a store, the newest first."""
    found = read_list(store)
    return [] if found is None else [copy.folder for copy in found.copies]


def wait_for(condition, timeout_s=20):
    """Wait until something is so, and return what it is."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
    return value


def back(store, path):
    """Fetch the newest copy and return its trials' numbers."""
    copies.fetch(store, path, report=pytest.fail)
    with closing(Ledger.open(path / "run.db")) as ledger:
        return [trial.number for trial in ledger.trials()]


def contents(path):
    """Return every file of a folder and what is in it."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_copy_is_made_when_the_ledger_has_changed(tmp_path, shelf):
    """Not before, and not again while it stays as it is."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with closing(ledger), syncing(folder, shelf, report=said.append, interval_s=0.02):
        first = wait_for(lambda: listed(shelf))
        time.sleep(0.3)
        assert listed(shelf) == first
        run_folders.train(ledger, range(2))
        second = wait_for(lambda: (now := listed(shelf)) != first and now)
        assert len(second) == 2
        assert said == []
    assert len(said) == 1
    assert said[0].startswith(f"copied to {shelf.url}: ")


def test_the_last_copy_holds_the_end(tmp_path, shelf):
    """However long the interval, what was written last is in the store."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with closing(ledger), syncing(folder, shelf, report=said.append):
        run_folders.train(ledger, range(4))
        folder.log.write_text("ended\n")
        assert listed(shelf) == []
    assert back(shelf, tmp_path / "back") == [0, 1, 2, 3]
    assert (tmp_path / "back" / "log.txt").read_text() == "ended\n"
    assert said == [f"copied to {shelf.url}: once, the last whole (0.0 MB)"]


def test_the_ledger_is_one_plain_file_afterwards(tmp_path, shelf):
    """The copies leave no reader behind that would keep its log alive."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    with closing(ledger), syncing(folder, shelf, report=print, interval_s=0.01):
        for pack in range(10):
            run_folders.train(ledger, [pack], pack=pack)
        wait_for(lambda: len(listed(shelf)) == 2)
    assert [path.name for path in folder.path.glob("run.db*")] == ["run.db"]


def test_what_the_body_raises_passes_through(tmp_path, shelf):
    """After a last copy of what there is by then."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []

    def interrupted():
        with closing(ledger), syncing(folder, shelf, report=said.append):
            run_folders.train(ledger, range(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert back(shelf, tmp_path / "back") == [0, 1]
    assert len(said) == 1


def test_every_third_upload_may_fail(tmp_path, s3, proxy):
    """Each copy becomes whole all the same."""
    puts = iter(range(1, 10_000))
    proxy.answer = lambda method, _path: 500 if method == "PUT" and not next(puts) % 3 else None
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with closing(ledger), syncing(folder, s3, report=said.append, interval_s=0.02):
        for pack in range(2):
            before = listed(s3)
            run_folders.train(ledger, [pack], pack=pack)
            wait_for(lambda before=before: listed(s3) != before)
    assert back(s3, tmp_path / "back") == [0, 1]
    assert sum(status == 500 for *_, status in proxy.requests) >= 4
    assert said[0].startswith("copied to")


def test_a_store_that_comes_back_is_used_again(tmp_path, s3, proxy, caplog):
    """The trouble and its end are in the log, once each, and the end is whole."""
    proxy.answer = lambda _method, _path: 403
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with (
        caplog.at_level(logging.INFO, "tune_softmax"),
        closing(ledger),
        syncing(folder, s3, report=said.append, interval_s=0.1),
    ):
        wait_for(lambda: len(proxy.requests) >= 4)
        proxy.answer = lambda _method, _path: None
        wait_for(lambda: "copies are made again" in caplog.messages)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in warnings if "a copy could not be made" in line]) == 1
    assert "access denied" in warnings[0]
    assert said[0].startswith("copied to")


def test_a_failed_sync_leaves_the_run_untouched(tmp_path, s3, proxy):
    """The folder is as without it; the report says what is there, why, and what to do."""
    proxy.answer = lambda _method, _path: 403
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    began = time.monotonic()
    run_folders.train(ledger, range(4))
    ledger.close()  # with no reader beside it, which would leave it a write-ahead log
    before = contents(folder.path)
    with syncing(folder, s3, report=said.append, interval_s=0.02, last_copy_s=0.5):
        wait_for(lambda: len(proxy.requests) >= 2)
    assert time.monotonic() - began < 10
    assert contents(folder.path) == before
    proxy.answer = lambda _method, _path: None
    assert listed(s3) == []
    (line,) = said
    assert line.startswith(f"there is no copy yet at {s3.url}: {s3.url}: access denied")
    assert line.endswith(f"copy it with: tune-softmax copy {folder.path} {s3.url}")


def test_a_store_lost_on_the_way_keeps_what_it_has(tmp_path, s3, proxy):
    """The report says of when the newest copy is."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with (
        closing(ledger),
        syncing(folder, s3, report=said.append, interval_s=0.02, last_copy_s=0.1),
    ):
        run_folders.train(ledger, range(2))
        wait_for(lambda: listed(s3))
        proxy.answer = lambda _method, _path: 403
        run_folders.train(ledger, range(2, 4), pack=1)
    assert said[0].startswith("the newest copy is of 2")
    proxy.answer = lambda _method, _path: None
    assert back(s3, tmp_path / "back") in ([], [0], [0, 1])


def test_a_defect_of_a_copy_does_not_reach_the_search(tmp_path, shelf):
    """A ledger that has vanished fails the copies alone."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    said = []
    with syncing(folder, shelf, report=said.append, interval_s=0.02, last_copy_s=0.05):
        ledger.close()
        folder.ledger.unlink()
    assert "no ledger there" in said[0]


def test_a_store_may_fail_for_days(tmp_path, shelf):
    """The time between tries grows no further at some point, and stays a number."""
    syncer = _Syncer(run_folders.finished(tmp_path / "run"), shelf, 60.0)
    waits = []
    for syncer._num_failures in (1, 2, 10, 100, 10_000):
        waits.append(syncer._backoff_s())
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2]


SILENT = """
import socket, sys, time, run_folders
from pathlib import Path
from tune_softmax.export import stores
from tune_softmax.export.stores import Store
from tune_softmax.export.sync import syncing
stores.SILENCE_TIMEOUT_S = 1
folder = run_folders.finished(Path(sys.argv[1]))
with syncing(folder, Store.at("s3://bucket/x"), report=print, interval_s=0.01, last_copy_s=1):
    time.sleep(0.5)
    began = time.monotonic()
print("ended after", time.monotonic() - began)
"""


@pytest.mark.slow
def test_a_silent_server_delays_the_end_a_bounded_time(tmp_path, monkeypatch):
    """It takes connections and never answers; the process ends all the same."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        s3_server.use(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        done = subprocess.run(
            [sys.executable, "-c", SILENT, str(tmp_path / "run")],
            cwd=Path(run_folders.__file__).parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert "the store cannot be reached" in done.stdout or "still under way" in done.stdout
    assert float(done.stdout.split("ended after ")[1]) < 20


SEARCH = """
import functools, sys
from tune_softmax.experiment import experiment
from tune_softmax.export import sync
from tune_softmax.export.background import BackgroundTasks
from tune_softmax.studies import search
sync.syncing = functools.partial(sync.syncing, interval_s=0.5)
asked = experiment.parse(sys.stdin.read(), "digits.yaml")
search.search(asked, run_dir=sys.argv[1], background=BackgroundTasks(sync_to=sys.argv[2]))
"""
EXPERIMENT = """
name: digits
dataset: {name: digits, validation: 0.25}
space:
  batch_size: {choice: [16, 32, 64]}
  num_epochs: 200
  learning_rate: {log_uniform: [1e-2, 1]}
search: {num_trials: 8, pack_size: 4, asha: none}
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_whose_machine_is_lost_goes_on_from_its_copy(tmp_path, monkeypatch):
    """Driver killed, folder gone: the copy is fetched, resumed, and loses no finished trial."""
    s3_server.use(monkeypatch, s3_server.server_url())
    store = Store.at(f"s3://{s3_server.new_bucket()}/digits")
    lost = tmp_path / "lost"
    searching = subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(lost), store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        searching.stdin.write(EXPERIMENT.encode())
        searching.stdin.close()
        before = wait_for(lambda: listed(store), timeout_s=120)
        wait_for(lambda: listed(store) != before, timeout_s=120)
    finally:
        os.killpg(searching.pid, signal.SIGKILL)
        searching.wait()
    shutil.rmtree(lost)

    copies.fetch(store, tmp_path / "found", report=pytest.fail)
    found = results.load(tmp_path / "found")
    final = found.trials[found.trials["state"].isin(["COMPLETE", "PRUNED", "FAIL"])]
    assert len(final) < 8
    assert found.epochs["epoch"].max() >= 1
    resumed = search.resume(tmp_path / "found")
    assert resumed.count(State.COMPLETE) == 8
    kept = resumed.trials.set_index("number").loc[final["number"]].reset_index()
    assert kept[final.columns].equals(final.reset_index(drop=True))
