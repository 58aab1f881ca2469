"""A Ray of this machine alone, started in less time than `ray.init` takes by itself.

Most of that time goes into helpers of Ray's that import what they need, on processors that a
search needs too. So what a search does not use is not started. `ray.init` has no options for
this; what is replaced here for the length of a start is Ray's own, and a Ray that has no such
methods starts as it likes.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray._private.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["start"]

# The dataset is what the object store holds; Ray asks for at least 75 MB.
OBJECT_STORE_BYTES = 512 * 2**20
# A cluster of one machine does not grow, workers' logs are not forwarded, and the API server, with
# the dashboard off, would report usage statistics alone; each took a second of processor time.
SPARED = ("start_monitor", "start_log_monitor", "start_api_server")
# Workers that Ray starts at once are idle until the driver has imported what it needs; Ray would
# kill them after a second.
IDLE_MS = 60_000
# Ray itself looks once a second whether its node has come up.
POLL_S = 0.02
REGISTRATION_TIMEOUT_S = 30.0


def start(folder: Path) -> None:
    """Start a cluster that nobody else can find or enter, below a folder, and connect to it."""
    # Ray turns token authentication on by itself where no mode is set; a token in this process's
    # environment reaches its children, and needs no file in a home that may be read-only.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _sparingly():
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"idle_worker_killing_time_threshold_ms": IDLE_MS},
            _temp_dir=str(folder),
        )


@contextmanager
def _sparingly() -> Iterator[None]:
    """Replace what is not needed, or slow, of how Ray starts a node."""
    replaced: dict[str, Callable[..., None]] = dict.fromkeys(SPARED, _start_nothing)
    start_processes = getattr(Node, "start_ray_processes", None)

    def start_and_wait(node: Node) -> None:
        assert start_processes is not None
        start_processes(node)
        _wait_until_registered(node)

    replaced["start_ray_processes"] = start_and_wait
    kept = {name: getattr(Node, name) for name in replaced if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, replaced[name])
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _start_nothing(node: Node, **_options: object) -> None:
    node._webui_url = ""  # noqa: SLF001 - what the API server would have told


def _wait_until_registered(node: Any) -> None:  # noqa: ANN401 - of Ray's private types
    """Return as soon as the node is known, or late, for Ray itself to say what is wrong."""
    deadline = time.monotonic() + REGISTRATION_TIMEOUT_S
    client = node.get_gcs_client()
    while time.monotonic() < deadline:
        known = client.get_all_node_info(timeout=REGISTRATION_TIMEOUT_S)
        if any(node_id.hex() == node.node_id for node_id in known):
            return
        time.sleep(POLL_S)
