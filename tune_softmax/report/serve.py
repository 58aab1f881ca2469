"""Serve a run's report on this machine only, and update it when the run changes."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tune_softmax.errors import ResultsError
from tune_softmax.run.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Live", "follow", "serving", "stamp"]

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
POLL_S = 1.0
DATABASE_S = 15.0
WRITERS = {"run.lock", "writer.json", "log.txt", "run.db-shm"}
REPORTS = {".html", ".md", ".png", ".part"}
SHARE = 0.2  # of the time, at most, that making the page again may take from the search


class Live:
    """The page as it is now.

    Args:
        make: Returns the page for a version; called again whenever the run has changed.
        folder: The run folder.
    """

    def __init__(self, make: Callable[[str], str], folder: Path) -> None:
        self._make = make
        self._folder = folder
        self._stamp = stamp(folder)
        self.version = "1"
        self.page = make(self.version)

    def refresh(self) -> bool:
        """Make the page again if the run has changed, and say whether it was."""
        now = stamp(self._folder)
        if now == self._stamp:
            return False
        version = str(int(self.version) + 1)
        self.page = self._make(version)
        self._stamp, self.version = now, version
        return True


def stamp(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Return the names, times and sizes of a run's files; they differ when the run has changed.

    The report's own files and those that say who writes are left out, and empty ones, which
    SQLite makes beside a ledger to read it.
    """
    found = set()
    if not isinstance(RunFolder(folder).ledger, Path):  # a database's, which no file's time tells
        found.add(("ledger", int(time.time() // DATABASE_S), 1))
    for path in (*folder.glob("*"), *folder.glob("best/*")):
        if path.suffix in REPORTS or path.name in WRITERS:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # gone since it was listed
            continue
        if status.st_size and path.is_file():
            found.add((path.name, status.st_mtime_ns, status.st_size))
    return frozenset(found)


@contextmanager
def serving(live: Live, port: int) -> Iterator[str]:
    """Serve a page while the block runs.

    Args:
        live: The page.
        port: On 127.0.0.1; 0 takes a free one.

    Yields:
        The page's address.

    Raises:
        ResultsError: The port cannot be had.
    """
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(live))
    except OSError as error:
        raise ResultsError(
            f"--port {port}: cannot be had on {LOOPBACK} ({error.strerror}); choose another, or "
            "leave it out for a free one"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def follow(live: Live) -> None:
    """Keep a page up to date until Ctrl-C."""
    try:
        while True:
            begin = time.monotonic()
            live.refresh()
            spent = time.monotonic() - begin
            time.sleep(max(POLL_S, spent * (1 / SHARE - 1)))
    except KeyboardInterrupt:
        return


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers with the page or its version, to this machine's own browsers."""

        def do_GET(self) -> None:
            _, port = self.connection.getsockname()
            if self.headers.get("Host") not in {f"{name}:{port}" for name in NAMES}:
                # A page elsewhere whose name was made to lead here may not read the report.
                self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            elif self.path == "/":
                self._answer(live.page, "text/html; charset=utf-8")
            elif self.path == "/version":
                self._answer(live.version, "text/plain; charset=utf-8")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keep the terminal for the address."""

    return Handler
