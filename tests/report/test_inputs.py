"""What a report is made from, as it is gathered from a run folder."""

import json

import pytest
from report_runs import ENVIRONMENT, evaluation, write_run

from tune_softmax.errors import DamagedRunError, ResultsError
from tune_softmax.report.inputs import gather


@pytest.fixture
def run(tmp_path):
    """Return the path of a run with few trials."""
    return write_run(tmp_path / "a run", 4)


def test_a_run_is_gathered(run):
    """Its trials, how it was made, and each look at the test set."""
    inputs = gather(run)
    assert len(inputs.search.trials) == 4
    assert inputs.environment == ENVIRONMENT
    ((at, purpose),) = inputs.openings
    assert at.startswith("20")
    assert purpose == "train, trial 7"
    optional = (inputs.path, inputs.confirmation, inputs.remedies, inputs.evaluation)
    assert optional == (None, None, None, None)


def test_an_evaluation_is_found(run):
    """Where the winner's files are."""
    (run / "best").mkdir()
    (run / "best" / "evaluation.json").write_text(json.dumps(evaluation()))
    assert gather(run).evaluation.accuracy == 0.91


def test_a_run_without_an_environment_is_one(run):
    """The report leaves that section short."""
    (run / "environment.json").unlink()
    assert gather(run).environment == {}


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_a_broken_environment_is_a_damaged_run(run, text):
    """The message names the file and what to do."""
    (run / "environment.json").write_text(text)
    with pytest.raises(DamagedRunError, match=r"environment\.json: .*restore the file"):
        gather(run)


def test_no_run_is_an_error(tmp_path):
    """As for every command."""
    with pytest.raises(ResultsError):
        gather(tmp_path / "nowhere")


def test_a_command_can_be_typed(run):
    """A folder's name is quoted where it must be."""
    assert gather(run).command("confirm") == f"tune-softmax confirm '{run}'"
    assert gather(run).command("oracle", "x.yaml") == "tune-softmax oracle x.yaml"
