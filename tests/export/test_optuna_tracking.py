"""An Optuna study beside a search: it follows, it is complete, and it harms nothing."""

import threading
import time
from contextlib import closing

import optuna
import pytest
import run_folders
import study_fixtures
from optuna.trial import TrialState, create_trial

from tune_softmax.export import optuna_file
from tune_softmax.export.optuna_tracking import tracking
from tune_softmax.metrics import Report, State
from tune_softmax.run import results
from tune_softmax.run.ledger import Ledger


@pytest.fixture
def folder(tmp_path):
    """Return a run that was stopped, in a folder whose name no URL would take."""
    return study_fixtures.every_kind(tmp_path / "a run?#%41")


def wait_for(condition, timeout_s=20):
    """Wait until something is so, and return what it is."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
    return value


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Let the study take what it needs of the processor."""
    monkeypatch.setattr("tune_softmax.export.optuna_tracking.MAX_SHARE", 1.0)


def test_the_study_follows_the_search(tmp_path):
    """Running trials appear, get their epochs and end; at the end it is what an export is."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    path = optuna_file.default_path(folder)
    said = []
    with closing(ledger), tracking(folder, report=said.append, interval_s=0.01):
        ledger.hand_out(0, {number: run_folders.config(number) for number in range(4)})
        wait_for(lambda: study_fixtures.states(path) == ["RUNNING"] * 4)
        ledger.record(0, [Report(3, 1, run_folders.metrics(3, 1))])
        wait_for(lambda: len(study_fixtures.read(path).trials[3].intermediate_values) == 1)
        run_folders.train(ledger, range(4))
        wait_for(lambda: study_fixtures.states(path) == ["COMPLETE"] * 4)
        run_folders.train(ledger, [4, 5], pack=1, state=State.PRUNED, last=1)
        ledger.hand_out(2, {6: run_folders.config(6)})
        ledger.finish([6], State.WAITING)
        assert said == []
    study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))
    assert said == [f"Optuna study in {path}; see it with: optuna-dashboard sqlite:///{path}"]
    assert [file.name for file in folder.path.glob("*optuna*")] == ["optuna.db"]
    assert [file.name for file in folder.path.glob("run.db*")] == ["run.db"]


def test_a_resumed_search_goes_on_in_the_same_study(folder):
    """A dashboard that has the file open sees it go on, for it is not made anew."""
    path = optuna_file.default_path(folder)
    with tracking(folder, report=print):
        pass
    inode = path.stat().st_ino
    notes = study_fixtures.read(path)
    notes.set_user_attr("note", "written in a dashboard")
    with closing(Ledger.open(folder.ledger, writable=True)) as ledger:
        with tracking(folder, report=print, interval_s=0.01):
            run_folders.train(ledger, [7, 9], pack=5)
        study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))
    assert path.stat().st_ino == inode
    assert study_fixtures.read(path).user_attrs["note"] == "written in a dashboard"


def test_what_the_ledger_lacks_goes_from_the_study(folder):
    """The ledger is the truth, also where its end was lost."""
    path = optuna_file.default_path(folder)
    optuna_file.export(folder, path)
    study_fixtures.read(path).add_trial(create_trial(value=0.5))
    with tracking(folder, report=print):
        pass
    study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))


@pytest.mark.parametrize("content", [b"rubbish", b"", "other"])
def test_a_study_that_is_no_study_of_this_run_is_replaced(folder, tmp_path, content):
    """The file in the run folder is ours."""
    path = optuna_file.default_path(folder)
    if content == "other":
        other, ledger = run_folders.begin(tmp_path / "other")
        ledger.close()
        optuna_file.export(other, path)
    else:
        path.write_bytes(content)
    with tracking(folder, report=print):
        pass
    study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))


def test_what_the_body_raises_passes_through(tmp_path):
    """The study is complete even so."""
    folder, ledger = run_folders.begin(tmp_path / "run")

    def interrupted():
        with closing(ledger), tracking(folder, report=print):
            run_folders.train(ledger, range(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    study_fixtures.same(
        study_fixtures.read(optuna_file.default_path(folder)).trials,
        study_fixtures.expected(folder),
    )


def test_a_study_that_cannot_be_written_harms_nothing(tmp_path, caplog):
    """The run goes on; the report says why and what to do."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    path = optuna_file.default_path(folder)
    path.mkdir()
    said = []
    with closing(ledger), tracking(folder, report=said.append, interval_s=0.01):
        run_folders.train(ledger, range(2))
        wait_for(lambda: caplog.messages)
    assert len(caplog.messages) == 1
    assert said[0].startswith(f"the Optuna study in {path} is not complete: {path}: cannot be")
    assert said[0].endswith(f"make the study with: tune-softmax export {folder.path} --to optuna")
    assert results.load(folder.path).count(State.COMPLETE) == 2


def test_a_dashboard_that_reads_all_the_time_is_no_hindrance(tmp_path):
    """Its reads and our writes take turns, and it never sees a trial without its parameters."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    path = optuna_file.default_path(folder)
    stop = threading.Event()
    torn = []

    def look():
        storage = optuna.storages.RDBStorage(optuna_file.url_of(path))
        while not stop.is_set():
            trials = storage.get_all_trials(1)
            torn.extend(t for t in trials if len(t.params) != 5)
            torn.extend(t for t in trials if t.state is TrialState.COMPLETE and not t.values)

    said = []
    with closing(ledger), tracking(folder, report=said.append, interval_s=0.01):
        wait_for(lambda: study_fixtures.states(path) is not None)
        looking = threading.Thread(target=look)
        looking.start()
        for pack in range(10):
            run_folders.train(ledger, [2 * pack, 2 * pack + 1], pack=pack)
        stop.set()
        looking.join()
    assert torn == []
    assert said[0].startswith("Optuna study in")
    study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))
