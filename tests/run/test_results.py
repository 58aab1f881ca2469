"""Results: a run folder's names and lock, and what its ledger becomes as dataframes."""

import json
import math
import os
import socket
import subprocess
import sys
from contextlib import closing

import pandas as pd
import pytest

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, RunInUseError, StorageError
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State, trial_value
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.results import load
from tune_softmax.run.tables import TRIALS as TRIALS_TABLE

EXPERIMENT = """
dataset: {{name: digits}}
space:
  batch_size: 64
  num_epochs: {{int: [1, 8]}}
  learning_rate: {{choice: [0.1, 0.5, 1]}}
  learning_rate_schedule: {{choice: [constant, linear]}}
search: {{num_trials: 8, metric: {metric}}}
"""

# The columns of `trials`, in order, with their types.
TRIAL_COLUMNS = {
    "number": "int64",
    "state": "str",
    "batch_size": "int64",
    "num_epochs": "int64",
    "learning_rate": "float64",
    "learning_rate_schedule": "str",
    "weight_decay": "float64",
    "l1": "float64",
    "momentum": "float64",
    "hidden_units": "int64",
    "augmentation": "float64",
    "value": "float64",
    "last_validation_loss": "float64",
    "best_validation_loss": "float64",
    "last_validation_accuracy": "float64",
    "best_validation_accuracy": "float64",
    "last_train_loss": "float64",
    "last_train_accuracy": "float64",
    "epochs_trained": "int64",
    "best_epoch": "Int64",
    "rung": "Int64",
    "pack": "int64",
    "attempts": "int64",
    "seconds": "float64",
    "error": "str",
}
EPOCH_COLUMNS = {
    "trial": "int64",
    "epoch": "int64",
    "train_loss": "float64",
    "train_accuracy": "float64",
    "validation_loss": "float64",
    "validation_accuracy": "float64",
    "seconds": "float64",
}


def config(number=0, schedule="constant"):
    """Return a trial's configuration."""
    return Config(
        batch_size=64,
        num_epochs=number % 8 + 1,
        learning_rate=0.5,
        learning_rate_schedule=schedule,
    )


@pytest.fixture
def make_run(tmp_path):
    """Return the function that makes a run of the given trials."""

    def make(trials, metric="validation_loss", schedule="constant"):
        """Each trial is (state, validation losses, error); the accuracy is 1 - loss / 10."""
        folder = RunFolder(tmp_path / "run")
        folder.create()
        folder.experiment.write_text(parse(EXPERIMENT.format(metric=metric), "run.yaml").to_yaml())
        with closing(Ledger.create(folder.ledger, {})) as ledger:
            if trials:
                configs = {number: config(number, schedule) for number in range(len(trials))}
                ledger.hand_out(0, configs)
            for number, (state, losses, error) in enumerate(trials):
                for epoch, loss in enumerate(losses, 1):
                    metrics = EpochMetrics(loss / 2, 0.5, loss, 1 - loss / 10, 0.25)
                    is_last = epoch == len(losses)
                    ledger.record(
                        0,
                        [
                            Report(
                                number,
                                epoch,
                                metrics,
                                state if is_last and state is not State.WAITING else State.RUNNING,
                                epoch,
                                error if is_last else None,
                            )
                        ],
                    )
                if state in {State.FAIL, State.WAITING}:
                    ledger.finish([number], state, error)
        return folder.path

    return make


TRIALS = [
    (State.COMPLETE, [0.5, 0.25, 0.375], None),
    (State.PRUNED, [0.2], None),
    (State.FAIL, [0.5, math.nan], "diverged"),
    (State.FAIL, [math.inf], "diverged"),
    (State.FAIL, [], "it raised"),
    (State.RUNNING, [0.75], None),
    (State.WAITING, [], None),
]


# Dataframes


@pytest.mark.parametrize("trials", [TRIALS, TRIALS[:1], TRIALS[4:5], []])
@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_columns_and_types_are_always_the_same(make_run, trials, metric):
    """Whatever the trials have come to, and even without any."""
    found = load(make_run(trials, metric))
    assert {name: str(kind) for name, kind in found.trials.dtypes.items()} == TRIAL_COLUMNS
    assert list(found.trials) == list(TRIAL_COLUMNS)
    assert {name: str(kind) for name, kind in found.epochs.dtypes.items()} == EPOCH_COLUMNS
    assert list(found.epochs) == list(EPOCH_COLUMNS)
    assert len(found.trials) == len(trials)
    assert len(found.epochs) == sum(len(losses) for _, losses, _ in trials)


