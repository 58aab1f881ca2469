"""What a search reports while it runs: one line a validation loss, with the time since typing.

Several processes of one search append to the same file.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Report", "Trace", "best_after", "read"]


@dataclass(frozen=True, slots=True)
class Report:
    """One validation loss that a search has reported.

    Attributes:
        seconds: Since the command was typed.
        trial: Which trial; the same one is the same text.
        loss: Mean cross-entropy on the validation set, in nats.
        num_epochs: Epochs trained for it since the trial's last report, or from the start where
            a trial is trained anew.
    """

    seconds: float
    trial: str
    loss: float
    num_epochs: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a search's reports go.

    Attributes:
        path: The file.
        started: When the command was typed, on the monotonic clock, which all processes of a
            machine share.
    """

    path: Path
    started: float

    def add(self, trial: object, loss: float, num_epochs: int = 1) -> None:
        """Append a report as of now; the arguments are `Report`'s."""
        seconds = round(time.monotonic() - self.started, 3)
        line = json.dumps(asdict(Report(seconds, str(trial), float(loss), num_epochs))) + "\n"
        # One write of a short line at a file's end is never mixed with another's.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(path: Path) -> list[Report]:
    """Return a trace's reports in the order of time; none where the file is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return sorted((Report(**json.loads(line)) for line in lines), key=lambda one: one.seconds)


def best_after(reports: Iterable[Report], seconds: float) -> float | None:
    """Return the least finite loss reported by then, or None where there was none."""
    losses = (one.loss for one in reports if one.seconds <= seconds and isfinite(one.loss))
    return min(losses, default=None)
