"""What results show of themselves in a notebook."""

from pathlib import Path

import pandas as pd
import pytest

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.experiment import experiment
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.notebook import html
from tune_softmax.run.results import Results
from tune_softmax.stats.overfitting import Overfitting
from tune_softmax.studies import train
from tune_softmax.studies.confirm import Confirmation
from tune_softmax.studies.remedies import Remedies

ASKED = """
dataset: {name: digits, validation: 0.25}
space: {batch_size: 64, num_epochs: 2, learning_rate: 0.1}
"""
SEARCHED = """
dataset: {name: digits, validation: 0.25}
space: {batch_size: 64, num_epochs: 2, learning_rate: {choice: [0.1, 0.2]}}
"""


def test_text_is_escaped_and_columns_read_as_words():
    """No text becomes markup, and names lose their underscores."""
    shown = html(["a < b"], pd.DataFrame({"test_loss": [0.123456], "trial": [7]}))
    assert "<p>a &lt; b</p>" in shown
    assert "<th>test loss</th>" in shown
    assert "<td>0.1235</td>" in shown
    assert "<td>7</td>" in shown


def test_text_alone_has_no_table():
    """Lines stand each in a paragraph."""
    assert html(["one", "two"]) == "<p>one</p>\n<p>two</p>"


def trials(states):
    """Return a search's dataframe with one trial for each state, the later the better."""
    columns = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    rows = [
        {"number": i, "state": state, "learning_rate": 0.1, "batch_size": 64}
        | {f"last_{column}": 1 / (i + 1) for column in columns}
        | {"value": 1 / (i + 1)}
        for i, state in enumerate(states)
    ]
    return pd.DataFrame(rows)


def test_a_search_shows_its_best_complete_trials():
    """The table holds what was searched and the four curves, not what was fixed."""
    frame = trials(["COMPLETE"] * 11 + ["PRUNED"])
    asked = experiment.parse(SEARCHED)
    found = Results(RunFolder(Path("runs/x")), asked, frame, pd.DataFrame())
    shown = found._repr_html_()
    assert "runs/x: 12 trials: 11 COMPLETE, 1 PRUNED." in shown
    assert shown.count("<tr") == 1 + 10
    assert shown.index("<td>10</td>") < shown.index("<td>9</td>")
    assert "<td>11</td>" not in shown
    assert "<th>learning rate</th>" in shown
    assert "batch size" not in shown
    assert "<th>mean validation loss</th>" not in shown
    assert repr(found) == "Results(folder=RunFolder(path=PosixPath('runs/x')))"


def test_a_mean_that_ranks_trials_is_shown():
    """Trials whose values are not their last losses, as with a constant learning rate."""
    frame = trials(["COMPLETE"] * 2).assign(value=[0.1, 0.2])
    shown = Results(
        RunFolder(Path("runs/x")), experiment.parse(SEARCHED), frame, pd.DataFrame()
    )._repr_html_()
    assert "<th>mean validation loss</th>" in shown
    assert shown.index("<td>0</td>") < shown.index("<td>1</td>")


def test_a_search_that_has_no_complete_trial_says_so():
    """Instead of a table there is a sentence."""
    found = Results(
        RunFolder(Path("runs/x")), experiment.parse(SEARCHED), trials(["PRUNED"]), pd.DataFrame()
    )
    assert "No trial has run all its epochs yet." in found._repr_html_()
    assert "<table" not in found._repr_html_()


def test_a_study_of_remedies_shows_its_verdicts():
    """First whether there was anything to cure, then a row for each remedy."""
    overfitting = Overfitting(5, 7, 90, 0.5, 0.6, 0.1, 0.05, 0.15, 0.005, 0.3, 0.95)
    row = {
        "remedy": "weight_decay",
        "strength_label": "0.01",
        "num_comparisons": 4,
        "baseline_mean": 0.6,
        "remedy_mean": 0.5,
        "difference": -0.1,
        "low": -0.2,
        "high": -0.05,
        "verdict": "helps",
    }
    found = Remedies(
        folder=RunFolder(Path("runs/x")),
        experiment=experiment.parse(ASKED),
        arms=pd.DataFrame(),
        effects=pd.DataFrame([row]),
        overfitting=overfitting,
        num_strengths=2,
        notes=(),
    )
    shown = found._repr_html_()
    assert shown.startswith("<p>Overfitting: from its best epoch (about 7) to epoch 90")
    assert "at 95 % for all 4 comparisons." in shown
    assert "<td>weight_decay</td>" in shown
    assert "<td>helps</td>" in shown
    assert "DataFrame" not in repr(found)


@pytest.mark.parametrize(("winner", "says"), [(3, "Winner: trial 3."), (None, "No winner")])
def test_a_confirmation_shows_its_winner(winner, says):
    """The trials stand below in a table."""
    row = {
        "trial": 3,
        "mean_test_accuracy": 0.84,
        "accuracy_low": 0.83,
        "accuracy_high": 0.85,
        "mean_test_loss": 0.46,
        "loss_low": 0.45,
        "loss_high": 0.47,
        "validation_loss": 0.41,
        "is_winner": winner is not None,
    }
    found = Confirmation(
        folder=RunFolder(Path("runs/x")),
        top=1,
        seeds=(1, 2),
        replicates=pd.DataFrame(),
        winners=pd.DataFrame([row]),
        winner=winner,
        num_test_images=360,
    )
    shown = found._repr_html_()
    assert "1 trials trained again over 2 seeds, on 360 test images." in shown
    assert says in shown
    assert "<td>0.84</td>" in shown


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_an_experiment_of_one_configuration_is_trained_as_it_is():
    """Neither configuration nor folder need be given, and a second run finds its own."""
    asked = experiment.parse(ASKED)
    first, second = train.train(asked), train.train(asked)
    assert first.config == asked.single_config()
    assert first.folder == Path("runs/experiment-train")
    assert second.folder == Path("runs/experiment-train-2")
    assert list(first.curves["epoch"]) == [1, 2]
    assert list(first.curves["train_loss"]) == [metrics.train_loss for metrics in first.epochs]
    shown = first._repr_html_()
    assert f"validation loss {first.epochs[-1].validation_loss:.4f}" in shown
    assert f"On the 359 test images: loss {first.test.loss:.4f}" in shown
    assert "tensor" not in repr(first)


@pytest.mark.usefixtures("here")
def test_a_folder_that_holds_something_is_not_trained_into():
    """Also where the folder is given as text."""
    Path("full").mkdir()
    Path("full/file").touch()
    with pytest.raises(ResultsError, match="full: the folder is not empty"):
        train.train(experiment.parse(ASKED), folder="full")


@pytest.mark.usefixtures("here")
def test_a_space_that_leaves_a_choice_open_needs_a_configuration():
    """Nothing is trained, and the open hyperparameter is named."""
    with pytest.raises(ExperimentError, match="learning_rate"):
        train.train(experiment.parse(SEARCHED))
    assert not Path("runs").exists()