def test_every_trial_is_there_with_what_came_of_it(make_run):
    """States, last and best values, epochs, rungs, seconds and errors, trial by trial."""
    trials = load(make_run(TRIALS)).trials
    nan, na = math.nan, pd.NA
    expected = {
        "state": ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "RUNNING", "WAITING"],
        "num_epochs": [1, 2, 3, 4, 5, 6, 7],
        "value": [0.375, 0.2, nan, nan, nan, 0.75, nan],
        "last_validation_loss": [0.375, 0.2, nan, math.inf, nan, 0.75, nan],
        "best_validation_loss": [0.25, 0.2, 0.5, nan, nan, 0.75, nan],
        "last_train_loss": [0.1875, 0.1, nan, math.inf, nan, 0.375, nan],
        "epochs_trained": [3, 1, 2, 1, 0, 1, 0],
        "best_epoch": [2, 1, 1, na, na, 1, na],
        "rung": [3, 1, 2, 1, na, 1, na],
        "attempts": [1] * 7,
        "seconds": [0.75, 0.25, 0.5, 0.25, 0.0, 0.25, 0.0],
        "error": [nan, nan, "diverged", "diverged", "it raised", nan, nan],
    }
    for name, values in expected.items():
        column = pd.Series(values, dtype=TRIAL_COLUMNS[name], name=name)
        pd.testing.assert_series_equal(trials[name], column)


def test_the_best_epoch_follows_the_metric(make_run):
    """By accuracy the best epoch is the most accurate one."""
    trials = load(make_run(TRIALS[:2], "validation_accuracy")).trials
    assert trials["best_epoch"].tolist() == [2, 1]
    assert trials["best_validation_accuracy"].tolist() == [1 - 0.025, 1 - 0.02]


def test_a_trial_that_diverged_has_no_value_by_accuracy_either(make_run):
    """Its accuracy is finite: the class of a NaN is 0, which may be most of the images."""
    path = make_run(TRIALS[:1], "validation_accuracy")
    with closing(Ledger.open(path / "run.db", writable=True)) as ledger:
        ledger.hand_out(1, {1: config(1)})
        first = EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.25)
        ledger.record(1, [Report(1, 1, first, State.RUNNING)])
        nowhere = EpochMetrics(math.nan, 0.9, math.nan, 0.9, 0.25)
        ledger.record(1, [Report(1, 2, nowhere, State.FAIL, error="diverged")])
    found = load(path)
    row = found.trials.loc[1]
    assert math.isnan(row["value"])
    assert (row["last_validation_accuracy"], row["best_validation_accuracy"]) == (0.9, 0.5)
    assert row["best_epoch"] == 1
    assert found.ranked()["number"].tolist() == [0]


def test_epochs_are_rows_by_trial_and_epoch(make_run):
    """Every number is as it was recorded."""
    epochs = load(make_run(TRIALS)).epochs
    assert epochs[["trial", "epoch"]].to_numpy().tolist() == [
        [n, e + 1] for n, (_, losses, _) in enumerate(TRIALS) for e in range(len(losses))
    ]
    assert epochs.iloc[1].tolist() == [0, 2, 0.125, 0.5, 0.25, 1 - 0.025, 0.25]


# The best


@pytest.mark.parametrize(
    ("trials", "metric", "expected"),
    [
        # A trial that ran its epochs comes before a stopped one with a better value.
        (TRIALS, "validation_loss", (0, 0.375, 3)),
        (TRIALS, "validation_accuracy", (0, 1 - 0.0375, 3)),
        (TRIALS[1:], "validation_loss", (0, 0.2, 1)),
        (TRIALS[2:], "validation_loss", (3, 0.75, 1)),
        ([TRIALS[0], (State.COMPLETE, [0.3], None)], "validation_loss", (1, 0.3, 1)),
        # Of equal ones the first, by either metric.
        ([TRIALS[0]] * 3, "validation_loss", (0, 0.375, 3)),
        ([TRIALS[0]] * 3, "validation_accuracy", (0, 1 - 0.0375, 3)),
    ],
)
def test_the_best_trial(make_run, trials, metric, expected):
    """Its number, the metric after its last epoch, that epoch, and its configuration."""
    best = load(make_run(trials, metric)).best()
    assert (best.number, best.value, best.epoch) == expected
    assert best.metric == metric
    assert best.config == config(best.number)


