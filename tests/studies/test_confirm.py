"""The confirmation of a search over seeds, from end to end on a real local Ray."""

import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from run_folders import finished

import tune_softmax
from tune_softmax.commands.study_tables import confirmation_lines
from tune_softmax.data.dataset import load_dataset, load_test
from tune_softmax.engine.reference import evaluate
from tune_softmax.engine.tensors import to_images, to_tensors
from tune_softmax.errors import ResultsError
from tune_softmax.experiment.experiment import parse
from tune_softmax.run import check, results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies import confirm, search
from tune_softmax.studies.predict import predict

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = str(Path(sys.executable).parent / "tune-softmax")
EXPERIMENT = """name: small
dataset: {name: digits, validation: 0.25}
space:
  batch_size: {choice: [16, 32]}
  num_epochs: {int: [2, 6]}
  learning_rate: {log_uniform: [1e-2, 1]}
  weight_decay: {log_uniform: [1e-4, 1e-2]}
search: {num_trials: 8, asha: none, sampler: random}
"""


def command(*arguments):
    """Run the command line and return how that ended."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


def openings(folder):
    """Return what the test set was opened for, in order."""
    with closing(Ledger.open(folder.ledger)) as ledger:
        return [detail for _, kind, detail in ledger.events() if kind == "test_opened"]


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """A run whose two best trials were confirmed by the command, what it printed and found."""
    run = tmp_path_factory.mktemp("confirmed") / "run"
    finished(run, num_trials=8, checksum=load_dataset("digits").checksum)
    done = command("confirm", run, "--top", 2, "--seeds", 2)
    assert done.returncode == 0, done.stderr
    return done.stdout, confirm.load(run)


def test_the_best_by_validation_are_confirmed(confirmed):
    """Two trials with two seeds each, apart from the search's own."""
    _, found = confirmed
    best = results.load(found.folder.path).ranked()["number"].head(2)
    assert set(found.replicates["trial"]) == set(best)
    assert len(found.replicates) == 4
    assert len(set(found.seeds)) == 2
    assert 0 not in found.seeds
    assert found.replicates["test_accuracy"].between(0.8, 1).all()
    assert found.num_test_images == 359


def test_the_opening_of_the_test_set_is_in_the_run(confirmed):
    """The search's own ledger says for which trials it was opened, once."""
    _, found = confirmed
    (opening,) = openings(found.folder)
    assert opening["command"] == "confirm"
    assert sorted(opening["trials"]) == sorted(set(found.replicates["trial"]))


def test_the_confirmation_is_a_run_of_its_own(confirmed):
    """It keeps every rule, and so does the search."""
    _, found = confirmed
    assert check.check(found.folder.confirm.path).num_trials == 4
    assert check.check(found.folder.path).num_trials == 8


def test_the_winner_is_chosen_by_validation_among_the_indistinguishable(confirmed):
    """The test set rules out what is shown to be worse, and chooses nothing else."""
    _, found = confirmed
    candidates = set(found.winners.loc[found.winners["is_winner"], "trial"])
    ranked = results.load(found.folder.path).ranked()["number"].tolist()
    assert found.winner == next(number for number in ranked if number in candidates)


def test_the_saved_model_is_the_confirmations_own(confirmed):
    """Its loss and accuracy are those of its replicate under the first seed."""
    _, found = confirmed
    evaluation = json.loads(found.folder.best.evaluation.read_text())
    rows = found.replicates
    (row,) = rows[(rows["trial"] == found.winner) & (rows["seed"] == found.seeds[0])].to_dict(
        "records"
    )
    assert evaluation["accuracy"] == row["test_accuracy"]
    assert evaluation["loss"] == pytest.approx(row["test_loss"], abs=1e-6)


def test_the_loaded_model_has_the_saved_accuracy(confirmed):
    """`tune_softmax.load_model` gives back what was saved."""
    _, found = confirmed
    model = tune_softmax.load_model(found.folder.path)
    assert model.class_names == tuple("0123456789")
    data = to_tensors(load_dataset("digits"))
    measured = evaluate(model, to_images(load_test("digits")), data)
    evaluation = json.loads(found.folder.best.evaluation.read_text())
    assert measured.accuracy == evaluation["accuracy"]
    assert measured.confusion.tolist() == evaluation["confusion"]
    assert np.sum(evaluation["baseline_confusion"]) == 359


