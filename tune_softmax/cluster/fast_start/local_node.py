"""Have `ray.init` start a local node with few processes and without waiting by the second.

Most of the time of a local `ray.init` goes into helper processes that a search does not use, each
of which imports a second's worth of Python on processors that the search needs too. `ray.init`
has no options for this. What is replaced here is Ray's own, for the length of a start; where a
release of Ray has not such names, it starts as it likes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import _raylet
from ray._private import ray_constants, services
from ray._private.node import Node
from ray.job_config import JobConfig

from tune_softmax.cluster.fast_start import idle_agent

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

__all__ = ["few_processes"]

# A cluster of one machine does not grow, workers' logs are not forwarded, and the API server, with
# the dashboard off, would report usage statistics alone; each takes a second of processor time.
SPARED = ("start_monitor", "start_log_monitor", "start_api_server")
# Two agents are part of every node: one exports metrics and takes jobs, the other makes runtime
# environments. A search uses neither, but each takes a second of processor time to start, and the
# node waits until both have written their ports down.
AGENTS = ("--dashboard_agent_command", "--runtime_env_agent_command")
AGENT_PORTS = (
    "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "METRICS_AGENT_PORT_NAME",
    "METRICS_EXPORT_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)
NO_PORT = 1  # where nobody listens
# What would have Ray make an environment for workers, which are of this very installation.
ENVIRONMENT_MAKERS = ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")
# How many workers a node starts at once, and before anybody has asked for them.
WORKER_COUNTS = ("--maximum_startup_concurrency", "--num_prestart_python_workers")
SYSTEM_CONFIG = {
    # Workers start with the node, while the driver still imports what it needs.
    "enable_worker_prestart": True,
    # They are idle until it comes; Ray would kill them after a second.
    "idle_worker_killing_time_threshold_ms": 60_000,
    # A node connects to its own object store, which may not listen yet; Ray tries once a second,
    # ten times.
    "raylet_client_connect_timeout_milliseconds": 20,
    "raylet_client_num_connect_attempts": 500,
}
# Ray itself looks once a second whether its node has come up.
POLL_S = 0.02
REGISTRATION_TIMEOUT_S = 30.0


@contextmanager
def few_processes(
    count_workers: Callable[[float, float], int], is_wanted: threading.Event
) -> Iterator[dict[str, Any]]:
    """Replace, for as long as the context lasts, what is not needed or slow of a node's start.

    The node cannot make runtime environments: its workers are of this installation. Its processes
    are a session of their own, so that a signal to this process's group is not for them.

    Args:
        count_workers: Returns, for a node's CPUs and GPUs, how many workers will be needed at
            once; Ray would start one for each CPU.
        is_wanted: Set once the driver has nothing better to do than to connect.

    Yields:
        More options for `ray.init`.
    """
    start_processes = getattr(Node, "start_ray_processes", None)
    start_process = getattr(services, "start_ray_process", None)
    process = getattr(services, "ConsolePopen", None)

    def start_and_wait(node: Node) -> None:
        assert start_processes is not None
        start_processes(node)
        _wait_until_registered(node)
        is_wanted.wait()

    def start_raylet_alone(command: list[str], kind: str, **options: object) -> object:
        assert start_process is not None
        if kind == ray_constants.PROCESS_TYPE_RAYLET:
            command = _alone(command, count_workers)
        return start_process(command, kind, **options)

    replaced: list[tuple[object, str, object]] = [
        (Node, "start_ray_processes", start_and_wait),
        (services, "start_ray_process", start_raylet_alone),
        (services, "ConsolePopen", process and partial(process, start_new_session=True)),
        # Workers would import from the folder that the driver was started in.
        (JobConfig, "_runtime_env_has_working_dir", lambda _config: True),
        # `uv run` would have it make an environment like the one that it runs in.
        (ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False),
        *((Node, name, _start_nothing) for name in SPARED),
    ]
    with ExitStack() as stack:
        for name in ENVIRONMENT_MAKERS:
            if name in os.environ:
                stack.callback(os.environ.__setitem__, name, os.environ.pop(name))
        for owner, name, replacement in replaced:
            if hasattr(owner, name):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, replacement)
        yield {"_system_config": SYSTEM_CONFIG}


def _start_nothing(node: Node, **_options: object) -> None:
    node._webui_url = ""  # noqa: SLF001 - what the API server would have told


def _alone(command: list[str], count_workers: Callable[[float, float], int]) -> list[str]:
    """Return a raylet's command without agents, and with as many workers as are needed."""
    options = dict(part.split("=", 1) for part in command if "=" in part)
    names = [getattr(_raylet, name, None) for name in AGENT_PORTS]
    if None not in names and hasattr(_raylet, "persist_port") and options.keys() >= set(AGENTS):
        stand_in = [sys.executable, "-I", "-S", str(Path(idle_agent.__file__))]
        options |= dict.fromkeys(AGENTS, subprocess.list2cmdline(stand_in))
        for name in names:
            _raylet.persist_port(options["--session_dir"], options["--node_id"], name, NO_PORT)
    listed = options.get("--static_resource_list", "").split(",")  # name, number, name, number
    if "CPU" in listed and options.keys() >= set(WORKER_COUNTS):
        numbers = dict(zip(listed[::2], listed[1::2], strict=True))
        num_workers = count_workers(float(numbers["CPU"]), float(numbers.get("GPU", 0)))
        options |= dict.fromkeys(WORKER_COUNTS, str(num_workers))
    return [
        f"{name}={options[name]}" if (name := part.partition("=")[0]) in options else part
        for part in command
    ]


def _wait_until_registered(node: Any) -> None:  # noqa: ANN401 - of Ray's private types
    """Return as soon as the node is known, or late, for Ray itself to say what is wrong."""
    deadline = time.monotonic() + REGISTRATION_TIMEOUT_S
    client = node.get_gcs_client()
    while time.monotonic() < deadline:
        known = client.get_all_node_info(timeout=REGISTRATION_TIMEOUT_S)
        if any(node_id.hex() == node.node_id for node_id in known):
            return
        time.sleep(POLL_S)
