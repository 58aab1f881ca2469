"""`train`: from an experiment or a run, to a folder; and training that diverges."""

import json
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import run_folders

from tune_softmax.errors import ExperimentError, ResultsError, RunInUseError
from tune_softmax.experiment import experiment as experiments
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies.train import train

PLAIN = "dataset: {name: digits}\nspace: {batch_size: 64, num_epochs: 2, learning_rate: 0.1}\n"
# Both of these diverge: the first at once, the second after some epochs.
AT_ONCE = PLAIN.replace("64", "16").replace("0.1}", "10, weight_decay: 1}")
LATE = AT_ONCE.replace("10,", "2.6,").replace("num_epochs: 2", "num_epochs: 60")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder of its own."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def run(tmp_path):
    """Return a run folder elsewhere, with four complete trials."""
    return run_folders.finished(tmp_path / "elsewhere" / "my run", 4).path


def openings(run):
    """Return what a run's ledger says of the test set."""
    with closing(Ledger.open(RunFolder(run).ledger)) as ledger:
        return [detail for _, kind, detail in ledger.events() if kind == "test_opened"]


def test_a_run_is_trained_beside_it_under_its_name(here, run):
    """Not in the caller's folder, and not under the experiment's name; again in another."""
    first, second = train(run), train(run, trial=2)
    assert first.folder == run.with_name("my run-train")
    assert second.folder == run.with_name("my run-train-2")
    assert list(here.iterdir()) == []
    assert openings(run) == [
        {"command": "train", "trial": 3},
        {"command": "train", "trial": 2},
    ]


def test_a_run_that_is_the_working_folder_is_trained_beside_it(run, monkeypatch):
    """A dot has no name; the folder has."""
    monkeypatch.chdir(run)
    assert train(".").folder == run.with_name("my run-train")


def test_a_run_in_use_is_refused_before_anything_is_trained(here, run):
    """The lock is taken first, and the test set stays closed."""
    epochs = []
    with (
        RunFolder(run).writing(),
        pytest.raises(RunInUseError, match=r"my run: process \d+ on .* writes this run"),
    ):
        train(run, on_epoch=lambda epoch, _metrics: epochs.append(epoch))
    assert epochs == []
    assert openings(run) == []
    assert not run.with_name("my run-train").exists()
    assert list(here.iterdir()) == []


def test_an_experiment_file_is_trained(here):
    """A path does as well as an experiment; it has no trials to choose from."""
    (here / "one.yaml").write_text(PLAIN, encoding="utf-8")
    assert train("one.yaml").folder == Path("runs/one-train")
    with pytest.raises(ResultsError, match=r"--trial 3: one\.yaml is not a run folder"):
        train("one.yaml", trial=3)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("text", "num_epochs"), [(AT_ONCE, 2), (LATE, 60)])
def test_training_that_diverges_says_so(text, num_epochs):
    """The epoch is named, the test set stays closed, and the files are JSON and pictures."""
    trained = train(experiments.parse(text))
    assert trained.test is None
    assert not trained.epochs[-1].is_finite
    epoch = len(trained.epochs)
    assert f"Training diverged in epoch {epoch} of {num_epochs}" in trained.summary[0]
    assert "diverged" in trained._repr_html_()
    saved = trained.folder / "evaluation.json"

    def refuse(word):
        raise AssertionError(word)

    content = json.loads(saved.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["diverged_in_epoch"] == epoch
    assert content["test_loss"] is content["confusion"] is None
    assert len(pd.read_csv(trained.folder / "curves.csv")) == epoch
    assert (trained.folder / "curves.png").exists()
    assert not (trained.folder / "weights.png").exists()


@pytest.mark.usefixtures("here")
def test_a_batch_larger_than_the_training_set_is_refused():
    """As `search` refuses it."""
    with pytest.raises(ExperimentError, match="at most the 1,198 training images of digits"):
        train(experiments.parse(PLAIN.replace("64", "1500")))
