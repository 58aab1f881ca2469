"""The command `report`: what it writes and where, and what it refuses."""

import pytest
from report_runs import write_run
from test_package import RUN_COMMAND, loaded_by
from typer.testing import CliRunner

from tune_softmax.cli import app
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError


@pytest.fixture
def run(tmp_path):
    """Return the path of a run with few trials."""
    return write_run(tmp_path / "run", 2)


def invoke(*arguments):
    """Call the command and return how it ended."""
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_help_loads_nothing_heavy():
    """Neither what reads a run nor what draws it."""
    heavy = {"pandas", "plotly", "jinja2", "optuna", "matplotlib", "sqlalchemy", "torch", "ray"}
    assert not loaded_by(RUN_COMMAND, "report", "--help") & heavy


def test_the_page_goes_into_the_run(run):
    """Its path is printed."""
    done = invoke(run)
    assert (done.exit_code, done.stdout) == (0, f"{run / 'report.html'}\n")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "2 of 40 trials done" in page


def test_the_page_may_go_elsewhere(run, tmp_path):
    """So that a folder that may only be read can be reported on, in Markdown too."""
    path = tmp_path / "elsewhere.html"
    done = invoke(run, "--output", path, "--markdown")
    assert done.stdout.split() == [str(path), str(tmp_path / "elsewhere.md")]
    assert not (run / "report.html").exists()
    assert "(<elsewhere-gap.png>)" in (tmp_path / "elsewhere.md").read_text(encoding="utf-8")
    assert (tmp_path / "elsewhere-gap.png").is_file()


def test_a_report_can_be_made_again(run):
    """Over the one before."""
    invoke(run)
    before = (run / "report.html").stat().st_ino
    assert invoke(run).exit_code == 0
    assert (run / "report.html").stat().st_ino != before


def test_a_port_needs_a_server():
    """A wrong use is said as such."""
    done = invoke("run", "--port", 8000)
    assert done.exit_code == 2
    assert "--port needs --serve" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (lambda run: [run / "missing"], ResultsError),
        (lambda run: [run, "--output", run / "missing" / "page.html"], StorageError),
    ],
)
def test_what_is_wrong_is_an_error_of_ours(run, arguments, error):
    """No run there, or no place to write to."""
    assert isinstance(invoke(*arguments(run)).exception, error)


def test_a_damaged_evaluation_is_an_error_of_ours(run):
    """The message names the file."""
    (run / "best").mkdir()
    (run / "best" / "evaluation.json").write_text("{")
    done = invoke(run)
    assert isinstance(done.exception, DamagedRunError)
    assert "evaluation.json" in str(done.exception)
