"""A run as an Optuna study: what Optuna reads of it, and what a browser shows of it."""

import math
import shutil
import sqlite3
import sys
import threading
import time
import warnings
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta

import optuna
import pytest
import runs
from optuna.trial import TrialState, create_trial
from playwright.sync_api import sync_playwright
from sqlalchemy.pool import NullPool

from tune_softmax import results, tracking
from tune_softmax.cli import main
from tune_softmax.errors import ResultsError, StorageError
from tune_softmax.ledger import Ledger
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.study import distribution

METRIC = "validation_loss"
ATTRIBUTES = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]


@pytest.fixture
def folder(tmp_path):
    """Return a run that was stopped, with trials of every state and with values of every kind."""
    folder, ledger = runs.begin(tmp_path / "a run?#%41")
    with closing(ledger):
        runs.train(ledger, range(4))
        runs.train(ledger, [4, 5], pack=1, state=State.PRUNED, last=1)
        runs.train(ledger, [6], pack=2, state=State.FAIL, last=1, error="it diverged")
        ledger.hand_out(3, {number: runs.config(number) for number in range(7, 11)})
        ledger.record(3, [Report(7, 1, runs.metrics(7, 1))])
        broken = EpochMetrics(math.inf, 0.1, math.nan, 0.1, 0.25)
        ledger.record(3, [Report(8, 1, broken, State.FAIL, error="a \u201cquote\u201d\n'")])
        ledger.finish([9], State.WAITING)
        ledger.hand_out(4, {11: runs.config(11)})
        ledger.record(4, [Report(11, 1, runs.metrics(11, 1), State.PARKED, rung=1)])
    return folder


def read(path):
    """Return the study of a file, as Optuna reads it; of any path, which a URL would not take."""
    options = {"creator": lambda: sqlite3.connect(path), "poolclass": NullPool}
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=options)
    return optuna.load_study(study_name=None, storage=storage)


def expected(folder):
    """Return a run's trials as Optuna itself makes them, from the ledger's rows."""
    space = results.load(folder.path).experiment.space
    distributions = {name: distribution(domain) for name, domain in space.searched.items()}
    with closing(Ledger.open(folder.ledger)) as ledger:
        trials, epochs, events = ledger.trials(), ledger.epochs(), ledger.events()
    # Optuna shows naive local times.
    started = datetime.fromisoformat(events[0][0]).astimezone().replace(tzinfo=None)
    made = []
    for trial in trials:
        curve = [metrics for number, _, metrics in epochs if number == trial.number]
        seconds = sum(metrics.seconds for metrics in curve)
        valued = trial.state in {State.COMPLETE, State.PRUNED}
        attributes = {name: getattr(curve[-1], name) for name in ATTRIBUTES} if curve else {}
        attributes |= {
            "seconds": seconds,
            "epochs_trained": len(curve),
            "pack": trial.pack,
            "attempts": trial.attempts,
        }
        attributes |= {} if trial.rung is None else {"rung": trial.rung}
        attributes = {k: v for k, v in attributes.items() if math.isfinite(v)}
        attributes |= {"error": trial.error} if trial.error else {}
        one = create_trial(
            state=TrialState.RUNNING if trial.state == "PARKED" else TrialState[trial.state],
            value=getattr(curve[-1], METRIC) if valued else None,
            params={name: getattr(trial.config, name) for name in distributions},
            distributions=distributions,
            user_attrs=attributes,
            intermediate_values={e: getattr(m, METRIC) for e, m in enumerate(curve, 1)},
        )
        one.number = trial.number
        one.datetime_start = None if trial.state is State.WAITING else started
        ended = started + timedelta(seconds=seconds)
        one.datetime_complete = ended if trial.state.is_final else None
        made.append(one)
    return made


