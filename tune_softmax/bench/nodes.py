"""A Ray cluster of local nodes: real `ray start` processes, each on a loopback address of its own.

One token is asked of whoever joins, and nothing leaves this machine.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tune_softmax.bench.processes import Child
from tune_softmax.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["LocalNodes"]

START_TIMEOUT_S = 300.0
OBJECT_STORE_BYTES = 512 * 2**20


class LocalNodes:
    """A cluster for as long as the context lasts: a head without CPUs, and nodes with some.

    Args:
        num_cpus: What each node says it has; there may be more than the machine's.
        folder: Where logs go.
    """

    def __init__(self, num_cpus: Sequence[int], folder: Path) -> None:
        self._num_cpus = num_cpus
        self._folder = folder
        self._stack = ExitStack()
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        # Sockets below Ray's folder need a short path.
        place = tempfile.mkdtemp(prefix="nodes-")
        self._stack.callback(shutil.rmtree, place, ignore_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        try:
            head = ("--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={place}")
            self._start(*head, "--include-dashboard=false")
            for count in self._num_cpus:
                self._start(f"--address={self.address}", f"--num-cpus={count}")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, *options: str) -> None:
        number = len(self.children) + 1
        log = self._folder / f"node-{number}.txt"
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--block", *options),
            *(f"--node-ip-address=127.0.0.{number}", "--disable-usage-stats"),
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ]
        child = self._stack.enter_context(Child(command, log, self.environment))
        self.children.append(child)
        deadline = time.monotonic() + START_TIMEOUT_S
        # `ray start --block` says that it blocks once its node is there.
        while b"--block" not in log.read_bytes():
            if child.wait(0.1) is not None or time.monotonic() > deadline:
                raise ClusterError(f"bench: a local Ray node did not start: {child.last_words()}")