def test_trials_are_ranked_by_their_values(make_run):
    """A constant rate's loss goes up and down: five epochs count two, eight count two."""
    lucky = (State.COMPLETE, [0.9, 0.9, 0.9, 0.9, 0.1], None)
    steady = (State.COMPLETE, [0.9, 0.6, 0.6, 0.5, 0.4, 0.4, 0.4, 0.3], None)
    found = load(make_run([lucky, steady]))
    assert found.trials["value"].tolist() == [pytest.approx(0.5), pytest.approx(0.35)]
    assert found.ranked()["number"].tolist() == [1, 0]
    best = found.best()
    assert (best.number, best.num_averaged, best.span) == (1, 2, "epochs 7 to 8")
    curves = found.epochs.groupby("trial")["validation_loss"].agg(list)
    for number, value in enumerate(found.trials["value"]):
        assert value == pytest.approx(trial_value(curves[number], "constant"))


def test_a_rate_that_falls_is_ranked_by_its_last_loss(make_run):
    """Its weights have come to rest."""
    trials = [(State.COMPLETE, [0.9] * 7 + [0.3], None)]
    best = load(make_run(trials, schedule="linear")).best()
    assert (best.value, best.num_averaged, best.span) == (0.3, 1, "epoch 8")


@pytest.mark.parametrize("trials", [[], TRIALS[4:5], TRIALS[6:]])
def test_without_a_value_there_is_no_best_trial(make_run, trials):
    """The message says so, instead of a number that nobody measured."""
    with pytest.raises(ResultsError, match="no trial has a result yet"):
        load(make_run(trials)).best()


def test_ranking_and_counting(make_run):
    """Trials with a value, the best first; counts by state."""
    found = load(make_run(TRIALS))
    assert found.ranked()["number"].tolist() == [1, 0, 5]
    failed = found.trials[found.trials["state"] == "FAIL"]
    assert found.ranked(failed).empty
    assert found.count(State.FAIL) == 3
    assert found.count(State.COMPLETE, State.PRUNED) == 2


def test_the_configuration_of_a_trial(make_run):
    """As it was handed out; another number is refused with those there are."""
    found = load(make_run(TRIALS))
    assert [found.config(number) for number in range(7)] == [config(n) for n in range(7)]
    assert isinstance(found.config(0).batch_size, int)
    with pytest.raises(ResultsError, match="there is no trial 7, only 0 to 6"):
        found.config(7)


def test_a_run_without_trials_has_no_configuration(make_run):
    """The message does not count to -1."""
    with pytest.raises(ResultsError, match="there is no trial 0, nor any other"):
        load(make_run([])).config(0)


