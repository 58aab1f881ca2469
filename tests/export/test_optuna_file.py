"""A run as a file of Optuna's: what Optuna reads of it, and what a browser shows of it."""

import shlex
import shutil
import sqlite3
import sys
import threading
import time
import warnings
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
import run_folders
import study_fixtures
from optuna.trial import TrialState
from playwright.sync_api import sync_playwright

from tune_softmax.cli import main
from tune_softmax.errors import ResultsError, StorageError
from tune_softmax.export import optuna_file
from tune_softmax.metrics import Report, State
from tune_softmax.run import results
from tune_softmax.run.ledger import Ledger


@pytest.fixture
def folder(tmp_path):
    """Return a run that was stopped, in a folder whose name no URL would take."""
    return study_fixtures.every_kind(tmp_path / "a run?#%41")


# --- Export -------------------------------------------------------------------------------------


def test_optuna_reads_every_trial(folder, tmp_path):
    """Number, state, value, parameters and their domains, curve, attributes, times: all of them.

    What Optuna's own API makes of the ledger's rows is the oracle, so that a new schema of
    Optuna's would show here.
    """
    path = tmp_path / "study.db"
    assert optuna_file.export(folder, path) == 12
    study = study_fixtures.read(path)
    study_fixtures.same(study.trials, study_fixtures.expected(folder))
    assert set(results.load(folder.path).trials["state"]) == set(State)
    assert {trial.state for trial in study.trials} == set(TrialState)


def test_optuna_knows_the_study(folder, tmp_path):
    """Its name, direction, metric and best trial, and what was held fixed."""
    optuna_file.export(folder, tmp_path / "study.db")
    study = study_fixtures.read(tmp_path / "study.db")
    assert study.study_name == "a run?#%41"
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == [study_fixtures.METRIC]
    assert study.best_trial.number == results.load(folder.path).best().number
    assert study.user_attrs["constants"]["weight_decay"] == 1e-4


def test_optuna_can_work_with_it(folder, tmp_path):
    """It copies the study, for which it checks every trial, and goes on with it."""
    optuna_file.export(folder, tmp_path / "study.db")
    url, other = (optuna_file.url_of(tmp_path / name) for name in ("study.db", "other.db"))
    optuna.copy_study(
        from_study_name="a run?#%41", from_storage=url, to_storage=other, to_study_name="copy"
    )
    copied = optuna.load_study(study_name="copy", storage=other)
    assert len(copied.trials) == 12
    study = study_fixtures.read(tmp_path / "study.db")
    asked = study.ask()  # the one that waits
    study.tell(asked, 0.01)
    assert study.best_trial.number == asked.number == 9


def test_an_earlier_export_is_replaced_whole(folder, tmp_path):
    """One that is being read stays as it is for its reader."""
    path = tmp_path / "study.db"
    optuna_file.export(folder, path)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM trials").fetchone() == (12,)
        with closing(Ledger.open(folder.ledger, writable=True)) as ledger:
            run_folders.train(ledger, [12], pack=5)
        optuna_file.export(folder, path)
        assert reader.execute("SELECT count(*) FROM trials").fetchone() == (12,)
    study_fixtures.same(study_fixtures.read(path).trials, study_fixtures.expected(folder))
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["study.db"]


@pytest.mark.parametrize("content", [b"notes", b"", "ledger", "optuna"])
def test_another_file_is_not_replaced(folder, tmp_path, content):
    """Neither notes nor the ledger nor a study that Optuna made."""
    path = tmp_path / "file"
    if content == "ledger":
        path = folder.ledger
    elif content == "optuna":
        optuna.create_study(storage=optuna_file.url_of(path))
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="there is a file already, and no export"):
        optuna_file.export(folder, path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    """And nothing is left there."""
    with pytest.raises(StorageError, match=r"nowhere/study\.db: cannot be written"):
        optuna_file.export(folder, tmp_path / "nowhere" / "study.db")


def test_an_empty_run_is_an_empty_study(tmp_path):
    """A run that has not handed out a trial yet."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    ledger.close()
    assert optuna_file.export(folder, tmp_path / "study.db") == 0
    assert study_fixtures.read(tmp_path / "study.db").trials == []


def test_a_choice_that_the_space_lacks_is_an_attribute(tmp_path):
    """A trial that was asked for may be outside the space; the study can be read all the same."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    with closing(ledger):
        ledger.hand_out(0, {0: replace(run_folders.config(0), batch_size=99)})
    optuna_file.export(folder, tmp_path / "study.db")
    (trial,) = study_fixtures.read(tmp_path / "study.db").trials
    assert "batch_size" not in trial.params
    assert trial.user_attrs["batch_size"] == 99


@pytest.mark.slow
def test_a_large_run_is_exported_in_seconds(tmp_path):
    """256 trials of 30 epochs; Optuna's own API takes 25 s of processor time for them."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    with closing(ledger):
        for pack in range(8):
            numbers = range(32 * pack, 32 * pack + 32)
            ledger.hand_out(pack, {number: run_folders.config(number) for number in numbers})
            for epoch in range(1, 31):
                state = State.COMPLETE if epoch == 30 else State.RUNNING
                reports = [Report(n, epoch, run_folders.metrics(n, epoch), state) for n in numbers]
                ledger.record(pack, reports)
    began = time.process_time()
    optuna_file.export(folder, tmp_path / "study.db")
    assert time.process_time() - began < 8
    assert len(study_fixtures.read(tmp_path / "study.db").trials) == 256


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
        *_, url = shlex.split(said)
        assert len(optuna.load_study(study_name=None, storage=url).trials) == 12
        assert len(study_fixtures.states(path)) == 12


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
        app = optuna_dashboard.wsgi(optuna_file.url_of(path))
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
    from tune_softmax.study_fixtures.search import search

    from tune_softmax.experiment import experiment as experiments

    found = search(experiments.parse(EXPERIMENT, "small.yaml"), run_dir=tmp_path / "digits")
    optuna_file.export(found.folder, optuna_file.default_path(found.folder))
    url = dashboard(optuna_file.default_path(found.folder))
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
