"""Processes that a bench starts: all that they start in turn, what these take, and their end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["Child", "Memory", "ending_on_sigterm", "our_command"]

# In the environment of a child, and so of all that it starts, with a value of its own.
_MARK = "TUNE_SOFTMAX_BENCH_CHILD"
_END_TIMEOUT_S = 10.0
# What Ray calls the processes that run actors and tasks.
_WORKER_TITLE = b"ray::"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a child and all that it started take, in bytes; a page that n share counts 1/n each.

    Attributes:
        driver: The child itself.
        workers: Ray's workers.
        others: Everything else, Ray's own processes above all.
    """

    driver: int
    workers: int
    others: int


class Child:
    """A command that runs; left as a context, it is over with all that it started.

    Args:
        command: Program and arguments.
        log: File that receives what it prints; its folder is the command's.
        environment: Variables besides this process's.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._log = log
        name, _, value = self._mark.partition("=")
        variables = {**os.environ, **(environment or {}), name: value}
        with log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=log.parent,  # some leave files where they are
                start_new_session=True,  # Ctrl-C is for us alone, who then end it
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_TIMEOUT_S)
        # Until none is left: some may have been started meanwhile.
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            self.process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit code, or None if it still runs after so many seconds."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def pids(self) -> list[int]:
        """Return the processes of it that live, by their mark."""
        mark = self._mark.encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is not ours
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def memory(self) -> Memory:
        """Return what its processes take now."""
        driver = workers = others = 0
        for pid in self.pids():
            folder = Path(f"/proc/{pid}")
            try:
                size = _proportional_bytes((folder / "smaps_rollup").read_text())
                title = (folder / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if pid == self.process.pid:
                driver += size
            elif title.startswith(_WORKER_TITLE):
                workers += size
            else:
                others += size
        return Memory(driver, workers, others)

    def last_words(self) -> str:
        """Return the last line that it printed."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def our_command(*arguments: str) -> list[str]:
    """Return the command that runs our command line in a process of its own."""
    return [sys.executable, "-c", "from tune_softmax.cli import program; program()", *arguments]


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process by an exception, so that its children end and files go."""

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _proportional_bytes(rollup: str) -> int:
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024
