"""Copies of a run while a search writes it: in the background, and a last one at the end.

The search comes first: whatever becomes of a copy, it goes on, and waits for the last one a
bounded time.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tune_softmax.errors import TuneSoftmaxError, command
from tune_softmax.export import copies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune_softmax.export.copy_list import Copy
    from tune_softmax.export.stores import Store
    from tune_softmax.run.folder import RunFolder

__all__ = ["syncing"]

logger = logging.getLogger("tune_softmax")

FIRST_RETRY_S = 1.0  # doubled at every failure
MAX_DOUBLINGS = 10
LAST_COPY_S = 30.0  # how long the end of a search may wait for a store that fails
REQUEST_S = 30.0  # and for what then is under way: three tries of a request, see `stores`
MAX_SHARE = 0.05  # of a processor core; the copies of a large ledger are made less often


@contextmanager
def syncing(
    folder: RunFolder,
    store: Store,
    *,
    report: Callable[[str], None],
    interval_s: float = 60.0,
    last_copy_s: float = LAST_COPY_S,
) -> Iterator[None]:
    """Copy a run to a store now and then while the body runs, and once at its end.

    Args:
        folder: The run that the body writes.
        store: Where the copies go; see `copies.prepare`.
        report: Called once at the end, with a line that says what is there.
        interval_s: Seconds between copies; none is made while the ledger stays the same.
        last_copy_s: Seconds for which a failing last copy is tried again.
    """
    syncer = _Syncer(folder, store, interval_s)
    thread = threading.Thread(target=syncer.run, name="tune-softmax-sync", daemon=True)
    thread.start()
    try:
        yield
    finally:
        syncer.end(last_copy_s)
        thread.join(last_copy_s + REQUEST_S)
        report(syncer.summary())


class _Syncer:
    def __init__(self, folder: RunFolder, store: Store, interval_s: float) -> None:
        self._folder = folder
        self._store = store
        self._interval_s = interval_s
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._num_copies = 0
        self._newest: Copy | None = None
        self._failure: str | None = None  # why the latest try failed
        self._num_failures = 0  # one after another
        self._is_complete = False

    def end(self, last_copy_s: float) -> None:
        """Ask for the last copy, to be given up after so many seconds."""
        self._deadline = time.monotonic() + last_copy_s
        self._ending.set()

    def run(self) -> None:
        """Copy until the end, then once more."""
        wait_s = self._interval_s
        copied = None
        while not self._ending.wait(wait_s):
            state = self._ledger_state()
            if state == copied:
                wait_s = self._interval_s
                continue
            began = time.thread_time()
            if self._copy():
                copied = state
                wait_s = max(self._interval_s, (time.thread_time() - began) / MAX_SHARE)
            else:
                wait_s = min(self._backoff_s(), self._interval_s)
        self._num_failures = 0
        while not self._copy():
            if time.monotonic() + self._backoff_s() > self._deadline:
                return
            time.sleep(self._backoff_s())
        self._is_complete = True

    def summary(self) -> str:
        place, run = self._store.url, self._folder.path
        if self._is_complete and self._newest is not None:
            size = f"{self._newest.size_bytes / 1e6:.1f} MB"
            return f"copied to {place}: {_times(self._num_copies)}, the last whole ({size})"
        state = "there is no copy yet"
        if self._newest is not None:
            state = f"the newest copy is of {self._newest.at:%Y-%m-%d %H:%M:%S} UTC"
        reason = self._failure or "the last copy was still under way"
        return (
            f"{state} at {place}: {reason}; the run itself is whole, copy it with: "
            f"{command('copy', run, place)}"
        )

    def _backoff_s(self) -> float:
        return FIRST_RETRY_S * 2.0 ** min(self._num_failures, MAX_DOUBLINGS)

    def _ledger_state(self) -> list[tuple[int, int]]:
        """Return what changes with every commit: size and time of the ledger and of its log."""
        ledger = copies.ledger_file(self._folder)
        states = []
        for path in (ledger, ledger.with_name(f"{ledger.name}-wal")):
            with suppress(FileNotFoundError):
                stat = path.stat()
                states.append((stat.st_size, stat.st_mtime_ns))
        return states

    def _copy(self) -> bool:
        try:
            self._newest = copies.put(self._folder, self._store)
        except (TuneSoftmaxError, OSError, sqlite3.Error) as error:
            if self._failure is None:
                logger.warning("a copy could not be made, it will be tried again: %s", error)
            self._failure = str(error)
            self._num_failures += 1
            return False
        if self._failure is not None:
            logger.info("copies are made again")
        self._failure = None
        self._num_failures = 0
        self._num_copies += 1
        return True


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
