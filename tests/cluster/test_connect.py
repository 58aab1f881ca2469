"""Joining a Ray cluster: a real head on this machine, with token authentication."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tune_softmax.cluster import connect as connecting_module
from tune_softmax.cluster import fast_start
from tune_softmax.cluster.connect import Node, connect
from tune_softmax.errors import ClusterError
from tune_softmax.experiment.sections import Resources
from tune_softmax.metrics import State
from tune_softmax.run import results

BIN = Path(sys.executable).parent
EXPERIMENT = """
name: joined
dataset: {name: digits, validation: 0.25}
space:
  batch_size: {choice: [32, 64]}
  num_epochs: 3
  learning_rate: {log_uniform: [1e-2, 1]}
search: {num_trials: 6, pack_size: 3}
"""


@pytest.mark.parametrize(
    ("resources", "fit"),
    [
        (Resources(), 4),
        (Resources(cpus_per_pack=3), 1),
        (Resources(cpus_per_pack=5), 0),
        (Resources(gpus_per_pack=1.0), 2),
        (Resources(gpus_per_pack=0.3), 4),
        (Resources(cpus_per_pack=2, gpus_per_pack=0.5), 2),
    ],
)
def test_a_node_runs_as_many_packs_as_fit(resources, fit):
    """CPUs and whole parts of a GPU both bound how many packs stand side by side."""
    assert Node("here", num_cpus=4, num_gpus=2).num_packs(resources) == fit


@pytest.mark.parametrize("address", ["somewhere", "10.0.0.5", ":6379x", "10.0.0.5:port"])
def test_an_address_of_the_wrong_form_is_refused(address):
    """HOST:PORT, or a message that says so."""
    with (
        connect(address, Resources()) as connecting,
        pytest.raises(ClusterError, match="HOST:PORT"),
    ):
        connecting.result()


def test_an_address_where_nothing_listens_is_refused():
    """The message says how to start a head there."""
    with socket.socket() as held:  # bound, but nobody accepts
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with (
            connect(address, Resources()) as connecting,
            pytest.raises(ClusterError, match=r"no Ray cluster answers there.*ray start --head"),
        ):
            connecting.result()


@pytest.fixture
def ray_folder(tmp_path):
    """Return where Ray may write, in a private folder that is there."""
    (tmp_path / "lock").touch()
    return tmp_path / "ray"


def test_a_head_that_is_gone_ends_with_what_to_do(in_child, monkeypatch, capfd, ray_folder):
    """Ray would end it too, but with exit code 1 and no word of how to go on."""
    monkeypatch.setattr(connecting_module, "HEAD_CHECK_S", 0.01)
    monkeypatch.setattr(connecting_module, "HEAD_SILENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    assert in_child(connecting_module._watch, address, ray_folder, threading.Event()) == 7
    error = capfd.readouterr().err
    assert f"error: the head of the Ray cluster at {address} has not answered" in error
    assert "tune-softmax resume" in error


def test_a_head_that_answers_again_is_not_gone(in_child, monkeypatch, ray_folder):
    """Silence without an answer in between counts; the end of the search ends the watch."""
    monkeypatch.setattr(connecting_module, "HEAD_CHECK_S", 0.01)
    monkeypatch.setattr(connecting_module, "HEAD_SILENCE_S", 10.0)
    is_over = threading.Event()
    clock = [0.0]
    answers = iter(["silent", "silent", None, "silent", "silent"])

    def ask(_address):
        clock[0] += 4.0
        try:
            return next(answers)
        except StopIteration:
            is_over.set()
            return None

    monkeypatch.setattr(connecting_module, "_why_unreachable", ask)
    monkeypatch.setattr(connecting_module.time, "monotonic", lambda: clock[0])
    assert in_child(connecting_module._watch, "10.0.0.5:6379", ray_folder, is_over) == 0


def test_silence_is_counted_by_the_clock(in_child, monkeypatch, capfd, ray_folder):
    """An answer that takes long to be refused, as of dropped packets, is no more than its time."""
    monkeypatch.setattr(connecting_module, "HEAD_CHECK_S", 0.01)
    clock, asked = [0.0], []

    def ask(_address):
        clock[0] += 15.0
        asked.append(clock[0])
        assert clock[0] <= 60.0
        return "timed out"

    monkeypatch.setattr(connecting_module, "_why_unreachable", ask)
    monkeypatch.setattr(connecting_module.time, "monotonic", lambda: clock[0])
    assert in_child(connecting_module._watch, "10.0.0.5:6379", ray_folder, threading.Event()) == 7
    assert "has not answered for 45 s" in capfd.readouterr().err


def test_a_search_whose_ray_folder_was_removed_ends(in_child, monkeypatch, capfd, tmp_path):
    """Its sockets are there no more, and workers cannot start."""
    monkeypatch.setattr(connecting_module, "HEAD_CHECK_S", 0.01)
    gone = tmp_path / "gone"
    assert in_child(connecting_module._watch, "10.0.0.5:6379", gone, threading.Event()) == 7
    error = capfd.readouterr().err
    assert f"{gone}, where Ray keeps its sockets, was removed" in error
    assert "tune-softmax resume" in error


LOCAL = """
import json, os, subprocess, sys, time
import ray
from ray.tune.execution import class_cache
from tune_softmax.cluster.connect import connect
from tune_softmax.experiment.sections import Resources
from tune_softmax.cluster.fast_start.kept_workers import in_running_workers

