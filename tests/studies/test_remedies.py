"""The study of remedies, from end to end on a real local Ray."""

import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tune_softmax.commands.study_tables import remedy_lines
from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.experiment.experiment import load, parse
from tune_softmax.run import check, results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.stats.margins import Verdict
from tune_softmax.studies import remedies, search

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = str(Path(sys.executable).parent / "tune-softmax")
EXPERIMENT = """name: small
dataset: {name: digits, validation: 0.25, train_fraction: 0.1}
space: {batch_size: 16, num_epochs: NUM_EPOCHS, learning_rate: 0.5}
search: {seed: 3}
resources: {max_concurrent_packs: 1}
remedies:
  seeds: 3
  early_stopping: [1, 3]
  weight_decay: [1e-3, 1e-2]
  l1: []
  augmentation: [0.1, 0.5]
  more_data: [0.5, 1]
  less_data: [0.05]
"""


def write(folder, num_epochs):
    """Write an experiment."""
    path = folder / "small.yaml"
    path.write_text(EXPERIMENT.replace("NUM_EPOCHS", str(num_epochs)))
    return path


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study by the command, what it printed, and what it found."""
    folder = tmp_path_factory.mktemp("studied")
    done = subprocess.run(
        [COMMAND, "remedies", str(write(folder, 12))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, remedies.load(folder / "runs" / "small")


def test_every_arm_is_measured_at_every_seed(studied):
    """The dataframe has one row for each, without a gap."""
    _, found = studied
    counts = found.arms.groupby(["remedy", "strength"], sort=False).size()
    assert set(counts) == {3}
    assert found.arms["remedy"].iloc[0] == "baseline"
    assert set(found.arms["remedy"]) >= {"early_stopping", "weight_decay", "more_data"}
    assert not found.arms.isna().any().any()
    assert set(found.arms["seed"]) == {3, 4, 5}


def test_every_row_names_the_trial_that_has_its_curve(studied):
    """The numbers are those of the run's dataframes, each once."""
    _, found = studied
    run = results.load(found.folder.path)
    arms = found.arms.set_index("trial")
    assert sorted(arms.index) == list(run.trials["number"])
    lengths = run.epochs.groupby("trial").size()
    assert dict(arms["epochs"]) == dict(lengths)
    baseline = arms[arms["remedy"] == "baseline"].index[0]
    last = run.epochs[run.epochs["trial"] == baseline].iloc[-1]
    assert arms.loc[baseline, "validation_loss"] == last["validation_loss"]


def test_the_gap_is_validation_minus_training_loss(studied):
    """As the report reads it."""
    _, found = studied
    gap = found.arms["validation_loss"] - found.arms["train_loss"]
    np.testing.assert_allclose(found.arms["gap"], gap)


def test_early_stopping_is_measured_at_its_best_epoch(studied):
    """Its validation loss is the least of its curve; it stops so many epochs after it."""
    _, found = studied
    run = results.load(found.folder.path)
    least = run.trials["best_validation_loss"].round(12)
    patient = found.arms[found.arms["remedy"] == "early_stopping"]
    assert set(patient["validation_loss"].round(12)) <= set(least)
    waited = patient["epochs"] - patient["best_epoch"]
    assert ((waited == patient["strength"]) | (patient["epochs"] == 12)).all()
    others = found.arms[found.arms["remedy"] == "weight_decay"]
    assert (others["epochs"] == 12).all()


def test_more_images_help_and_no_verdict_is_bought_by_the_test_set(studied):
    """Ten times the images lower the test loss; less data is shown, and compared with nothing."""
    _, found = studied
    means = found.arms.groupby(["remedy", "strength"])["test_loss"].mean()
    assert means["more_data", 1.0] < means["baseline", 0.0] < means["less_data", 0.05]
    assert "less_data" not in set(found.effects["remedy"])
    assert set(found.effects["num_comparisons"]) == {len(means) - 2}


def test_the_opening_of_the_test_set_is_recorded_once(studied):
    """It comes before the first trial ends, and no result is there without it."""
    _, found = studied
    with closing(Ledger.open(found.folder.ledger)) as ledger:
        kinds = [kind for _, kind, _ in ledger.events()]
        tests = ledger.test_results()
    assert kinds.count("test_opened") == 1
    assert kinds.index("test_opened") < kinds.index("started")
    assert len(tests) == len(found.arms)


def test_the_run_keeps_every_rule(studied):
    """`check` finds nothing wrong."""
    _, found = studied
    assert check.check(found.folder.path).num_trials == len(found.arms)


def test_what_is_printed_begins_with_whether_the_baseline_overfits(studied):
    """The verdict on overfitting comes first; what was left out is said."""
    printed, found = studied
    assert printed.index(found.overfitting.sentence) < printed.index("Means over seeds")
    assert "Equal tuning budget: each remedy had 2 strengths" in printed
    assert "Left out or failed: smaller_model: the base is softmax regression" in printed
    for line in remedy_lines(found):
        assert line in printed


