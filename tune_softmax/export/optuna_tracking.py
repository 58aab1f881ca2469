"""An Optuna study of a run, kept up to date while a search writes the run.

The search comes first: what fails here is said at the end, and the search knows nothing of it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tune_softmax.errors import TuneSoftmaxError, command
from tune_softmax.export.optuna_file import StudyFile, default_path, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune_softmax.run.folder import RunFolder

__all__ = ["tracking"]

logger = logging.getLogger("tune_softmax")

MAX_SHARE = 0.02  # of a processor core; a long ledger is looked at less often
LAST_PASS_S = 60.0  # how long the end of a search may wait


@contextmanager
def tracking(
    folder: RunFolder, *, report: Callable[[str], None], interval_s: float = 3.0
) -> Iterator[None]:
    """Keep a run's study up to date while the body runs; at its end it is complete.

    Args:
        folder: The run that the body writes.
        report: Called once at the end, with a line that says where the study is, or what failed.
        interval_s: Seconds between looks at the ledger.
    """
    tracker = _Tracker(folder, interval_s)
    thread = threading.Thread(target=tracker.run, name="tune-softmax-track", daemon=True)
    thread.start()
    try:
        yield
    finally:
        tracker.ending.set()
        thread.join(LAST_PASS_S)
        report(tracker.summary())


class _Tracker:
    def __init__(self, folder: RunFolder, interval_s: float) -> None:
        self.ending = threading.Event()
        self._folder = folder
        self._path = default_path(folder)
        self._interval_s = interval_s
        self._study = StudyFile(folder, self._path)
        self._failure: str | None = None  # why the latest try failed
        self._is_complete = False

    def run(self) -> None:
        wait_s = 0.0
        has_study = False
        while not self.ending.wait(wait_s):
            began = time.thread_time()
            had_study, has_study = has_study, self._write()
            spent_s = time.thread_time() - began
            if has_study and not had_study:
                spent_s = 0.0  # making its tables takes longest, and only once
            wait_s = max(self._interval_s, spent_s / MAX_SHARE)
        self._is_complete = self._write()

    def summary(self) -> str:
        if self._is_complete:
            url = url_of(self._path)
            opens = command(url, program="optuna-dashboard")
            return f"Optuna study in {self._path}; see it with: {opens}"
        reason = self._failure or "the search ended too early"
        return (
            f"the Optuna study in {self._path} is not complete: {reason}; the run itself is "
            f"whole, make the study with: "
            f"{command('export', self._folder.path, '--to', 'optuna')}"
        )

    def _write(self) -> bool:
        """Write what is new; return whether there is a study, whole as of now."""
        try:
            there_is_one = self._study.update()
        except (TuneSoftmaxError, OSError) as error:
            self._study = StudyFile(self._folder, self._path)  # should somebody have removed it
            if self._failure is None:
                logger.warning("the Optuna study was not brought up to date: %s", error)
            self._failure = str(error)
            return False
        self._failure = None
        return there_is_one
