"""Search and resume, from end to end on a real local Ray."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tune_softmax.config import Config
from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.products import has_fast_bfloat16
from tune_softmax.engine.reference import train
from tune_softmax.engine.tensors import to_tensors
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import State
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies import session

pytestmark = pytest.mark.ray

COMMAND = [str(Path(sys.executable).parent / "tune-softmax")]
EXPERIMENT = """
name: small
dataset: {name: digits, validation: 0.25}
space:
  batch_size: {choice: [16, 32, 64]}
  num_epochs: {int: [2, 6]}
  learning_rate: {log_uniform: [1e-2, 1]}
  weight_decay: {log_uniform: [1e-6, 1e-1]}
  momentum: {uniform: [0, 0.9]}
"""

# A second worker's imports take as long as all the training of such small searches.
ONE_WORKER = "resources: {max_concurrent_packs: 1}"


def run(*arguments, cwd, timeout=120):
    """Run the command line and return what it printed."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write(folder, search):
    """Write an experiment with the given `search` section."""
    path = folder / "small.yaml"
    path.write_text(EXPERIMENT + f"search: {search}\n")
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of 48 trials, what it printed, and its results.

    One pack at a time, so that every run stops and parks the same trials.
    """
    folder = tmp_path_factory.mktemp("searched")
    path = write(folder, f"{{num_trials: 48, pack_size: 16, seed: 2}}\n{ONE_WORKER}")
    finished = run("search", path, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return finished, results.load(folder / "runs" / "small")


def test_a_search_ends_with_a_table_and_what_to_do_next(searched):
    """The command prints the best trials, the run folder and the next commands."""
    finished, _ = searched
    assert "The 10 best trials" in finished.stdout
    assert "48 of 48 trials done" in finished.stdout
    assert "tune-softmax confirm runs/small" in finished.stdout
    assert not finished.stderr


def test_every_trial_is_final_and_in_the_space(searched):
    """48 trials, each once, none left running, every hyperparameter in its domain."""
    _, found = searched
    assert list(found.trials["number"]) == list(range(48))
    assert found.count(State.COMPLETE) + found.count(State.PRUNED) == 48
    assert found.count(State.PRUNED) > 0
    for name in found.experiment.space.searched:
        assert all(found.experiment.space.contains(name, v) for v in found.trials[name].tolist())


def test_complete_trials_ran_their_epochs_and_stopped_ones_fewer(searched):
    """COMPLETE means all epochs; PRUNED means fewer, ending on a rung."""
    _, found = searched
    complete = found.trials[found.trials["state"] == State.COMPLETE]
    pruned = found.trials[found.trials["state"] == State.PRUNED]
    assert (complete["epochs_trained"] == complete["num_epochs"]).all()
    assert (pruned["epochs_trained"] < pruned["num_epochs"]).all()
    assert (pruned["epochs_trained"] == pruned["rung"]).all()


def test_epochs_have_no_gap(searched):
    """Every trial's epochs are 1, 2, ... up to its last."""
    _, found = searched
    for number, rows in found.epochs.groupby("trial"):
        assert list(rows["epoch"]) == list(range(1, len(rows) + 1)), number


def test_trials_trained_by_themselves_have_the_same_curves(searched):
    """Single training under a trial's number gives the curve that its packs recorded.

    The best trial, and one that was parked on a rung and went on in another pack.
    """
    _, found = searched
    dataset = load_dataset("digits", validation=0.25)
    parked = re.findall(
        r"trials (\d+).* from epoch (?!1$)", found.folder.log.read_text(), re.MULTILINE
    )
    assert parked
    for number in {found.best().number, int(parked[0])}:
        curve = []
        train(
            found.config(number),
            to_tensors(dataset),
            seed=2,
            number=number,
            on_epoch=lambda _, metrics, curve=curve: curve.append(metrics.validation_loss),
        )
        recorded = found.epochs.loc[found.epochs["trial"] == number, "validation_loss"]
        assert curve[: len(recorded)] == pytest.approx(list(recorded), rel=1e-4)