def plain(trial):
    """Return all that a trial holds, so that NaN equals itself."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": {k: repr(v) for k, v in trial.intermediate_values.items()},
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
    }


def same(trials, others):
    """Hold two lists of trials against each other."""
    assert [plain(trial) for trial in trials] == [plain(trial) for trial in others]


# --- Export -------------------------------------------------------------------------------------


def test_optuna_reads_every_trial(folder, tmp_path):
    """Number, state, value, parameters and their domains, curve, attributes, times: all of them.

    What Optuna's own API makes of the ledger's rows is the oracle, so that a new schema of
    Optuna's would show here.
    """
    path = tmp_path / "study.db"
    assert tracking.export(folder, path) == 12
    study = read(path)
    same(study.trials, expected(folder))
    assert set(results.load(folder.path).trials["state"]) == set(State)
    assert {trial.state for trial in study.trials} == set(TrialState)


def test_optuna_knows_the_study(folder, tmp_path):
    """Its name, direction, metric and best trial, and what was held fixed."""
    tracking.export(folder, tmp_path / "study.db")
    study = read(tmp_path / "study.db")
    assert study.study_name == "a run?#%41"
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == [METRIC]
    assert study.best_trial.number == results.load(folder.path).best().number
    assert study.user_attrs["constants"]["weight_decay"] == 1e-4


def test_optuna_can_work_with_it(folder, tmp_path):
    """It copies the study, for which it checks every trial, and goes on with it."""
    tracking.export(folder, tmp_path / "study.db")
    url, other = (tracking.study_url(tmp_path / name) for name in ("study.db", "other.db"))
    optuna.copy_study(
        from_study_name="a run?#%41", from_storage=url, to_storage=other, to_study_name="copy"
    )
    copied = optuna.load_study(study_name="copy", storage=other)
    assert len(copied.trials) == 12
    study = read(tmp_path / "study.db")
    asked = study.ask()  # the one that waits
    study.tell(asked, 0.01)
    assert study.best_trial.number == asked.number == 9


def test_an_earlier_export_is_replaced_whole(folder, tmp_path):
    """One that is being read stays as it is for its reader."""
    path = tmp_path / "study.db"
    tracking.export(folder, path)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM trials").fetchone() == (12,)
        with closing(Ledger.open(folder.ledger, writable=True)) as ledger:
            runs.train(ledger, [12], pack=5)
        tracking.export(folder, path)
        assert reader.execute("SELECT count(*) FROM trials").fetchone() == (12,)
    same(read(path).trials, expected(folder))
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["study.db"]


@pytest.mark.parametrize("content", [b"notes", b"", "ledger", "optuna"])
def test_another_file_is_not_replaced(folder, tmp_path, content):
    """Neither notes nor the ledger nor a study that Optuna made."""
    path = tmp_path / "file"
    if content == "ledger":
        path = folder.ledger
    elif content == "optuna":
        optuna.create_study(storage=tracking.study_url(path))
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="there is a file already, and no export"):
        tracking.export(folder, path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    """And nothing is left there."""
    with pytest.raises(StorageError, match=r"nowhere/study\.db: cannot be written"):
        tracking.export(folder, tmp_path / "nowhere" / "study.db")


def test_an_empty_run_is_an_empty_study(tmp_path):
    """A run that has not handed out a trial yet."""
    folder, ledger = runs.begin(tmp_path / "run")
    ledger.close()
    assert tracking.export(folder, tmp_path / "study.db") == 0
    assert read(tmp_path / "study.db").trials == []


def test_a_choice_that_the_space_lacks_is_an_attribute(tmp_path):
    """A trial that was asked for may be outside the space; the study can be read all the same."""
    folder, ledger = runs.begin(tmp_path / "run")
    with closing(ledger):
        ledger.hand_out(0, {0: replace(runs.config(0), batch_size=99)})
    tracking.export(folder, tmp_path / "study.db")
    (trial,) = read(tmp_path / "study.db").trials
    assert "batch_size" not in trial.params
    assert trial.user_attrs["batch_size"] == 99


@pytest.mark.slow
def test_a_large_run_is_exported_in_seconds(tmp_path):
    """256 trials of 30 epochs; Optuna's own API takes 38 s of processor time for them."""
    folder, ledger = runs.begin(tmp_path / "run")
    with closing(ledger):
        for pack in range(8):
            numbers = range(32 * pack, 32 * pack + 32)
            ledger.hand_out(pack, {number: runs.config(number) for number in numbers})
            for epoch in range(1, 31):
                state = State.COMPLETE if epoch == 30 else State.RUNNING
                reports = [Report(n, epoch, runs.metrics(n, epoch), state) for n in numbers]
                ledger.record(pack, reports)
    began = time.process_time()
    tracking.export(folder, tmp_path / "study.db")
    assert time.process_time() - began < 8
    assert len(read(tmp_path / "study.db").trials) == 256


