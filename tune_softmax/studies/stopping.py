"""Stop a search well: by a signal, or by its time budget."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tune_softmax.errors import InterruptedEarlyError, command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Stop", "interruptible", "put_back"]

# SIGUSR1 is what batch systems send as a warning before the time limit.
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# What asks a process to end. A search leaves Ray Tune within a second of it; a Ray whose own
# processes had the same signal, as in a group, may never answer again.
ENDING = (signal.SIGTERM, signal.SIGUSR1)
LEAVE_TIMEOUT_S = 10.0


class Stop:
    """A request to stop: set by a signal or by the time budget, looked at between events.

    Attributes:
        signal: The signal that came, if one did.
        deadline: On the monotonic clock, if there is a time budget.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.deadline: float | None = None
        self._run: Path | None = None  # while a search looks at this between events
        self._has_left = threading.Event()

    @property
    def is_due(self) -> bool:
        """Whether it is time to stop."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.signal is not None

    @contextmanager
    def gently(self, run: Path) -> Iterator[None]:
        """Let a signal be no more than a request, for as long as the context lasts.

        Args:
            run: The run folder, for the message of a search that could not leave.
        """
        self._run = run
        try:
            yield
        finally:
            self._has_left.set()

    def request(self, number: int, _frame: object) -> None:
        """Take a signal; a second SIGINT ends what is under way at once.

        Raises:
            InterruptedEarlyError: Nothing is being trained yet.
        """
        self.signal = signal.Signals(number)
        signal.alarm(0)  # Ray's handler of SIGTERM would abort us 3 s after it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._run is None:
            raise InterruptedEarlyError(self.signal)
        if number in ENDING:
            threading.Thread(target=self._end_late, args=(self.signal,), daemon=True).start()

    def _end_late(self, number: signal.Signals) -> None:
        """End this process if the search does not leave Ray Tune in time."""
        if self._has_left.wait(LEAVE_TIMEOUT_S):
            return
        sys.stderr.write(
            f"stopped by {number.name}: Ray did not answer within {LEAVE_TIMEOUT_S:g} s; what was "
            f"recorded is kept; go on with: {command('resume', self._run)}\n"
        )
        sys.stderr.flush()
        os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request to stop.

    Only a process's main thread may handle signals; in another one nothing is caught.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop.request) for number in CAUGHT}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def put_back() -> None:
    """Install the handlers that Python knows once more, where C++ has put its own."""
    if threading.current_thread() is threading.main_thread():
        for number in CAUGHT:
            signal.signal(number, signal.getsignal(number))