def test_the_run_folder_says_how_it_was_made(searched):
    """Experiment, environment, log and ledger are there, and nothing pickled."""
    _, found = searched
    names = {path.name for path in found.folder.path.iterdir()}
    assert names == {"experiment.yaml", "environment.json", "log.txt", "run.db", "run.lock"}
    environment = json.loads(found.folder.environment.read_text())
    assert environment["dataset_checksum"] == load_dataset("digits", validation=0.25).checksum
    assert environment["seed"] == 2
    with closing(Ledger.open(found.folder.ledger)) as ledger:
        kinds = [kind for _, kind, _ in ledger.events()]
    assert kinds == ["started", "ended"]


def test_resuming_a_finished_run_changes_nothing(searched):
    """A finished run says so and exits 0, without starting Ray."""
    _, found = searched
    before = found.folder.ledger.read_bytes()
    resumed = run("resume", found.folder.path, cwd=found.folder.path)
    assert resumed.returncode == 0
    assert "starting Ray" not in resumed.stdout
    assert found.folder.ledger.read_bytes() == before


@pytest.mark.slow
def test_train_on_a_run_records_that_the_test_set_was_opened(searched):
    """`train RUN` trains the best trial, shows its test result and records the opening."""
    _, found = searched
    trained = run("train", found.folder.path, cwd=found.folder.path.parent)
    assert trained.returncode == 0, trained.stderr
    assert "test accuracy" in trained.stdout
    with closing(Ledger.open(found.folder.ledger)) as ledger:
        openings = [detail for _, kind, detail in ledger.events() if kind == "test_opened"]
    assert openings == [{"command": "train", "trial": found.best().number}]