def test_a_finished_study_is_read_and_not_trained_again(studied):
    """To resume it gives what was found, without Ray."""
    _, found = studied
    started = time.monotonic()
    again = remedies.resume(found.folder.path)
    assert again.arms.equals(found.arms)
    assert time.monotonic() - started < 5


def test_a_search_cannot_be_resumed_from_a_study(studied):
    """`search.resume` names the run's kind instead of proposing trials."""
    _, found = studied
    with pytest.raises(ResultsError, match="is no search but of the kind remedies"):
        search.resume(found.folder.path)


def test_a_changed_section_is_refused(studied):
    """A study goes on with the strengths that it began with."""
    _, found = studied
    path = found.folder.experiment
    text = path.read_text()
    path.write_text(text.replace("seeds: 3", "seeds: 4"))
    try:
        with pytest.raises(ResultsError, match="the section remedies is not the one"):
            remedies.resume(found.folder.path)
    finally:
        path.write_text(text)


def test_a_killed_study_goes_on(tmp_path):
    """Killed outright, it is resumed by the command, and finds what an unbroken one finds."""
    path = write(tmp_path, 60)
    with subprocess.Popen(
        [COMMAND, "remedies", str(path), "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        folder = RunFolder(tmp_path / "run")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (
                isinstance(folder.ledger, Path)
                and folder.ledger.exists()
                and folder.log.exists()
                and "started" in folder.log.read_text()
                and results.load(folder.path).count("COMPLETE") > 0
            ):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    before = results.load(folder.path)
    assert before.count("COMPLETE") > 0
    assert remedies.load(folder.path) is None
    done = subprocess.run(
        [COMMAND, "resume", str(folder.path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = results.load(folder.path)
    kept = before.trials[before.trials["state"] == "COMPLETE"]["number"]
    attempts = after.trials.set_index("number")["attempts"]
    assert (attempts[kept] == 1).all()
    assert remedies.load(folder.path) is not None
    check.check(folder.path)


def test_a_batch_larger_than_the_baseline_is_refused(tmp_path):
    """The baseline's images are a fraction of those that are loaded."""
    text = EXPERIMENT.replace("NUM_EPOCHS", "4").replace("batch_size: 16", "batch_size: 500")
    with pytest.raises(ExperimentError, match="at most the 108 training images of the baseline"):
        remedies.remedies(parse(text, "small.yaml"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_linear_world_without_noise_does_not_overfit(tmp_path, write_idx):
    """20,000 images whose labels a linear function gives: longer training does not hurt."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 4))
    for name, num in (("train", 24_000), ("t10k", 4_000)):
        images = rng.integers(0, 256, (num, 4, 4), dtype=np.uint8)
        labels = ((images.reshape(num, 16) - 127.5) @ weights).argmax(1).astype(np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", labels)
    path = tmp_path / "linear.yaml"
    path.write_text(
        "dataset: {name: idx, path: ., validation: 4000, train_fraction: 0.9}\n"
        "space: {batch_size: 128, num_epochs: 20, learning_rate: 0.5}\n"
        "remedies: {seeds: 4, early_stopping: [1, 3], weight_decay: [1e-4, 1e-2], l1: [],\n"
        "           augmentation: [], more_data: []}\n"
    )
    found = remedies.remedies(load(path), run_dir=tmp_path / "run")
    assert not found.overfitting.is_overfitting
    assert found.overfitting.sentence.startswith("The validation loss does not rise again")
    verdicts = found.effects.set_index("remedy")["verdict"]
    assert Verdict.BETTER not in set(verdicts)


def test_one_per_cent_of_fashion_mnist_is_overfitted(tmp_path, fashion_mnist_dir):
    """Softmax regression on 550 images overfits; L2 and more images help, surely."""
    path = tmp_path / "few.yaml"
    path.write_text(
        "dataset: {name: fashion-mnist, validation: 5000, train_fraction: 0.01}\n"
        "space: {batch_size: 50, num_epochs: 250, learning_rate: 0.08}\n"
        "remedies: {seeds: 6, early_stopping: [3, 10], weight_decay: [3e-3, 1e-2], l1: [],\n"
        "           augmentation: [], more_data: [0.02, 0.03]}\n"
    )
    found = remedies.remedies(load(path), run_dir=tmp_path / "run", data_dir=fashion_mnist_dir)
    assert found.overfitting.is_overfitting
    effects = found.effects.set_index("remedy")
    for remedy in ("weight_decay", "more_data", "combined"):
        assert effects.loc[remedy, "verdict"] == Verdict.BETTER
        assert effects.loc[remedy, "high"] < 0