class Trainable:
    process = lambda self: os.getpid()

def children(process):
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process)]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    return dict(line.split(maxsplit=1) for line in output.splitlines())

def raylets():
    return [number for number, args in children(os.getpid()).items() if "/raylet " in args]

with connect(None, Resources(max_concurrent_packs=1)) as connecting:
    for _ in range(300):
        early = [args for raylet in raylets() for args in children(raylet).values()]
        if any("ray::IDLE" in args for args in early):
            break
        time.sleep(0.1)
    was_let_in = ray.is_initialized()
    (node,) = connecting.result().nodes()
    started = children(os.getpid())
    (raylet,) = raylets()
    of_node = children(raylet)
    idle = {number for number, command in of_node.items() if "ray::IDLE" in command}
    asked = (class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE)
    kept = [variables.copy() for variables in asked]
    with in_running_workers():
        actor = class_cache._ActorClassCache().get(Trainable).remote()
        process = ray.get(actor.process.remote())
    print(json.dumps({
        "helpers": [command.split()[0] for command in started.values()],
        "early": sum("ray::IDLE" in args for args in early),
        "was_let_in": was_let_in,
        "workers": len(idle),
        "cpus": node.num_cpus,
        "others": sorted(set(of_node.values()) - {of_node[number] for number in idle}),
        "is_there": str(process) in idle,
        "is_restored": all(kept) and kept == list(asked),
        "environment": ray.get_runtime_context().runtime_env,
    }))
for _ in range(100):
    left = [number for number in of_node if os.path.exists(f"/proc/{number}")]
    if not left:
        break
    time.sleep(0.1)
sys.exit(len(left))
"""


def test_a_local_cluster_is_no_more_than_a_search_needs():
    """Ray's two servers, and a worker a pack; nothing of it is left at the end.

    The worker is there before anybody has asked for the cluster, and until then this process is
    not let in. Agents have stand-ins, and Ray Tune's actors start no process of their own. A hook
    or a job of another cluster that asks for a runtime environment is not heard, for nobody could
    make it, nor are variables that Ray Tune would hand on.
    """
    foreign = {
        "AWS_ACCESS_KEY_ID": "key",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": {"A": "1"}}}),
        "RAY_RUNTIME_ENV_HOOK": "no_such_module.hook",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOCAL],
        env=os.environ | foreign | {fast_start.SWITCH: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(Path(name).name for name in found["helpers"]) == ["gcs_server", "ps", "raylet"]
    assert found["early"] == found["workers"] == 1
    assert not found["was_let_in"]
    (stand_in,) = found["others"]
    assert stand_in.endswith("idle_agent.py")
    assert found["is_there"]
    assert found["is_restored"]
    assert not found["environment"]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Start a head with two CPUs and a token; give its address and the token."""
    token = secrets.token_hex(32)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    # Sockets below Ray's folder need a short path, which pytest's is not.
    folder = Path(tempfile.mkdtemp(prefix="ts-head-"))
    log = tmp_path_factory.mktemp("head") / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"),
                f"--temp-dir={folder}",
            ],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        host = wait_for_host(log)
        yield f"{host}:{port}", token
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_host(log, timeout_s=60.0):
    """Wait until a head has started, and return the address that it listens on."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        text = log.read_text()
        if "block forever" in text:
            return re.search(r"Local node IP: ([\d.]+)", text).group(1)
        time.sleep(0.2)
    return pytest.fail(f"the head did not start:\n{log.read_text()}")


def search(folder, address, token, *options):
    """Search on the cluster in a process of its own."""
    path = folder / "joined.yaml"
    path.write_text(EXPERIMENT)
    command = [str(BIN / "tune-softmax"), "search", str(path), "--address", address, *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_joins_a_cluster_and_leaves_it_running(head, tmp_path):
    """The same command with --address trains on the head's node; a second one finds it again."""
    for which in ("first", "second"):
        done = search(tmp_path, *head, "--run-dir", str(tmp_path / which))
        assert done.returncode == 0, done.stderr
        assert results.load(tmp_path / which).count(State.COMPLETE, State.PRUNED) == 6


@pytest.mark.slow
@pytest.mark.ray
def test_a_wrong_token_is_refused_in_one_message(head, tmp_path):
    """Who has not the cluster's token does not get in, and reads why."""
    refused = search(tmp_path, head[0], "0" * 64)
    assert refused.returncode == 2
    assert head[0] in refused.stderr
    assert "token" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused(head, tmp_path):
    """A request that no node can meet names the largest, and makes no run folder."""
    refused = search(tmp_path, *head, "--cpus-per-pack", "3")
    assert refused.returncode == 2
    assert "3 CPUs" in refused.stderr
    assert "2 CPUs" in refused.stderr
    assert not (tmp_path / "runs").exists()


TWICE = """
import sys
from tune_softmax import load, search
for where, address in (("local", None), ("joined", sys.argv[2])):
    search(sys.argv[1], run_dir=where, address=address)
    print(len(load(where).trials))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_one_process_searches_here_and_then_on_a_cluster(head, tmp_path):
    """The local cluster's token is not in the way of the other's, which is the user's own."""
    address, token = head
    path = tmp_path / "joined.yaml"
    path.write_text(EXPERIMENT)
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(path), address],
        cwd=tmp_path,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6", "6"]