@pytest.mark.slow
def test_the_pack_size_does_not_change_results(tmp_path):
    """The same seed and configurations give the same curves with packs of 1, 7 and 64."""
    search = "{num_trials: 8, asha: none, sampler: random, points: [%s], seed: 1}"
    points = ", ".join(
        f"{{batch_size: {size}, num_epochs: {epochs}, learning_rate: {rate}, "
        f"weight_decay: {decay}, momentum: {momentum}}}"
        for size, epochs, rate, decay, momentum in [
            (16, 3, 0.05, 1e-4, 0.0),
            (32, 2, 0.1, 1e-3, 0.9),
            (64, 4, 0.3, 1e-6, 0.5),
            (16, 2, 0.02, 1e-2, 0.8),
            (64, 3, 0.9, 1e-5, 0.0),
            (32, 5, 0.2, 1e-1, 0.1),
            (16, 6, 0.01, 1e-6, 0.9),
            (32, 2, 0.5, 1e-4, 0.3),
        ]
    )
    path = write(tmp_path, search % points)
    curves = []
    for pack_size in (1, 7, 64):
        folder = tmp_path / f"run-{pack_size}"
        finished = run("search", path, "--pack-size", pack_size, "--run-dir", folder, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        found = results.load(folder)
        assert found.trials["pack"].nunique() == -(-8 // pack_size)
        curves.append(found.epochs.drop(columns="seconds").to_numpy())
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0] == pytest.approx(curves[2], rel=1e-4)


def stopped(folder, number, code):
    """Search, send a signal once ten trials are done, and return the run's results.

    The command exits within seconds with its code, and says how to go on.
    """
    path = write(folder, f"{{num_trials: 80, pack_size: 10}}\n{ONE_WORKER}")
    run_dir = folder / "run"
    process = subprocess.Popen(
        [*COMMAND, "search", str(path), "--run-dir", str(run_dir)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_trials(run_dir, 10)
    started = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - started < 15  # bounded, though the machine be busy
    assert process.returncode == code
    assert f"tune-softmax resume {run_dir}" in error
    assert "Traceback" not in error
    found = results.load(run_dir)
    assert found.count(State.RUNNING) == 0
    assert 10 <= found.count(State.COMPLETE, State.PRUNED) < 80
    return found


def test_ctrl_c_stops_well(tmp_path):
    """A search ends within seconds, keeps what is done, and nothing is left running."""
    stopped(tmp_path, signal.SIGINT, 130)


@pytest.mark.slow
def test_what_a_signal_stopped_is_resumed(tmp_path):
    """A resume runs what is left, and changes nothing that was done."""
    found = stopped(tmp_path, signal.SIGTERM, 143)
    done = found.trials[found.trials["state"].isin([State.COMPLETE, State.PRUNED])]
    before = found.epochs[found.epochs["trial"].isin(done["number"])]
    resumed = run("resume", found.folder.path, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    found = results.load(found.folder.path)
    assert list(found.trials["number"]) == list(range(80))
    assert found.count(State.COMPLETE, State.PRUNED) == 80
    after = found.epochs[found.epochs["trial"].isin(done["number"])]
    assert after.reset_index(drop=True).equals(before.reset_index(drop=True))


def wait_for_trials(folder, count, timeout_s=90.0):
    """Wait until a running search has finished some trials."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (folder / "run.db").exists():
            try:
                found = results.load(folder)
            except results.ResultsError:  # the ledger is being made
                continue
            if found.count(State.COMPLETE, State.PRUNED) >= count:
                return
        time.sleep(0.2)
    pytest.fail(f"{folder}: fewer than {count} trials after {timeout_s} s")


@pytest.mark.slow
def test_a_search_killed_as_its_ledger_is_made_can_be_resumed(tmp_path):
    """What a resume reads besides the ledger lies there before it."""
    path = write(tmp_path, "{num_trials: 4, pack_size: 4, asha: none}")
    folder = tmp_path / "run"
    die = (
        "import os, signal\n"
        "from tune_softmax import experiment, running, search\n"
        "from tune_softmax.run.ledger import Ledger\n"
        "create = Ledger.create\n"
        "def killed(location, meta):\n"
        "    create(location, meta)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger.create = killed\n"
        f"search.search(experiment.load({str(path)!r}), run_dir={str(folder)!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", die], cwd=tmp_path, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = run("resume", folder, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert results.load(folder).count(State.COMPLETE) == 4


def test_an_experiment_written_anew_is_whole_at_every_moment(tmp_path, in_child, monkeypatch):
    """A process that dies while it writes the experiment leaves the one that was there."""
    folder = RunFolder(tmp_path)
    before = experiments.load(write(tmp_path, "{num_trials: 4}"))
    session.write_experiment(folder, before)
    after = experiments.load(write(tmp_path, "{num_trials: 8}"))
    monkeypatch.setattr(os, "fsync", lambda _file: os._exit(9))
    assert in_child(session.write_experiment, folder, after) == 9
    assert experiments.load(folder.experiment) == before
    monkeypatch.undo()
    session.write_experiment(folder, after)
    assert experiments.load(folder.experiment) == after


@pytest.mark.slow
def test_a_time_budget_ends_a_search_that_resume_goes_on_with(tmp_path):
    """The budget's end is no failure: exit code 0, and the message says what is left."""
    path = write(tmp_path, "{num_trials: 5000, pack_size: 5, time_budget_s: 15}")
    finished = run("search", path, "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "time budget ended" in finished.stdout
    found = results.load(tmp_path / "run")
    states = Counter(found.trials["state"])
    assert 0 < states[State.COMPLETE] + states[State.PRUNED] < 5000
    assert not states[State.RUNNING]


@pytest.mark.slow
def test_a_diverging_trial_fails_and_its_neighbours_do_not(tmp_path):
    """A trial whose loss leaves the finite numbers is FAIL with the epoch; --strict counts it."""
    path = tmp_path / "diverging.yaml"
    path.write_text(
        EXPERIMENT.replace("log_uniform: [1e-2, 1]", "choice: [0.1, 1e38]")
        + "search: {num_trials: 8, sampler: random, asha: none, pack_size: 8, seed: 2}\n"
    )
    finished = run("search", path, "--run-dir", tmp_path / "run", "--strict", cwd=tmp_path)
    found = results.load(tmp_path / "run")
    failed = found.trials["learning_rate"] == 1e38
    assert 0 < failed.sum() < 8
    assert (found.trials.loc[failed, "state"] == State.FAIL).all()
    assert found.trials.loc[failed, "error"].str.contains("diverged").all()
    assert (found.trials.loc[~failed, "state"] == State.COMPLETE).all()
    assert finished.returncode == 3
    assert "diverged" in finished.stdout


@pytest.mark.slow
def test_a_killed_worker_costs_an_attempt_and_no_trial(tmp_path):
    """A pack whose worker is killed is trained again, under the same numbers."""
    path = write(tmp_path, "{num_trials: 300, pack_size: 10}")
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "search", str(path), "--run-dir", str(folder)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TUNE_SOFTMAX_TEST": str(tmp_path)},
    )
    wait_for_trials(folder, 20)
    kill_while_it_trains(folder, str(tmp_path))
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "300 of 300 trials done" in output
    found = results.load(folder)
    assert list(found.trials["number"]) == list(range(300))
    assert found.count(State.COMPLETE, State.PRUNED) == 300
    assert found.trials["attempts"].max() == 2


def kill_while_it_trains(folder, mark, num_tries=5, timeout_s=5.0):
    """Kill a worker, and another where that one had just ended its pack and lost nothing."""
    for _ in range(num_tries):
        os.kill(find_worker(mark), signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with closing(Ledger.open(folder / "run.db")) as ledger:
                if "worker_died" in [kind for _, kind, _ in ledger.events()]:
                    return
            time.sleep(0.1)
    pytest.fail(f"{num_tries} workers were killed, and none of them trained")


def find_worker(mark):
    """Return the process of a worker that trains, started below the search with that mark."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            title = (path / "cmdline").read_bytes()
        except OSError:  # it has just ended, or is not ours
            continue
        # ray::PackTrainable between two calls, ray::ResourceTrainable.train within one.
        if mark.encode() in environment and b"Trainable" in title:
            return int(path.name)
    return pytest.fail("no worker found")


@pytest.mark.slow
def test_a_deterministic_search_is_the_same_again(tmp_path):
    """Two places, packs of any speed; twice, and killed and resumed: the same to the last bit."""
    search = "{num_trials: 48, pack_size: 6, seed: 3, deterministic: true}"
    path = write(tmp_path, f"{search}\nresources: {{max_concurrent_packs: 2}}")
    for name in ("one", "other"):
        assert run("search", path, "--run-dir", name, cwd=tmp_path).returncode == 0
    killed = tmp_path / "killed"
    command, num_kills = ["search", path, "--run-dir", killed], 0
    for num_epochs in (30, 60):
        process = subprocess.Popen(
            [*COMMAND, *map(str, command)],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and _num_epochs(killed) < num_epochs:
            time.sleep(0.01)
        num_kills += process.poll() is None
        process.kill()
        process.wait()
        command = ["resume", killed]
    assert num_kills == 2
    assert run("resume", killed, cwd=tmp_path).returncode == 0
    first, *others = (results.load(tmp_path / name) for name in ("one", "other", "killed"))
    assert first.count(State.PRUNED) > 0
    for other in others:
        assert _without_time(other.trials).equals(_without_time(first.trials))
        assert _without_time(other.epochs).equals(_without_time(first.epochs))


def _num_epochs(path):
    """Return how many epochs the ledger of a run has, which may not be there yet."""
    try:
        with closing(sqlite3.connect(f"{(path / 'run.db').as_uri()}?mode=ro", uri=True)) as file:
            return file.execute("SELECT count(*) FROM epochs").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def _without_time(frame):
    """Return a table without what depends on the clock, and on how often a pack was begun."""
    unequal = [name for name in frame if name in {"pack", "attempts"} or "seconds" in name]
    return frame.drop(columns=unequal)


def test_a_grid_can_have_no_more_trials_than_configurations(tmp_path):
    """The message counts the grid, not what was asked for."""
    grid = """
dataset: {name: digits, validation: 0.25}
space: {batch_size: {choice: [64, 128]}, num_epochs: {int: [1, 2]}, learning_rate: 0.1}
search: {sampler: grid, asha: none}
"""
    (tmp_path / "g.yaml").write_text(grid)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.experiment.write_text(grid)
    Ledger.create(folder.ledger, {}).close()
    finished = run("resume", "run", "--num-trials", 20, cwd=tmp_path)
    assert finished.returncode == 2
    said = " ".join(finished.stderr.split())
    assert "the run has 4 trials, for its grid has 4 configurations; nothing can be added" in said


@pytest.mark.slow
def test_two_drivers_cannot_write_one_run(tmp_path):
    """While a search writes a run, resume is refused with code 6, naming the process."""
    path = write(tmp_path, "{num_trials: 400, pack_size: 10}")
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "search", str(path), "--run-dir", str(folder)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_trials(folder, 1)
        second = run("resume", folder, cwd=tmp_path)
        assert second.returncode == 6
        assert str(process.pid) in second.stderr
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_changed_data_refuse_a_resume(tmp_path):
    """A run is resumed on the data it was made with, or not at all."""
    path = write(tmp_path, "{num_trials: 4, pack_size: 4}")
    loaded = experiments.load(path)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.experiment.write_text(loaded.to_yaml())
    config = Config(batch_size=16, num_epochs=2, learning_rate=0.1)
    with closing(Ledger.create(folder.ledger, {"dataset_checksum": "0" * 64})) as ledger:
        ledger.hand_out(0, {0: config})
    refused = run("resume", folder.path, cwd=tmp_path)
    assert refused.returncode == 2
    assert "0000" in refused.stderr
    assert "--data-dir" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(has_fast_bfloat16(torch.device("cpu")), reason="it would be faster here")
def test_a_precision_is_trained_in_remarked_on_and_kept(tmp_path):
    """Two terms give float32's losses, a search remarks on slowness, a resume keeps to them."""
    losses = {}
    for precision in ("float32", "bfloat16x2"):
        path = write(tmp_path, f"{{num_trials: 3, asha: none}}\nmodel: {{precision: {precision}}}")
        finished = run("search", path, "--run-dir", tmp_path / precision, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("will not be faster here") == (precision != "float32")
        losses[precision] = results.load(tmp_path / precision).trials["last_validation_loss"]
    assert (losses["float32"] - losses["bfloat16x2"]).abs().max() < 1e-3
    experiment = RunFolder(tmp_path / "bfloat16x2").experiment
    experiment.write_text(experiment.read_text().replace("bfloat16x2", "bfloat16"))
    refused = run("resume", tmp_path / "bfloat16x2", "--num-trials", 4, cwd=tmp_path)
    assert refused.returncode == 2
    assert "model.precision was 'bfloat16x2' and is 'bfloat16'" in refused.stderr


@pytest.mark.slow
def test_impossible_requests_are_refused_with_the_largest_node(tmp_path):
    """More than any node has ends at once with code 2, and no run folder is made."""
    path = write(tmp_path, "{num_trials: 4}")
    refused = run("search", path, "--cpus-per-pack", 999, cwd=tmp_path)
    assert refused.returncode == 2
    assert "999 CPUs" in refused.stderr
    assert "the largest of 1 has" in refused.stderr
    assert not (tmp_path / "runs").exists()
