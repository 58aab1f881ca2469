"""Our command line under faults: start it, find what it has started, kill it, read its end."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "Run",
    "alive",
    "await_true",
    "kill_all",
    "left_folders",
    "processes",
    "start",
    "variables",
]

PROGRAM = str(Path(sys.executable).parent / "tune-softmax")
INJECTION = Path(__file__).parent / "injection"
MARK = "TUNE_SOFTMAX_FAULT_MARK"
# Every process of this suite carries one mark in its environment, whoever starts it.
SUITE_MARK = os.environ.setdefault(MARK, secrets.token_hex(8))
# The machine may be busy, and its processes stopped for minutes while others measure.
START_TIMEOUT_S = 400.0
END_TIMEOUT_S = 600.0


def variables(faults):
    """Return the environment that brings faults into a process and all that it starts.

    Args:
        faults: See `injection/sitecustomize.py`.
    """
    return {"PYTHONPATH": str(INJECTION), "TUNE_SOFTMAX_FAULTS": json.dumps(faults)}


def start(*arguments, log, faults=None, environment=None, prefix=()):
    """Start the command line.

    Args:
        arguments: After `tune-softmax`.
        log: File that receives what it prints, after what is there.
        faults: See `variables`.
        environment: More variables.
        prefix: A command that runs it.

    Returns:
        The process.
    """
    whole = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    if faults:
        whole |= variables(faults)
    with Path(log).open("a") as output:
        return subprocess.Popen(
            [*prefix, PROGRAM, *map(str, arguments)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=whole,
        )


def processes(title=b"", mark=SUITE_MARK):
    """Return the processes that carry a mark and have some text in their title."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes()
            words = (path / "cmdline").read_bytes()
        except OSError:  # it has just ended, or is not ours
            continue
        if mark.encode() in environment and title in words and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def kill_all():
    """Kill every process of this suite, and remove what they leave."""
    for pid in processes():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for folder in left_folders():
        shutil.rmtree(folder, ignore_errors=True)


def alive(pid):
    """Say whether a process is there and not a zombie."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def await_true(condition, what, timeout_s=START_TIMEOUT_S, every_s=0.05):
    """Wait until something holds, and return it.

    Raises:
        AssertionError: It does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return value


def left_folders():
    """Return the temporary folders of searches that are gone: nobody holds their locks."""
    folders = Path(tempfile.gettempdir()).glob("tune-softmax-*")
    return [folder for folder in folders if (folder / "ray").is_dir() and not _is_locked(folder)]


def _is_locked(folder):
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@dataclass
class Run:
    """One run folder with its witness, in a folder of its own.

    Attributes:
        home: That folder.
        faults: Of every process, beside its own.
        environment: Variables of every process.
        prefix: A command that runs every process.
    """

    home: Path
    faults: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    prefix: tuple = ()

    def __post_init__(self):
        self.home.mkdir(parents=True, exist_ok=True)
        self.path = self.home / "run"
        self.witness = self.home / "witness.txt"
        self.printed = self.home / "printed.txt"
        self.process = None

    @property
    def all_faults(self):
        """The faults of every process, and the witness."""
        return {"witness": str(self.witness), **self.faults}

    def _start(self, *arguments, faults):
        whole = {**self.all_faults, **faults}
        self._num_printed = len(self.text())
        self.process = start(
            *arguments,
            log=self.printed,
            faults=whole,
            environment=self.environment,
            prefix=self.prefix,
        )
        return self.process

    def search(self, experiment, *options, **faults):
        """Start a search."""
        return self._start("search", experiment, "--run-dir", self.path, *options, faults=faults)

    def resume(self, *options, **faults):
        """Start a resume; of a run that was killed before its ledger was made, a new search."""
        return self._start("resume", self.path, *options, faults=faults)

    def text(self):
        """Return all that was printed."""
        return self.printed.read_text() if self.printed.exists() else ""

    def last_text(self):
        """Return what the last process printed."""
        return self.text()[self._num_printed :]

    def log(self):
        """Return the run's log."""
        path = self.path / "log.txt"
        return path.read_text() if path.exists() else ""

    def wait(self, timeout_s=END_TIMEOUT_S):
        """Wait for the process's end, and return its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"still running after {timeout_s:g} s: {self.last_text()}"
            ) from error

    def finish(self, code=0, timeout_s=END_TIMEOUT_S):
        """Wait for the process's end with an exit code.

        Raises:
            AssertionError: It was another one.
        """
        got = self.wait(timeout_s)
        assert got == code, f"exit code {got}, not {code}: {self.last_text()[-2000:]}"
        # Ray prints how a worker died, which is not how the command ended.
        assert not code or "Traceback" not in self.last_text(), self.last_text()[-2000:]

    def kill(self):
        """Kill the driver, and nothing else."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def num_epochs(self):
        """Return how many epochs of packs the witness has seen."""
        return self.witness.read_text().count("epoch ") if self.witness.exists() else 0

    def await_epochs(self, count):
        """Wait until packs have trained some more epochs; False if the process ended before."""
        wanted = self.num_epochs() + count
        await_true(
            lambda: self.num_epochs() >= wanted or self.process.poll() is not None,
            f"{count} epochs of a pack: {self.last_text()[-500:]}",
        )
        return self.process.poll() is None

    def copy(self, home):
        """Return a run with a copy of this one's folder."""
        other = Run(home, self.faults, self.environment, self.prefix)
        shutil.copytree(self.path, other.path)
        return other
