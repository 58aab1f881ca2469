"""The bench of whole searches: what is asked of every way, and what its table says of each."""

import json
import re
import sys
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from tune_softmax.bench import outcomes, search
from tune_softmax.bench.anew import mean_and_error, train_anew
from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.outcomes import Outcome, Row
from tune_softmax.bench.search import bench_search
from tune_softmax.bench.search_table import format_table, to_json
from tune_softmax.bench.task import Task, prepare_images
from tune_softmax.bench.trace import Report, best_after, read, read_configs
from tune_softmax.bench.ways import OURS, OURS_TO_LIMIT, PEERS, WAYS
from tune_softmax.config import Config
from tune_softmax.data import dataset as data
from tune_softmax.engine.arrays import to_arrays
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment import experiment
from tune_softmax.metrics import EpochMetrics, State
from tune_softmax.metrics import Report as LedgerReport
from tune_softmax.run.ledger import Ledger

CONDITIONS = Conditions.now()
NUM_IMAGES, NUM_VALIDATION = 1_500, 300
BY_NAME = {way.name: way for way in WAYS}


@pytest.fixture
def small_dir(tmp_path, write_idx):
    """Return a data folder with few random images in the place of Fashion-MNIST's."""
    random = np.random.default_rng(0)
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    for part, count in (("train", NUM_IMAGES), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path / "data"


@pytest.fixture
def task(tmp_path, small_dir):
    """Return a task of three trials on these images."""
    folder = tmp_path / "task"
    folder.mkdir()
    prepare_images(tmp_path / "images", small_dir, NUM_VALIDATION)
    return Task(folder, tmp_path / "images", num_trials=3, seed=5, started=0.0)


def outcome(wall_s, losses, *, is_whole=True):
    """Return a search that has reported some losses, one a second, each of a trial of its own."""
    reports = [Report(i + 1.0, str(i), loss, 2) for i, loss in enumerate(losses)]
    return Outcome(wall_s, is_whole, tuple(reports))


def failure(error):
    """Return a search that came to nothing."""
    return Outcome(wall_s=1, is_whole=False, reports=(), error=error)


# --- What is asked ------------------------------------------------------------------------------


def test_a_task_survives_its_file(task):
    """Its process reads what was written."""
    task.write()
    assert Task.read(task.file) == task


def test_peers_split_the_images_as_we_do(task, small_dir):
    """Torchvision's images at the split's indices are those that our own loader gives."""
    from torchvision.datasets import FashionMNIST

    ours = data.load_dataset("fashion-mnist", validation=NUM_VALIDATION, data_dir=small_dir)
    source = FashionMNIST(str(task.images), train=True)
    for indices, split in zip(task.split(), (ours.train, ours.validation), strict=True):
        np.testing.assert_array_equal(source.data.numpy()[indices], split.images)
        np.testing.assert_array_equal(source.targets.numpy()[indices], split.labels)


def test_our_experiment_is_the_task(task):
    """What we search is what the peers are asked for, and the file is one we read."""
    command = search._our_search(task, Path("there"), NUM_VALIDATION)
    asked = experiment.load(task.folder / "experiment.yaml")
    assert command[-2:] == ["--data-dir", str(Path("there").absolute())]
    assert asked.dataset.validation == NUM_VALIDATION
    assert asked.search.num_trials == 3
    assert asked.search.seed == 5
    assert asked.search.asha.reduction_factor == 4
    assert asked.space.largest("num_epochs") == 20
    assert set(asked.space.searched) == {
        *("batch_size", "learning_rate", "weight_decay", "momentum")
    }


def test_our_losses_are_read_from_the_ledger_while_it_is_written(task):
    """Every epoch is noted once, at the first look that finds it."""
    run = task.folder / "run"
    watch = search._Ledger(task)
    watch.look()  # before there is one
    run.mkdir()
    ledger = Ledger.create(run / "run.db", {})
    ledger.hand_out(0, {n: Config(batch_size=64, num_epochs=2, learning_rate=0.1) for n in (0, 1)})
    for epoch, losses in ((1, (0.7, nan)), (2, (0.5,))):
        reports = [
            LedgerReport(number, epoch, EpochMetrics(1.0, 0.5, loss, 0.5, 0.1), State.RUNNING)
            for number, loss in enumerate(losses)
        ]
        ledger.record(0, reports)
        watch.look()
        watch.look()
    ledger.close()
    watch.describe()
    assert read_configs(task.trace.path) == {
        str(n): Config(batch_size=64, num_epochs=2, learning_rate=0.1) for n in (0, 1)
    }
    reports = read(task.trace.path)
    assert [(one.trial, one.loss) for one in reports if one.trial == "0"] == [
        ("0", 0.7),
        ("0", 0.5),
    ]
    assert len(reports) == 3
    assert best_after(reports, inf) == 0.5


# --- What the table says ------------------------------------------------------------------------


def test_the_best_loss_is_of_what_was_reported_by_then():
    """Later, infinite and missing values are none."""
    reports = outcome(9, [0.9, inf, 0.5, nan, 0.7]).reports
    assert best_after(reports, 0.5) is None
    assert best_after(reports, 2) == 0.9
    assert best_after(reports, 3) == 0.5
    assert best_after((), inf) is None


def test_a_whole_search_did_what_it_was_asked():
    """Its seconds a trial are of all its trials, start-up included."""
    row = Row(OURS, 8, (outcome(16, [0.5]), outcome(24, [0.7])))
    assert row.trials_done == (8, 8)
    assert row.seconds_per_trial == (2, 3)
    assert row.best == pytest.approx(0.6)
    assert row.epochs_per_trial == 2 / 8
    assert row.best_after(300) == pytest.approx(0.6)


def test_a_search_that_was_cut_off_is_reckoned_from_the_trials_it_did():
    """Of the two it was at, each counts half; and later losses of it are not known."""
    row = Row(BY_NAME["optuna"], 100, (outcome(30, [0.5] * 5, is_whole=False),))
    assert row.trials_done == (4,)
    assert row.seconds_per_trial == (7.5,)
    assert row.best_after(30) == 0.5
    assert row.best_after(100) is None


def test_a_synchronous_search_that_was_cut_off_is_reckoned_from_epochs():
    """Halving 16 trials by 4 trains 16 of one epoch, 4 of 4 and 1 of 16: 48 epochs."""
    assert outcomes._halving_epochs(16) == 48
    assert outcomes._halving_epochs(256) == 256 + 64 * 4 + 16 * 16
    assert outcomes._halving_epochs(5) == 5 + 2 * 4
    assert outcomes._halving_epochs(1) == 1
    row = Row(BY_NAME["scikit-learn"], 16, (outcome(30, [0.5] * 6, is_whole=False),))
    assert row.trials_done == (16 * 12 / 48,)


def test_the_table_holds_every_way_against_ours():
    """Ratios are of medians; a failure has its error below, and no figures."""
    rows = [
        Row(OURS, 8, (outcome(4, [0.5]), outcome(12, [0.4]), outcome(8, [0.6]))),
        Row(BY_NAME["optuna"], 8, (outcome(80, [0.6]),) * 3),
        Row(BY_NAME["syne-tune"], 8, (failure("exit code 1: no such thing"),)),
    ]
    text = format_table(rows, CONDITIONS)
    for part in ("8 trials", "2 at once", "medians of 3", "ray 2.", "commit "):
        assert part in text
    header, ours, optuna, syne = (
        re.split("  +", line.strip()) for line in text.split("\n\n")[1].splitlines()
    )
    assert header[-6:] == ["ratio", "best loss", *(f"after {s} s" for s in (10, 30, 100, 300))]
    assert ours[:6] == ["tune_softmax", "8", "0.2", "8.0", "4.0 to 12.0", "1.000"]
    assert ours[7:9] == ["1.0", "0.5000"]
    assert optuna[3:8] == ["80.0", "80.0 to 80.0", "10.000", "360", "10.0"]
    assert syne[:3] == ["syne-tune", "failed", "-"]
    assert "syne-tune failed: exit code 1: no such thing" in text
    content = json.loads(to_json(rows, CONDITIONS))
    assert [row["ratio"] for row in content["rows"]] == [1.0, 10.0, None]
    assert content["rows"][2]["error"] == "exit code 1: no such thing"
    assert content["rows"][0]["best_loss"] == [0.5, 0.4, 0.6]


def test_a_search_of_ours_that_failed_leaves_no_ratio():
    """There is nothing to hold the others against, and they are shown all the same."""
    rows = [
        Row(OURS, 8, (failure("exit code 2: a word"),)),
        Row(BY_NAME["optuna"], 8, (outcome(80, [0.6]),)),
    ]
    assert "10.000" in format_table(rows, CONDITIONS)
    assert json.loads(to_json(rows, CONDITIONS))["rows"][1]["ratio"] is None


# --- Winners trained anew -----------------------------------------------------------------------

FAST, SLOW = (Config(batch_size=64, num_epochs=2, learning_rate=rate) for rate in (0.05, 0.01))


def test_winners_anew_are_what_plain_training_gives(small_dir):
    """Every seed is torch's own SGD over that seed's orders, from the first trial's weights."""
    from tune_softmax.data.seeding import derive_seed
    from tune_softmax.engine.reference import train
    from tune_softmax.engine.tensors import to_tensors

    dataset = data.load_dataset("fashion-mnist", validation=NUM_VALIDATION, data_dir=small_dir)
    found = train_anew([FAST, SLOW, FAST], to_arrays(dataset), num_seeds=2, num_threads=2)
    assert list(found) == [FAST, SLOW]
    for config, losses in found.items():
        for i, loss in enumerate(losses):
            last = []
            train(
                config,
                to_tensors(dataset, "cpu"),
                seed=derive_seed(0, "anew", i),
                on_epoch=lambda _, metrics, last=last: last.append(metrics.validation_loss),
            )
            assert loss == pytest.approx(last[-1], abs=1e-5)
    assert train_anew([], to_arrays(dataset), num_seeds=2, num_threads=1) == {}


def test_a_mean_has_an_error_where_there_are_several_values():
    """The standard deviation over the root of their number; what diverged has no mean."""
    assert mean_and_error([0.5]) == (0.5, None)
    assert mean_and_error([0.4, 0.6]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert mean_and_error([]) is None
    assert mean_and_error([0.4, inf]) is None


CURVES_SO_FAR = {
    "lucky": [0.9, *[0.5] * 17, 0.2, 0.6],
    "ended low": [0.9] * 19 + [0.3],
    "steady": [0.9, *[0.45] * 19],
    "stopped": [0.9, 0.25],
    "diverged": [0.1, nan],
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tune_softmax", ["steady", "steady", "stopped"]),
        ("optuna", ["ended low", "steady", "stopped"]),
        ("ray-tutorial", ["stopped", "stopped", "stopped"]),
        ("syne-tune", ["diverged", "diverged", "diverged"]),
    ],
)
def test_each_way_has_its_own_best(name, expected):
    """With all trials, without the lucky ones, without any that had all its epochs."""
    answer = BY_NAME[name].answer
    for left_out, best in zip(([], ["lucky", "ended low"], None), expected, strict=True):
        gone = left_out if left_out is not None else ["lucky", "ended low", "steady"]
        known = {trial: c for trial, c in CURVES_SO_FAR.items() if trial not in gone}
        assert answer(known) == best
    assert answer({}) is None
    assert answer({"one": [nan, nan]}) is None


def searched(losses, configs, *, is_whole=True):
    """Return a search whose trials, one report a second each, have these configurations."""
    one = outcome(9, losses, is_whole=is_whole)
    named = {str(i): config for i, config in enumerate(configs) if config}
    return Outcome(one.wall_s, one.is_whole, one.reports, configs=named)


def test_the_winner_by_a_time_is_trained_anew_with_every_seed():
    """Means are of searches, each the mean of its winner's seeds."""
    anew = {FAST: (0.5, 0.7), SLOW: (0.8, 1.0)}
    row = Row(OURS, 8, (searched([0.5, 0.4], [SLOW, FAST]),), anew)
    assert row.anew_after(0.5) is None
    assert row.anew_after(1) == (pytest.approx(0.9), None)
    assert row.anew_after(inf) == row.anew_after(300) == (pytest.approx(0.6), None)
    two = Row(OURS, 8, (*row.outcomes, searched([0.3], [SLOW])), anew)
    assert two.anew_after(inf) == (pytest.approx(0.75), pytest.approx(0.15))


def test_winners_that_are_not_known_are_not_trained_anew():
    """A search that was cut off, one of models that are not ours, one that was not asked."""
    anew = {FAST: (0.5, 0.7)}
    cut = Row(BY_NAME["optuna"], 8, (searched([0.5], [FAST], is_whole=False),), anew)
    assert cut.anew_after(10) is None
    assert cut.anew_after(5) == cut.anew_after(inf) == (pytest.approx(0.6), None)
    foreign = Row(BY_NAME["scikit-learn"], 8, (searched([0.5], [None]),), anew)
    assert foreign.anew_after(inf) is None
    assert Row(OURS, 8, (searched([0.5], [FAST]),)).anew_after(inf) is None


def test_the_table_has_winners_anew_below_where_there_are_any():
    """With errors over searches, and their losses one by one in the JSON."""
    anew = {FAST: (0.5, 0.7), SLOW: (0.8, 1.0)}
    rows = [
        Row(OURS, 8, (searched([0.5], [SLOW]), searched([0.4], [FAST])), anew),
        Row(BY_NAME["scikit-learn"], 8, (searched([0.5], [None]),) * 2, anew),
    ]
    text = format_table(rows, CONDITIONS)
    below = text.split("\n\n")[-1].splitlines()
    assert below[0] == (
        "what each way calls its best configuration, trained anew for 20 epochs with 2 seeds; "
        "validation loss in the end, means of 2 searches ± standard errors"
    )
    assert re.split("  +", below[2]) == ["tune_softmax", *["0.7500 ± 0.1500"] * 5]
    assert len(below) == 3
    first, second = json.loads(to_json(rows, CONDITIONS))["rows"][0]["winners_anew"]
    assert first["end"]["losses"] == [0.8, 1.0]
    assert Config(**second["300"]["config"]) == FAST
    alone = format_table([Row(OURS, 8, (searched([0.5], [SLOW]),), anew)], CONDITIONS)
    assert "loss in the end\n" in alone
    assert "0.9000" in alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": -1}, "bench: num_seeds must be at least 0, got -1"),
        ({"peers": ["hyperopt"]}, "no way to search is called 'hyperopt'; known: tune_softmax, "),
        ({"num_trials": 0}, "bench: num_trials must be above 0, got 0"),
        ({"repeats": -1}, "bench: repeats must be above 0, got -1"),
        ({"limit_s": 0.0}, "bench: limit_s must be above 0, got 0"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    """Each is refused before anything runs, by name and value."""
    with pytest.raises(ExperimentError, match=re.escape(message)):
        bench_search(**changes)


# --- Processes ----------------------------------------------------------------------------------


BEGIN = """
import json, os, subprocess, sys, time
task = json.load(open(sys.argv[1]))
def describe(trial, **config):
    line = {"trial": trial, "config": config}
    print(json.dumps(line), file=open(task["folder"] + "/trace.jsonl", "a"))
def report(trial, loss):
    line = {"seconds": time.monotonic() - task["started"], "trial": trial, "loss": loss}
    print(json.dumps(line | {"num_epochs": 1}), file=open(task["folder"] + "/trace.jsonl", "a"))
"""


@pytest.fixture
def scripts(monkeypatch):
    """Return what each way's process runs in place of a search, by name; nothing by default."""
    found = {}

    def command(way, task, _data_dir, _num_validation):
        return [sys.executable, "-c", BEGIN + found.get(way.name, ""), str(task.file)]

    monkeypatch.setattr(search, "_command", command)
    return found


def test_a_peer_that_fails_is_reported_and_the_others_go_on(scripts, small_dir):
    """Its last line is its error, it is not run again, and each round has a seed of its own."""
    scripts["optuna"] = "print('a lot')\nsys.exit('no such thing\\n')"
    scripts["syne-tune"] = (
        "describe('a', batch_size=64, num_epochs=2, learning_rate=0.05)\n"
        "report('a', 0.1 + task['seed'])\nreport('b', 5)"
    )
    progress = []
    ours, optuna, syne = bench_search(
        peers=["syne-tune", "optuna"],
        num_trials=2,
        repeats=2,
        num_seeds=3,
        data_dir=small_dir,
        num_validation=NUM_VALIDATION,
        on_progress=progress.append,
    )
    assert ours.way is OURS
    assert ours.is_whole
    assert optuna.error == "exit code 1: no such thing"
    assert len(optuna.outcomes) == 1
    assert [best_after(one.reports, inf) for one in syne.outcomes] == [0.1, 1.1]
    assert all(0 < report.seconds < one.wall_s for one in syne.outcomes for report in one.reports)
    assert progress == [
        *(f"round 1 of 2: {name}" for name in ("tune_softmax", "optuna", "syne-tune")),
        *(f"round 2 of 2: {name}" for name in ("tune_softmax", "syne-tune")),
        "training winners anew: 1, each with 3 seeds",
    ]
    assert {config: len(losses) for config, losses in syne.anew.items()} == {FAST: 3}
    assert syne.anew_after(inf)[1] == 0


def test_a_search_past_its_time_is_ended_with_all_it_started(scripts, small_dir, tmp_path):
    """Its reports count; its children, in a session of their own or not, are gone."""
    pids = tmp_path / "pids"
    scripts["optuna"] = f"""
report("a", 0.5)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, os.getpid(), file=open({str(pids)!r}, "w"))
time.sleep(600)
"""
    _, optuna = bench_search(
        peers=["optuna"],
        num_trials=2,
        limit_s=3,
        data_dir=small_dir,
        num_validation=NUM_VALIDATION,
    )
    assert not optuna.is_whole
    assert optuna.error is None
    assert optuna.outcomes[0].wall_s == pytest.approx(3, abs=1)
    assert optuna.best == 0.5
    assert not [pid for pid in pids.read_text().split() if lives(pid)]


def lives(pid):
    """Say whether a process is there, and more than an entry that nobody has collected yet."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.ray
def test_every_way_searches(small_dir):
    """Each runs its trials, and reports losses that random labels allow."""
    pytest.importorskip("syne_tune")
    rows = bench_search(
        num_trials=4, limit_s=600, data_dir=small_dir, num_validation=NUM_VALIDATION
    )
    assert [row.way.name for row in rows] == ["tune_softmax", *PEERS]
    for row in rows:
        assert row.error is None
        assert row.is_whole, row.way.name
        assert 2.0 < row.best < 3.0
        trials = {report.trial for report in row.outcomes[0].reports}
        assert len(trials) == 4, row.way.name
        assert row.epochs_per_trial >= 1
        is_known = row.anew_after(inf) is not None
        assert is_known == (row.way.name != "scikit-learn"), row.way.name


@pytest.mark.slow
@pytest.mark.ray
def test_our_search_can_fill_the_time(small_dir):
    """It tries more than it was asked for, and what it had by then is known."""
    ours, filled = bench_search(
        peers=[OURS_TO_LIMIT.name],
        num_trials=4,
        limit_s=20,
        num_seeds=2,
        data_dir=small_dir,
        num_validation=NUM_VALIDATION,
    )
    assert ours.is_whole
    assert not filled.is_whole
    assert filled.error is None
    assert filled.trials_done[0] > 2 * 4
    assert filled.best_after(10) is not None
    assert filled.best_after(30) is None
    assert filled.anew_after(inf) is not None


# --- Peers without Ray --------------------------------------------------------------------------


def test_the_optuna_peer_shares_its_trials(task, monkeypatch):
    """Two workers run three trials of one study; poor ones are pruned on a rung."""
    from tune_softmax.bench.peers import optuna_pruner

    monkeypatch.setattr(optuna_pruner, "NUM_EPOCHS", 5)
    for worker in range(2):
        optuna_pruner.optimize(task, worker)
    reports = read(task.trace.path)
    epochs = {trial: sum(one.trial == trial for one in reports) for trial in ("0", "1", "2")}
    assert sum(epochs.values()) == len(reports)
    assert epochs["0"] == 5
    assert set(epochs.values()) <= {1, 4, 5}


def test_the_scikit_learn_peer_halves_by_epochs(task, monkeypatch):
    """Every candidate is judged after one epoch, on validation images alone."""
    from tune_softmax.bench.peers import sklearn_halving

    monkeypatch.setattr(sklearn_halving, "NUM_WORKERS", 1)
    task.write()
    monkeypatch.setattr(sys, "argv", ["peer", str(task.file)])
    sklearn_halving.main()
    reports = read(task.trace.path)
    assert [one.num_epochs for one in reports] == [1, 1, 1]
    assert len({one.trial for one in reports}) == 3


def test_the_resident_loop_is_softmax_regression(task):
    """Without an update the loss is ln 10; an epoch of updates lowers that of the training set."""
    import torch

    from tune_softmax.bench.peers import resident

    loaded = resident.load(task)
    assert loaded.train_images.shape == (NUM_IMAGES - NUM_VALIDATION, 784)
    assert loaded.train_images.max() == 1.0
    model = torch.nn.Linear(784, 10)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    assert resident.evaluate(model, loaded) == pytest.approx(np.log(10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    resident.train_epoch(model, optimizer, loaded, 64)
    logits = model(loaded.train_images)
    assert torch.nn.functional.cross_entropy(logits, loaded.train_labels) < np.log(10)


@pytest.mark.slow
def test_the_syne_tune_trial_reports_every_epoch(task, monkeypatch, capsys):
    """Its script takes a configuration from the command line, as the launcher gives it."""
    pytest.importorskip("syne_tune")
    from tune_softmax.bench.peers import syne_trial

    task.write()
    options = {"batch_size": 64, "learning_rate": 0.01, "momentum": 0.5, "weight_decay": 1e-4}
    words = [f"--{key}={value}" for key, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["trial", *words, "--num_epochs=2", f"--task={task.file}"])
    syne_trial.main()
    assert len(read(task.trace.path)) == 2
    assert capsys.readouterr().out.count('"epoch"') == 2
