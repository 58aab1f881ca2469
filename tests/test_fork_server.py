"""The server that a local cluster's workers are forked from, with scripts and with a real Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_ends import DEADLINE_S, is_running, wait_for_end
from ray._private.workers import setup_worker

from tune_softmax import experiment, fork_client, fork_server, private, search
from tune_softmax.metrics import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")

# In place of a worker: says who and where it is, then does what it is told.
SCRIPT = """
import json, os, sys
modules = ["tune_softmax.packed", "pydantic", "torch"]
print(json.dumps({
    "name": __name__, "arguments": sys.argv[1:], "variable": os.environ.get("OF_ITS_OWN"),
    "folder": os.getcwd(), "parent": os.getppid(), "process": os.getpid(), "group": os.getpgid(0),
    "imported": [name for name in modules if name in sys.modules],
}), flush=True)
if "--abort" in sys.argv:
    os.abort()
if "--wait" in sys.argv:
    sys.stdin.read()
"""


@pytest.fixture
def script(tmp_path):
    """Return the script's file."""
    path = tmp_path / "stand_in.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def ask(place, script, *arguments, job=fork_client.NO_JOB, folder=None):
    """Start what a node starts for a worker, with pipes; its first line comes from the worker."""
    worker = [sys.executable, setup_worker.__file__, str(script), *arguments, "--language=PYTHON"]
    return subprocess.Popen(
        fork_server.through(place, worker),
        env=os.environ | {fork_client.JOB: job, "OF_ITS_OWN": "here"},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def tell(*asked, **options):
    """Ask, and return what the worker says of itself, when all of it has ended."""
    with ask(*asked, **options) as client:
        return json.loads(client.communicate(timeout=DEADLINE_S)[0])


def server_of(place):
    """Return the process that a socket's driver, by its folder's name, has started for it."""
    driver = place.parent.name.split("-")[2]
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{driver}/task/{driver}/children").read_text(encoding="utf-8")
        for child in children.split():
            if fork_server.START.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError(f"nobody serves {place}")


def test_a_fork_is_the_script_that_was_asked_for(script, tmp_path):
    """With its arguments, environment, folder and output, and what a pack needs imported."""
    with fork_server.serving(None) as place:
        heard = tell(place, script, "--node=1", folder=tmp_path)
        assert heard.pop("process") == heard.pop("group")  # a node ends a worker by its group
        assert heard == {
            "name": "__main__",
            "arguments": ["--node=1"],
            "variable": "here",
            "folder": str(tmp_path),
            "parent": server_of(place),
            "imported": ["tune_softmax.packed"],
        }


def test_nothing_is_left_of_a_server(script):
    """Neither a process nor a folder, though it has just begun to import."""
    for has_served in (False, True):
        with fork_server.serving(None) as place:
            server = server_of(place)
            if has_served:
                tell(place, script)
        assert not is_running(server)
        assert not place.parent.exists()


def test_one_server_is_enough():
    """Where there is one already it serves what is asked for within; no other cluster has one."""
    with fork_server.serving("10.0.0.5:6379") as place:
        assert place is None
    with fork_server.serving(None) as outer:
        with fork_server.serving(None) as inner:
            assert inner == outer
        assert is_running(server_of(outer))
    with fork_server.serving(None) as another:
        assert another != outer


@pytest.mark.parametrize("sent", [b"", b'{"command": ["'], ids=["nothing", "half"])
def test_a_client_that_ends_early_is_let_go(script, sent):
    """The server, whose end would be that of all workers, serves the next one."""
    with fork_server.serving(None) as place:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(place))
                client.sendall(sent)
        assert tell(place, script)["parent"] == server_of(place)


def test_forks_do_not_know_one_another(script):
    """One that is ended with its group leaves the server and the others as they are."""
    with fork_server.serving(None) as place, ask(place, script, "--wait") as first:
        with ask(place, script, "--wait") as second:
            heard = [json.loads(asked.stdout.readline()) for asked in (first, second)]
            os.killpg(heard[1]["group"], signal.SIGTERM)
            wait_for_end(heard[1]["process"])
        assert is_running(heard[0]["process"])
        assert tell(place, script)["parent"] == server_of(place)
        first.stdin.close()
        wait_for_end(heard[0]["process"])


def test_a_worker_of_a_job_starts_by_itself(script):
    """What Ray's library has read of the environment would not hold for it."""
    with fork_server.serving(None) as place:
        heard = tell(place, script, job="01000000")
        assert heard["parent"] != server_of(place)
        assert heard["name"] == "__main__"
        assert heard["arguments"] == []
        assert heard["imported"] == []


def test_after_a_crash_workers_start_by_themselves(script, caplog):
    """As with a Ray that does not bear to be forked; forks that run go on."""
    with fork_server.serving(None) as place, ask(place, script, "--wait") as other:
        running = json.loads(other.stdout.readline())["process"]
        server = server_of(place)
        assert tell(place, script, "--abort")["parent"] == server
        deadline = time.monotonic() + DEADLINE_S
        while tell(place, script)["parent"] == server:
            assert time.monotonic() < deadline
        assert is_running(running)
        assert is_running(server)
        other.stdin.close()
        wait_for_end(running)
    assert fork_server.CRASHED in caplog.text


def test_a_server_ends_with_its_driver(script):
    """However that ends; the place is in the next one's way no more."""
    driver = (
        "import sys, time; from tune_softmax import fork_server\n"
        "with fork_server.serving(None) as place: print(place, flush=True); time.sleep(99)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True
    ) as process:
        place = Path(process.stdout.readline().strip())
        tell(place, script)
        server = server_of(place)
        process.kill()
        wait_for_end(server)
    private.remove_folder(private.make_folder())
    assert not place.parent.exists()


def test_a_server_ends_with_the_node(script, monkeypatch):
    """Workers would otherwise outlive a node that was killed: they end with the server."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
        with fork_server.serving(None) as place:
            tell(place, script)
            server = server_of(place)
            time.sleep(2 * fork_server.CHECK_S)
            assert is_running(server)
            raylet.kill()
            raylet.wait()
            wait_for_end(server)


REAL = """
import os, ray
from tune_softmax import fork_server
from tune_softmax.cluster import connect
from tune_softmax.experiment import Resources
with (
    fork_server.serving(None) as place,
    connect(None, Resources(max_concurrent_packs=1), place) as connecting,
):
    connecting.result()
    parent = ray.get(ray.remote(lambda: os.getppid()).remote())
    with open(f"/proc/{parent}/cmdline", "rb") as file:
        print(fork_server.START.encode() in file.read().split(b"\\0"))
"""


@pytest.mark.ray
def test_rays_first_workers_are_forks():
    """Of a real node, started as a search starts it."""
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True"]


@pytest.mark.ray
def test_a_search_runs_without_a_server(tmp_path, caplog, monkeypatch):
    """Where it does not come up, workers start by themselves, and a warning says why."""
    monkeypatch.setattr(fork_server, "START", "raise SystemExit('no fork today')")
    file = tmp_path / "small.yaml"
    file.write_text(
        "name: small\ndataset: {name: digits, validation: 0.25}\n"
        "space: {batch_size: 64, num_epochs: 2, learning_rate: {log_uniform: [1e-2, 1]}}\n"
        "search: {num_trials: 4, pack_size: 2}\nresources: {max_concurrent_packs: 2}\n",
        encoding="utf-8",
    )
    found = search.search(experiment.load(file), run_dir=tmp_path / "run")
    assert found.count(State.COMPLETE) + found.count(State.PRUNED) == 4
    assert "no fork today" in caplog.text
