"""What a search reports while it runs, line by line.

A line is a trial's configuration, or a validation loss with the time since typing. Several
processes of one search append to the same file.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from tune_softmax.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Report", "Trace", "best_after", "curves_until", "read", "read_configs"]


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
        self._append(asdict(Report(seconds, str(trial), float(loss), num_epochs)))

    def describe(self, trial: object, config: Config) -> None:
        """Append what a trial is trained with; the same text is the same trial."""
        self._append({"trial": str(trial), "config": asdict(config)})

    def _append(self, content: dict[str, Any]) -> None:
        line = json.dumps(content) + "\n"
        # One write of a short line at a file's end is never mixed with another's.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(path: Path) -> list[Report]:
    """Return a trace's reports in the order of time; none where the file is not there."""
    reports = (Report(**line) for line in _lines(path) if "config" not in line)
    return sorted(reports, key=lambda one: one.seconds)


def read_configs(path: Path) -> dict[str, Config]:
    """Return the configurations that a trace holds, by trial; none where the file is not there."""
    found = (line for line in _lines(path) if "config" in line)
    return {line["trial"]: Config(**line["config"]) for line in found}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def best_after(reports: Iterable[Report], seconds: float) -> float | None:
    """Return the least finite loss reported by then, or None where there was none."""
    losses = (one.loss for one in reports if one.seconds <= seconds and isfinite(one.loss))
    return min(losses, default=None)


def curves_until(reports: Iterable[Report], seconds: float) -> dict[str, list[float]]:
    """Return each trial's losses reported by then, from its first on."""
    curves: defaultdict[str, list[float]] = defaultdict(list)
    for one in reports:
        if one.seconds <= seconds:
            curves[one.trial].append(one.loss)
    return dict(curves)
