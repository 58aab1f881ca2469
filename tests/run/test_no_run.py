"""What is said of a path that is no run folder."""

import os

import pytest
import run_folders

from tune_softmax.errors import ResultsError
from tune_softmax.run import results
from tune_softmax.run.no_run import no_run_message


def test_what_is_at_the_path_is_said(tmp_path):
    """A file, a trained model, a folder of runs, nothing; each with what to name instead."""
    file, model, runs = tmp_path / "x.yaml", tmp_path / "model", tmp_path / "runs"
    file.touch()
    model.mkdir()
    (model / "weights.safetensors").touch()
    for name in "abc":
        run_folders.finished(runs / name, 1)
    expected = {
        file: f"is a file, .*an experiment file is for: tune-softmax search {file}",
        model: "holds one trained model and no run",
        runs: f"is no run but holds some; name one of them: {runs / 'a'}, {runs / 'b'}, ",
        tmp_path / "nowhere": "there is no such folder",
        tmp_path: "no ledger there; name the folder of a run",
    }
    for path, message in expected.items():
        with pytest.raises(ResultsError, match=message):
            results.load(path)


def test_of_many_runs_a_few_are_named(tmp_path):
    """The others are counted."""
    for number in range(8):
        run_folders.finished(tmp_path / f"run{number}", 1)
    message = no_run_message(tmp_path)
    assert message.count("run") >= 5
    assert message.endswith("run4 and 3 more")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_no_run(tmp_path):
    """It holds no run that could be named."""
    tmp_path.chmod(0)
    try:
        assert "no such folder" in no_run_message(tmp_path) or "no ledger" in no_run_message(
            tmp_path
        )
    finally:
        tmp_path.chmod(0o700)
