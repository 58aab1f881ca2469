"""A search among others: their files, their Ray, their containers, their tokens."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_ends import wait_for_end

from tune_softmax.metrics import State
from tune_softmax.run import results

PROGRAM = str(Path(sys.executable).parent / "tune-softmax")
EXPERIMENT = """
name: small
dataset: {{name: digits, validation: 0.25}}
space:
  batch_size: {{choice: [32, 64]}}
  num_epochs: {num_epochs}
  learning_rate: {{log_uniform: [1e-2, 1]}}
search: {{num_trials: 8, asha: none}}
"""
LONG = 100_000  # epochs

pytestmark = pytest.mark.ray


@pytest.fixture
def small(tmp_path):
    """Return an experiment that trains for a second."""
    return written(tmp_path, num_epochs=3)


def written(folder, num_epochs):
    """Write an experiment and return its file."""
    path = folder / f"small-{num_epochs}.yaml"
    path.write_text(EXPERIMENT.format(num_epochs=num_epochs), encoding="utf-8")
    return path


def run(*command, cwd, **variables):
    """Run a command to its end."""
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def is_whole(folder):
    """Say whether a run has all its trials."""
    return results.load(folder).count(State.COMPLETE, State.PRUNED) == 8


@pytest.mark.parametrize("switch", ["1", pytest.param("0", marks=pytest.mark.slow)])
def test_nothing_of_the_working_folder_is_imported(tmp_path, small, switch):
    """It may be a run folder got from a stranger."""
    for name in ("json", "numpy", "socket", "ray", "torch", "tune_softmax", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('EXECUTED', 'w')\nraise SystemExit(9)\n")
    done = run(PROGRAM, "search", small, cwd=tmp_path, TUNE_SOFTMAX_FAST_START=switch)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "EXECUTED").exists()
    assert is_whole(tmp_path / "runs" / "small")


@pytest.mark.slow
def test_a_python_without_user_packages_is_no_hindrance(tmp_path, small):
    """PYTHONNOUSERSITE changes what `site` leaves in a process."""
    done = run(PROGRAM, "search", small, cwd=tmp_path, PYTHONNOUSERSITE="1")
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path / "runs" / "small")


def start(tmp_path, *, prefix=(), **variables):
    """Start a long search, wait until it trains, and return its process and its log."""
    log = tmp_path / "long" / "log.txt"
    process = subprocess.Popen(
        [*prefix, PROGRAM, "search", str(written(tmp_path, LONG)), "--run-dir", str(log.parent)],
        env=os.environ | variables,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and "pack 0" in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_a_search_in_another_process_namespace_is_left_alone(tmp_path, small):
    """Containers share a temporary folder, and see none of each other's processes."""
    private = ["unshare", "--pid", "--fork", "--mount-proc"]
    if run(*private, "true", cwd=tmp_path).returncode:
        pytest.skip("this system lets nobody make a process namespace")
    process = start(tmp_path)
    try:
        done = run(*private, PROGRAM, "search", small, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("number", "switch", "code"),
    [
        (signal.SIGTERM, "1", 143),
        (signal.SIGUSR1, "1", 138),
        (signal.SIGINT, "1", 130),
        pytest.param(signal.SIGTERM, "0", 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "0", 138, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group_stops_a_search_well(tmp_path, number, switch, code):
    """Batch systems, containers and `timeout` send it to Ray's processes too."""
    process = start(tmp_path, TUNE_SOFTMAX_FAST_START=switch)
    try:
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    assert "tune-softmax resume" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_before_anything_is_trained_says_so(tmp_path, number, code):
    """With the signal's own exit code, and without waiting for a download or for Ray's start."""
    path = written(tmp_path, LONG)
    with subprocess.Popen(
        [PROGRAM, "search", str(path), "--run-dir", str(tmp_path / "early")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "loading the dataset\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "before anything was trained" in stderr
    assert not (tmp_path / "early").exists()


THREAD = """
import sys, threading
from tune_softmax.experiment.experiment import load
from tune_softmax.studies.search import search
found = []
def work():
    found.append(len(search(load(sys.argv[1]), run_dir=sys.argv[2]).trials))
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.slow
def test_a_search_runs_in_a_thread(tmp_path, small):
    """Where Python lets nobody handle signals."""
    done = run(sys.executable, "-c", THREAD, small, tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]


CONNECTED = """
import os, sys
import ray
from tune_softmax.errors import ClusterError
from tune_softmax.experiment.experiment import load
from tune_softmax.studies.search import search
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
try:
    search(load(sys.argv[1]), run_dir=sys.argv[2])
except ClusterError as error:
    print(error)
print(ray.get(ray.remote(lambda: "alive").remote()), os.path.exists(sys.argv[2]))
ray.shutdown()
before = dict(os.environ)
print(len(search(load(sys.argv[1]), run_dir=sys.argv[2]).trials), before == dict(os.environ))
"""


@pytest.mark.slow
def test_a_process_that_is_connected_to_ray_is_told_what_to_do(tmp_path, small):
    """Its cluster stays, nothing is written, and after `ray.shutdown()` a search runs."""
    done = run(sys.executable, "-c", CONNECTED, small, tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    message, alive, after = done.stdout.splitlines()[-3:]
    assert "call ray.shutdown() first" in message
    assert alive == "alive False"
    assert after == "8 True"


STRANGER = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
print(ray.nodes())
"""


@pytest.mark.parametrize(
    "token", [None, pytest.param("0" * 64, marks=pytest.mark.slow)], ids=["none", "wrong"]
)
def test_a_client_without_the_token_is_refused(tmp_path, token):
    """A local cluster listens on the network, and lets in this search's own processes alone."""
    process = start(tmp_path)
    try:
        listed = subprocess.run(
            [shutil.which("ps"), "-ww", "-o", "args=", "--ppid", str(process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        address = re.search(r"--gcs-address=([\d.]+:\d+)", listed).group(1)
        theirs = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        stranger = run(
            *(sys.executable, "-c", STRANGER, address),
            cwd=tmp_path,
            HOME=str(tmp_path),
            RAY_gcs_rpc_server_reconnect_timeout_s="5",
            **theirs,
        )
    finally:
        process.kill()
        process.communicate()
        wait_for_end(process.pid)
    assert stranger.returncode == 3, stranger.stdout
    assert "ENABLED" not in stranger.stdout
