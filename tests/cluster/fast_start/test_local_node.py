"""A local node without the processes that a search does not use; test_connect.py starts one."""

import shlex
import subprocess
import sys
import time

import pytest
from process_ends import is_running, wait_for_end
from ray import _raylet

from tune_softmax.cluster.fast_start import idle_agent
from tune_softmax.cluster.fast_start.local_node import AGENT_PORTS, AGENTS, NO_PORT, _alone

NODE = "ab" * 28


def command(folder, resources="node:10.0.0.5,1.0,CPU,8,GPU,2,memory,1000"):
    """Return a raylet's command as Ray makes it, as far as it is looked at."""
    return [
        "/somewhere/raylet",
        f"--session_dir={folder}",
        f"--node_id={NODE}",
        f"--static_resource_list={resources}",
        "--maximum_startup_concurrency=8",
        "--num_prestart_python_workers=8",
        "--labels=",
        "--dashboard_agent_command=/usr/bin/python agent.py --a=b",
        "--runtime_env_agent_command=/usr/bin/python main.py",
        "--head",
    ]


def read(command):
    """Return the options of a command."""
    return dict(part.split("=", 1) for part in command if "=" in part)


@pytest.mark.parametrize(
    ("resources", "numbers"),
    [("node:a,1.0,CPU,8,GPU,2,memory,1000", (8, 2)), ("memory,1000,CPU,2.0", (2, 0))],
)
def test_as_many_workers_start_as_are_asked_for(tmp_path, resources, numbers):
    """Of them, given what the node has; one for each CPU would be too many beside few GPUs."""
    heard = []
    made = _alone(command(tmp_path, resources), lambda *counts: heard.append(counts) or 3)
    assert heard == [numbers]
    options = read(made)
    assert options["--num_prestart_python_workers"] == "3"
    assert options["--maximum_startup_concurrency"] == "3"


def test_all_else_of_the_command_stays(tmp_path):
    """In its order, with what has no value and what has an empty one."""
    before = command(tmp_path)
    after = _alone(before, lambda _cpus, _gpus: 8)
    kept = [(a, b) for a, b in zip(before, after, strict=True) if not a.startswith(AGENTS)]
    assert all(a == b for a, b in kept)
    assert len(kept) == len(before) - len(AGENTS)


def test_nobody_waits_for_the_ports_of_agents(tmp_path):
    """They are written down already, as a port where nobody listens."""
    _alone(command(tmp_path), lambda _cpus, _gpus: 1)
    for name in AGENT_PORTS:
        port = getattr(_raylet, name)
        found = _raylet.wait_for_persisted_port(str(tmp_path), NODE, port, timeout_ms=1)
        assert found == NO_PORT


def test_another_ray_starts_as_it_likes(tmp_path):
    """A command that does not have what is replaced stays as it is."""
    other = ["/somewhere/raylet", f"--session_dir={tmp_path}", f"--node_id={NODE}", "--head"]
    assert _alone(other, lambda _cpus, _gpus: 1) == other
    assert not list(tmp_path.iterdir())


def test_a_stand_in_ends_with_the_raylet(tmp_path):
    """Its parent is the raylet that the environment names; another process is not."""
    options = read(_alone(command(tmp_path), lambda _cpus, _gpus: 1))
    (stand_in,) = {options[name] for name in AGENTS}
    parent = f"""
import os, subprocess, sys
environment = {{"RAY_RAYLET_PID": str(os.getpid())}}
child = subprocess.Popen({shlex.split(stand_in)!r}, env=environment, stdout=subprocess.DEVNULL)
print(child.pid, child.poll(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as raylet:
        child, code = raylet.stdout.readline().split()
        assert code == "None"
        time.sleep(2 * idle_agent.CHECK_S)
        assert is_running(child)
        raylet.kill()
    wait_for_end(child)