def test_a_finished_confirmation_is_printed_again_without_training(confirmed):
    """The same command gives the same text, in the time of a look at the files."""
    printed, found = confirmed
    before = openings(found.folder)
    again = confirm.confirm(found.folder.path)
    assert again.replicates.equals(found.replicates)
    assert openings(found.folder) == before
    for line in confirmation_lines(again):
        assert line in printed


@pytest.mark.parametrize("option", [{"top": 1}, {"seeds": 1}])
def test_fewer_than_before_are_refused(confirmed, option):
    """A confirmation is extended and never cut short."""
    _, found = confirmed
    with pytest.raises(ResultsError, match="can be extended, not cut short"):
        confirm.confirm(found.folder.path, **option)


def test_another_margin_judges_again_without_training(confirmed):
    """A margin of 100 nats settles that nothing differs; it stays until another is given."""
    _, found = confirmed
    done = command("confirm", found.folder.path, "--margin", 100)
    assert done.returncode == 0, done.stderr
    assert "there is no difference that matters, which is more than 100.0000 nats" in done.stdout
    assert openings(found.folder) == openings(found.folder)[:1]
    again = confirm.load(found.folder.path)
    assert again.winners["is_winner"].all()
    assert set(again.winners["margin"]) == {100}
    assert again.winner == results.load(found.folder.path).best().number
    assert command("confirm", found.folder.path, "--margin", 0).returncode == 0
    assert set(confirm.load(found.folder.path).winners["margin"]) == {0}
    wrong = command("confirm", found.folder.path, "--margin", -1)
    assert wrong.returncode == 2
    assert "margin: must be a number >= 0, not -1.0" in wrong.stderr


def test_resume_goes_on_with_a_confirmation_by_its_own_folder(confirmed):
    """What a signal's message names can be typed."""
    _, found = confirmed
    done = command("resume", found.folder.confirm.path)
    assert done.returncode == 0, done.stderr
    assert f"Winner: trial {found.winner}" in done.stdout
    with pytest.raises(ResultsError, match="is no search but of the kind confirm"):
        search.resume(found.folder.confirm.path)


def test_more_seeds_add_to_what_is_there(confirmed):
    """The trials of before keep their results, and the new opening is recorded too."""
    _, found = confirmed
    grown = confirm.confirm(found.folder.path, seeds=3)
    assert grown.replicates.head(4).equals(found.replicates)
    assert len(grown.replicates) == 6
    assert len(openings(found.folder)) == 2
    assert found.folder.best.evaluation.exists()
    assert check.check(found.folder.confirm.path).num_trials == 6


def test_what_cannot_be_confirmed_is_refused(tmp_path):
    """A run without a complete trial says how to get one."""
    run = finished(tmp_path / "run", num_trials=0)
    with pytest.raises(ResultsError, match="no trial is complete yet; go on with"):
        confirm.confirm(run.path)
    assert confirm.load(run.path) is None


def test_other_images_are_refused_before_the_test_set_is_opened(tmp_path):
    """The search's checksum decides, and nothing is recorded or written."""
    run = finished(tmp_path / "run")
    with pytest.raises(ResultsError, match="the run was made with data of checksum none"):
        confirm.confirm(run.path)
    assert openings(run) == []
    assert not run.confirm.path.exists()


def test_a_run_without_a_winner_says_how_to_get_one(tmp_path):
    """To load and to predict need a confirmed winner."""
    run = finished(tmp_path / "run")
    for ask in (tune_softmax.load_model, lambda path: predict(path, [])):
        with pytest.raises(ResultsError, match="make one with: tune-softmax confirm"):
            ask(run.path)


def test_an_interrupted_confirmation_goes_on(tmp_path):
    """Killed outright, it is confirmed again without training what is done."""
    run = tmp_path / "run"
    search.search(parse(EXPERIMENT, "small.yaml"), run_dir=run)
    child = [COMMAND, "confirm", str(run), "--seeds", "40"]
    folder = RunFolder(run).confirm
    with subprocess.Popen(child, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            is_begun = folder.log.exists() and "started" in folder.log.read_text()
            if is_begun and results.load(folder.path).count("COMPLETE"):
                break
            time.sleep(0.05)
        process.kill()
    done = results.load(folder.path).count("COMPLETE")
    assert 0 < done < 200
    assert confirm.load(run) is None
    found = confirm.confirm(run)
    assert len(found.replicates) == 200
    assert len(openings(found.folder)) == 1
    trials = results.load(folder.path).trials
    assert (trials["attempts"] == 1).sum() >= done