# --- While a search runs ------------------------------------------------------------------------


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
    monkeypatch.setattr("tune_softmax.tracking.MAX_SHARE", 1.0)


def states(path):
    """Return the states of the trials in a study's file, as far as it is there."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
            return [state for (state,) in file.execute("SELECT state FROM trials ORDER BY 1")]
    except sqlite3.OperationalError:
        return None


def test_the_study_follows_the_search(tmp_path):
    """Running trials appear, get their epochs and end; at the end it is what an export is."""
    folder, ledger = runs.begin(tmp_path / "run")
    path = tracking.study_file(folder)
    said = []
    with closing(ledger), tracking.tracking(folder, report=said.append, interval_s=0.01):
        ledger.hand_out(0, {number: runs.config(number) for number in range(4)})
        wait_for(lambda: states(path) == ["RUNNING"] * 4)
        ledger.record(0, [Report(3, 1, runs.metrics(3, 1))])
        wait_for(lambda: len(read(path).trials[3].intermediate_values) == 1)
        runs.train(ledger, range(4))
        wait_for(lambda: states(path) == ["COMPLETE"] * 4)
        runs.train(ledger, [4, 5], pack=1, state=State.PRUNED, last=1)
        ledger.hand_out(2, {6: runs.config(6)})
        ledger.finish([6], State.WAITING)
        assert said == []
    same(read(path).trials, expected(folder))
    assert said == [f"Optuna study in {path}; see it with: optuna-dashboard sqlite:///{path}"]
    assert [file.name for file in folder.path.glob("*optuna*")] == ["optuna.db"]
    assert [file.name for file in folder.path.glob("run.db*")] == ["run.db"]


def test_a_resumed_search_goes_on_in_the_same_study(folder):
    """A dashboard that has the file open sees it go on, for it is not made anew."""
    path = tracking.study_file(folder)
    with tracking.tracking(folder, report=print):
        pass
    inode = path.stat().st_ino
    notes = read(path)
    notes.set_user_attr("note", "written in a dashboard")
    with closing(Ledger.open(folder.ledger, writable=True)) as ledger:
        with tracking.tracking(folder, report=print, interval_s=0.01):
            runs.train(ledger, [7, 9], pack=5)
        same(read(path).trials, expected(folder))
    assert path.stat().st_ino == inode
    assert read(path).user_attrs["note"] == "written in a dashboard"


def test_what_the_ledger_lacks_goes_from_the_study(folder):
    """The ledger is the truth, also where its end was lost."""
    path = tracking.study_file(folder)
    tracking.export(folder, path)
    read(path).add_trial(create_trial(value=0.5))
    with tracking.tracking(folder, report=print):
        pass
    same(read(path).trials, expected(folder))


@pytest.mark.parametrize("content", [b"rubbish", b"", "other"])
def test_a_study_that_is_no_study_of_this_run_is_replaced(folder, tmp_path, content):
    """The file in the run folder is ours."""
    path = tracking.study_file(folder)
    if content == "other":
        other, ledger = runs.begin(tmp_path / "other")
        ledger.close()
        tracking.export(other, path)
    else:
        path.write_bytes(content)
    with tracking.tracking(folder, report=print):
        pass
    same(read(path).trials, expected(folder))


def test_what_the_body_raises_passes_through(tmp_path):
    """The study is complete even so."""
    folder, ledger = runs.begin(tmp_path / "run")

    def interrupted():
        with closing(ledger), tracking.tracking(folder, report=print):
            runs.train(ledger, range(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    same(read(tracking.study_file(folder)).trials, expected(folder))


def test_a_study_that_cannot_be_written_harms_nothing(tmp_path, caplog):
    """The run goes on; the report says why and what to do."""
    folder, ledger = runs.begin(tmp_path / "run")
    path = tracking.study_file(folder)
    path.mkdir()
    said = []
    with closing(ledger), tracking.tracking(folder, report=said.append, interval_s=0.01):
        runs.train(ledger, range(2))
        wait_for(lambda: caplog.messages)
    assert len(caplog.messages) == 1
    assert said[0].startswith(f"the Optuna study in {path} is not complete: {path}: cannot be")
    assert said[0].endswith(f"make the study with: tune-softmax export {folder.path} --to optuna")
    assert results.load(folder.path).count(State.COMPLETE) == 2


def test_a_dashboard_that_reads_all_the_time_is_no_hindrance(tmp_path):
    """Its reads and our writes take turns, and it never sees a trial without its parameters."""
    folder, ledger = runs.begin(tmp_path / "run")
    path = tracking.study_file(folder)
    stop = threading.Event()
    torn = []

    def look():
        storage = optuna.storages.RDBStorage(tracking.study_url(path))
        while not stop.is_set():
            trials = storage.get_all_trials(1)
            torn.extend(t for t in trials if len(t.params) != 5)
            torn.extend(t for t in trials if t.state is TrialState.COMPLETE and not t.values)

    said = []
    with closing(ledger), tracking.tracking(folder, report=said.append, interval_s=0.01):
        wait_for(lambda: states(path) is not None)
        looking = threading.Thread(target=look)
        looking.start()
        for pack in range(10):
            runs.train(ledger, [2 * pack, 2 * pack + 1], pack=pack)
        stop.set()
        looking.join()
    assert torn == []
    assert said[0].startswith("Optuna study in")
    same(read(path).trials, expected(folder))


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Return the function that runs the command line: to its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tune-softmax", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


def test_the_command_exports(folder, tmp_path, monkeypatch, run):
    """By default into the run folder, else where --output says, as a path or as a URL."""
    monkeypatch.chdir(tmp_path)
    for output, path in (
        (None, folder.path / "optuna.db"),
        ("a.db", tmp_path / "a.db"),
        ("sqlite:///b.db", tmp_path / "b.db"),
        (f"sqlite:///{tmp_path}/c.db", tmp_path / "c.db"),
    ):
        option = [] if output is None else ["--output", output]
        code, said, _ = run("export", folder.path, "--to", "optuna", *option)
        assert code == 0
        assert said.startswith("12 trials in ")
        assert "see them with: optuna-dashboard sqlite:///" in said
        assert len(states(path)) == 12


@pytest.mark.parametrize("output", ["postgresql://host/db", "sqlite://x.db", "s3://bucket/x"])
def test_a_study_is_one_file(folder, run, output):
    """Another database is refused."""
    code, _, err = run("export", folder.path, "--to", "optuna", "--output", output)
    assert code == 2
    assert "must be a file or sqlite:///FILE" in " ".join(err.split())


# --- A browser ----------------------------------------------------------------------------------

EXPERIMENT = """
name: small
dataset: {name: digits, validation: 0.25}
space:
  batch_size: {choice: [16, 32, 64]}
  num_epochs: {int: [2, 6]}
  learning_rate: {log_uniform: [1e-2, 1]}