def test_reading_needs_neither_torch_nor_ray_nor_optuna(make_run):
    """Results load fast, in a fresh process."""
    code = (
        "import sys; from tune_softmax.run.results import load; "
        "from tune_softmax.commands import result_tables; load(sys.argv[1]).best(); "
        "print(sorted({'torch', 'ray', 'optuna', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, make_run(TRIALS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Damage


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file or directory"),
        ("dataset: {name: digits", "restore the folder from a copy"),
        ("dataset: {name: digits}\nspace: {batch_size: 0}", "space.batch_size"),
    ],
)
def test_a_damaged_experiment_is_a_damaged_run(make_run, content, expected):
    """The file is named, with what is wrong in it."""
    folder = RunFolder(make_run(TRIALS))
    folder.experiment.unlink()
    if content is not None:
        folder.experiment.write_text(content)
    with pytest.raises(DamagedRunError, match=expected) as caught:
        load(folder.path)
    assert str(caught.value).count(str(folder.experiment)) == 1 + str(caught.value).count("\n")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"config": {"batch_size": "x"}}, "number 1: cannot be read .batch_size is 'x'"),
        ({"config": {"batch_size": True}}, "batch_size is True"),
        ({"config": {"batch_size": 10**30}}, "a number that is too large"),
        ({"config": {"learning_rate": None}}, "learning_rate is None"),
        ({"config": {"learning_rate_schedule": 1}}, "learning_rate_schedule is 1"),
        ({"config": {"depth": 1}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_value_of_the_wrong_type_is_a_damaged_run(make_run, wrong, reason):
    """A run whose checksums are right is refused all the same."""
    folder = RunFolder(make_run(TRIALS))
    with (
        closing(Ledger.open(folder.ledger, writable=True)) as ledger,
        ledger._transaction() as batch,
    ):
        (row,) = batch.find(TRIALS_TABLE, [1])
        config = json.loads(row["config"]) | wrong.get("config", {})
        batch.put(TRIALS_TABLE, [{**row, "config": json.dumps(config)}])
    with pytest.raises(DamagedRunError, match=reason):
        load(folder.path)


# The folder


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    """An empty one that exists will do."""
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.create()
    folder.create()
    assert list(folder.path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path):
    """It says how to go on, and leaves what is there."""
    (tmp_path / "notes.txt").write_text("mine")
    for refuse in (RunFolder(tmp_path).check_free, RunFolder(tmp_path).create):
        with pytest.raises(ResultsError, match="the folder is not empty; go on with `tune-softm"):
            refuse()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    """A file in its place, or above it."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError) as caught:
            RunFolder(path).create()
        assert caught.value.exit_code == 4
        assert str(caught.value).startswith(f"{path}: ")


WRITE = """
import sys, time
from pathlib import Path
from tune_softmax.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).writing():
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Return another process that writes the run in `tmp_path`."""
    command = [sys.executable, "-c", WRITE, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_one_process_writes_a_run(tmp_path, writer):
    """The second is told which process and host, and exits with 6."""
    with pytest.raises(RunInUseError) as caught, RunFolder(tmp_path).writing():
        pass
    message = f"{tmp_path}: process {writer.pid} on {socket.gethostname()} (since 20"
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 6


def test_a_writer_without_a_readable_name_still_writes(tmp_path, writer):
    """The lock decides, not the file that explains it."""
    for text in ("", "{}", "[]", "7", '{"process": 1}', "\0"):
        (tmp_path / "writer.json").write_text(text)
        with (
            pytest.raises(RunInUseError, match="another process writes this run"),
            RunFolder(tmp_path).writing(),
        ):
            pass
    assert writer.poll() is None


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, writer):
    """Nobody has to remove anything."""
    writer.kill()
    writer.wait()
    assert (tmp_path / "writer.json").exists()
    with RunFolder(tmp_path).writing():
        note = json.loads((tmp_path / "writer.json").read_text())
        assert note["process"] != writer.pid
    assert not (tmp_path / "writer.json").exists()


def test_an_error_gives_the_lock_back(tmp_path):
    """A run that failed can be resumed at once."""
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyError), folder.writing():
        raise KeyError
    with folder.writing():
        assert (tmp_path / "writer.json").exists()
    assert not (tmp_path / "writer.json").exists()


def test_a_folder_that_cannot_be_written_gives_no_lock(tmp_path):
    """A storage error, in one line."""
    (tmp_path / "writer.json").mkdir()
    with (
        pytest.raises(StorageError, match="cannot write there"),
        RunFolder(tmp_path).writing(),
    ):
        pass


def test_a_finished_run_loads_while_another_process_holds_the_lock(make_run):
    """Reading needs no lock."""
    path = make_run(TRIALS)
    with RunFolder(path).writing():
        assert len(load(path).trials) == 7


@pytest.mark.parametrize("name", ["run.db", "log.txt", "run.lock", "best", "confirm"])
def test_a_run_is_not_written_through_a_link(make_run, tmp_path, name):
    """It may come from a stranger, and the link lead to what is none of the run's."""
    folder = RunFolder(make_run(TRIALS))
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedRunError, match=f"{name}: must not be a link"), folder.writing():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_log_that_is_a_pipe_hangs_nobody(make_run):
    """Who opens one waits for a reader."""
    folder = RunFolder(make_run(TRIALS))
    os.mkfifo(folder.log)
    with pytest.raises(DamagedRunError, match=r"log\.txt: must be a file"), folder.writing():
        pass
