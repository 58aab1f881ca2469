"""A process that imports what a worker needs, and is forked whenever Ray wants one.

Ray starts every worker as a Python of its own, once its node is up; what a pack needs takes each
of them a second of processor time to import, on processors that the driver needs too. So this
imports it once, while the driver still imports Ray itself, and what Ray starts is `fork_client`,
which asks here for a fork. Python's own fork server, of multiprocessing, starts functions; Ray's
workers are scripts, with arguments and an environment that are known only when they start.

Of its environment Ray's library reads some variables once, as it is imported, which is before
Ray has set them for a worker; see `_environment`. Where anything goes wrong, workers start as Ray
starts them, and a warning says so.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_softmax import fork_client, private
from tune_softmax.put_off import leave_out

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TRAIN_V2", "main", "serving", "through"]

# What a worker has imported by the time its first pack trains.
IMPORTED = (
    "ray._private.arrow_serialization",
    "ray._private.workers.setup_worker",
    "tune_softmax.worker",
    "tune_softmax.arrays",
    "tune_softmax.asha",
    "tune_softmax.data",
    "tune_softmax.packed",
)
# The script that runs `main`, with the driver's own path: it may have been added to.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from tune_softmax.fork_server import main; main()"
)
# Ray Train comes with Ray Tune; its second version, which no search uses, takes 0.2 s to import.
TRAIN_V2 = "RAY_TRAIN_V2_ENABLED"
MAX_WAITING = 1024
BUFFER_BYTES = 2**16
# How a process ends that Ray's library, or whatever it runs, has ended where it should not have.
CRASHES = {-signal.SIGABRT, -signal.SIGSEGV}
CHECK_S = 0.5
CRASHED = "a fork has crashed"

_current: Path | None = None  # the server's socket
logger = logging.getLogger("tune_softmax")


@contextmanager
def serving(address: str | None) -> Iterator[Path | None]:
    """Have a fork server for as long as the context lasts; an inner context has the outer one's.

    Args:
        address: Of the cluster that is to run the workers; None for a local one of our own, whose
            workers alone can be forked here.

    Yields:
        Its socket, which only this user can reach; None for other clusters, and on systems whose
        libraries do not bear to be forked.
    """
    global _current  # noqa: PLW0603 - a process needs one server
    if address is not None or _current is not None or sys.platform != "linux":
        yield None if address is not None else _current
        return
    folder = private.make_folder()
    place, complaints = folder / "forks", folder / "forks.err"
    with (
        complaints.open("w", encoding="utf-8") as stderr,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(str(place))
        listener.listen(MAX_WAITING)  # who asks early waits until all is imported
        server = subprocess.Popen(  # noqa: S603 - this very Python
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                START,
                str(listener.fileno()),
                json.dumps(sys.path),
            ],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # an interrupt from the keyboard is the driver's
        )
    try:
        _current = place
        yield place
    finally:
        _current = None
        code = server.poll()
        server.kill()
        server.communicate()
        lines = complaints.read_text(encoding="utf-8").splitlines()
        if code or CRASHED in lines:
            why = lines[-1] if lines else f"exit code {code}"
            logger.warning("workers started by themselves, not from the fork server: %s", why)
        private.remove_folder(folder)


def _environment() -> dict[str, str]:
    """Return the environment in which Ray is imported for workers that are not yet known.

    Workers get their own one, but Ray's library keeps what it has read: that a cluster asks for
    a token, and of which job a worker is, here of none, as those are that a node starts before
    anybody has asked for them. By RAY_RAYLET_PID, which `main` sets, it sees the node's end.
    """
    private.set_token()
    return (
        {TRAIN_V2: "0"}
        | os.environ
        | {
            "RAY_AUTH_MODE": "token",
            fork_client.JOB: fork_client.NO_JOB,
            "OPENBLAS_NUM_THREADS": "1",  # NumPy's threads would not outlive a fork
        }
    )


def through(place: Path, command: list[str]) -> list[str]:
    """Return a command that has the server at a place do what Ray's command for a worker does."""
    client = [sys.executable, "-I", "-S", str(Path(fork_client.__file__)), str(place)]
    return [*client, *command]


def main() -> None:
    """Import, then fork as often as asked, until standard input or the node ends."""
    # Workers end with the process of this number, and this one ends with the node.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        with leave_out("pydantic"):  # Ray would learn to send its models, which nobody sends
            importlib.import_module("ray._common.pydantic_compat")
        for module in IMPORTED:
            importlib.import_module(module)
        gc.freeze()  # or looking for garbage would copy pages that forks share
        asked = _serve(listener)
    _become(asked)


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for whoever asks; return in each fork, with what it was asked for."""
    raylet, is_open = None, True
    while True:
        open_ends = [sys.stdin, listener] if is_open else [sys.stdin]
        ready, _, _ = select.select(open_ends, [], [], CHECK_S)
        if sys.stdin in ready or (raylet and not Path(f"/proc/{raylet}").exists()):
            os._exit(0)
        if is_open and _has_crashed():
            listener.close()  # of the next ones each starts by itself
            is_open = False
            sys.stderr.write(f"{CRASHED}\n")
            sys.stderr.flush()
        elif listener in ready:
            connection, _ = listener.accept()
            with connection:
                text, descriptors = _receive(connection)
                if text.endswith(fork_client.END):  # or the client has ended meanwhile
                    asked: dict[str, Any] = json.loads(text)
                    raylet = asked["environment"].get("RAY_RAYLET_PID")
                    if _is_fork(connection):
                        os.setpgid(0, 0)  # a node ends a worker by ending its group
                        for number, descriptor in enumerate(descriptors):
                            os.dup2(descriptor, number)
                            os.close(descriptor)
                        return asked
                for descriptor in descriptors:
                    os.close(descriptor)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return what a client asks for, and its standard input, output and error."""
    text = b""
    descriptors: list[int] = []
    with suppress(ConnectionError):
        text, descriptors, _, _ = socket.recv_fds(connection, BUFFER_BYTES, 3)
        while not text.endswith(fork_client.END) and (more := connection.recv(BUFFER_BYTES)):
            text += more
    return text, descriptors


def _is_fork(connection: socket.socket) -> bool:
    """Fork; return whether this is the fork, and tell the client if it is not."""
    try:
        process = os.fork()
    except OSError:  # no room for one more: the client, untold, starts by itself
        return False
    if process:
        with suppress(ConnectionError):
            connection.sendall(fork_client.DONE)
    return not process


def _has_crashed() -> bool:
    """Take note of the forks that have ended; say whether one of them did so by itself."""
    signals = set()
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            signals.add(os.waitstatus_to_exitcode(ended[1]))
    return bool(signals & CRASHES)


def _become(asked: dict[str, Any]) -> None:
    """Be the worker that was asked for: what Ray's `setup_worker` does, but for the new Python."""
    from ray._private.workers.setup_worker import parser

    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    _, sys.argv = parser.parse_known_args(asked["command"][2:])
    runpy.run_path(sys.argv[0], run_name="__main__")