search: {num_trials: 12, seed: 3}
"""


@pytest.fixture
def dashboard():
    """Return the function that serves a study's file on this machine, until the test ends."""
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dashboard's own
        import optuna_dashboard

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_args):
            """Keep quiet."""

    servers = []

    def serve(path):
        app = optuna_dashboard.wsgi(tracking.study_url(path))
        server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page():
    """Return a page of a real browser that sees this machine alone."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


@pytest.mark.slow
@pytest.mark.ray
def test_a_browser_shows_a_real_search(tmp_path, dashboard, page):
    """The dashboard's page of a search over real digits names it, its metric and its best."""
    from tune_softmax import experiment as experiments
    from tune_softmax.search import search

    found = search(experiments.parse(EXPERIMENT, "small.yaml"), run_dir=tmp_path / "digits")
    tracking.export(found.folder, tracking.study_file(found.folder))
    url = dashboard(tracking.study_file(found.folder))
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("requestfailed", lambda request: failures.append(request.url))
    page.goto(f"{url}/dashboard")
    page.get_by_text("digits").first.click()
    best = found.best()
    page.get_by_text(f"Best Trial (number={best.number})").wait_for(timeout=30_000)
    page.get_by_text("learning_rate").first.wait_for(timeout=30_000)
    page.goto(f"{url}/dashboard/studies/1/trials")
    page.get_by_text(f"Trial {best.number}").first.wait_for(timeout=30_000)
    assert failures == []
