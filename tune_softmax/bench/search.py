"""Measure whole searches, ours and others', from typing to result.

Every way of searching is a process of its own and is asked the same: the space, the number of
trials, the split and the early stopping of `task.py`, two trials or packs at once. One that is
not done after a time limit is ended, and its time for all trials is reckoned from those it did.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tune_softmax.bench.forms import aligned, spread
from tune_softmax.bench.processes import Child, ending_on_sigterm, our_command
from tune_softmax.bench.task import (
    GRACE_PERIOD,
    NUM_EPOCHS,
    NUM_VALIDATION,
    NUM_WORKERS,
    REDUCTION_FACTOR,
    Task,
    our_experiment,
    prepare_images,
)
from tune_softmax.bench.trace import Report, best_after, read
from tune_softmax.errors import ExperimentError, TuneSoftmaxError
from tune_softmax.ledger_tables import EPOCHS
from tune_softmax.sqlite_file import SqliteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tune_softmax.bench.conditions import Conditions

__all__ = [
    "OURS",
    "PACKAGES",
    "PEERS",
    "TIME_POINTS_S",
    "WAYS",
    "Outcome",
    "Row",
    "Way",
    "bench_search",
    "format_table",
    "to_json",
]

TIME_POINTS_S = (10, 30, 100, 300)
# How often our own ledger is looked at from outside; so late, at most, our losses are noted.
LOOK_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Way:
    """A way of searching.

    Attributes:
        name: What tables and the command line call it.
        module: Which of `peers` runs it; None: our own command line.
        packages: Whose versions matter, besides our own dependencies.
        is_synchronous: Whether all trials train on each rung before any goes on, so that what it
            has done is told by epochs and not by trials.
    """

    name: str
    module: str | None
    packages: tuple[str, ...] = ()
    is_synchronous: bool = False


OURS = Way("tune_softmax", None)
WAYS = (
    OURS,
    Way("optuna", "optuna_pruner"),
    Way("scikit-learn", "sklearn_halving", ("scikit-learn",), is_synchronous=True),
    Way("syne-tune", "syne_launcher", ("syne-tune",)),
    Way("ray-tutorial", "ray_tutorial"),
)
PACKAGES = tuple(package for way in WAYS for package in way.packages)
PEERS = tuple(way.name for way in WAYS if way is not OURS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one search went.

    Attributes:
        wall_s: From typing to the end of the process, or to the time limit.
        is_whole: Whether it came to its own end.
        reports: Validation losses, in the order of time.
        error: Why there is no result.
    """

    wall_s: float
    is_whole: bool
    reports: tuple[Report, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One way, measured.

    Attributes:
        way: Which.
        num_trials: Asked for.
        outcomes: One a repeat; a failure ends the repeats.
    """

    way: Way
    num_trials: int
    outcomes: tuple[Outcome, ...]

    @property
    def error(self) -> str | None:
        """Why there is no result, if there is none."""
        return next((one.error for one in self.outcomes if one.error), None)

    @property
    def is_whole(self) -> bool:
        """Whether every search came to its own end."""
        return all(one.is_whole for one in self.outcomes)

    @property
    def trials_done(self) -> tuple[float, ...]:
        """How many trials each repeat did; those that a time limit cut off count half."""
        return tuple(self._trials_done(one) for one in self.outcomes)

    def _trials_done(self, outcome: Outcome) -> float:
        if outcome.is_whole:
            return self.num_trials
        if self.way.is_synchronous:
            trained = sum(one.num_epochs for one in outcome.reports)
            return self.num_trials * trained / _halving_epochs(self.num_trials)
        begun = len({one.trial for one in outcome.reports})
        return max(begun - NUM_WORKERS / 2, 0)

    @property
    def epochs_per_trial(self) -> float:
        """Epochs trained for each trial done, the median; what early stopping leaves of 20."""
        return median(
            sum(report.num_epochs for report in one.reports) / done if done else nan
            for one, done in zip(self.outcomes, self.trials_done, strict=True)
        )

    @property
    def seconds_per_trial(self) -> tuple[float, ...]:
        """Wall seconds over trials done, one value a repeat, start-up included."""
        return tuple(
            one.wall_s / done if done else inf
            for one, done in zip(self.outcomes, self.trials_done, strict=True)
        )

    def best_after(self, seconds: float) -> float | None:
        """Return the median of the best losses reported by then; None where one had none yet."""
        best = []
        for one in self.outcomes:
            # A search that was cut off would have gone on.
            known = one.is_whole or seconds <= one.wall_s
            best.append(best_after(one.reports, seconds) if known else None)
        found = [value for value in best if value is not None]
        return median(found) if len(found) == len(best) else None

    @property
    def best(self) -> float | None:
        """The median over repeats of the best loss that each search reported."""
        best = [best_after(one.reports, inf) for one in self.outcomes]
        found = [value for value in best if value is not None]
        return median(found) if found else None


@dataclass(slots=True)
class _Measured:
    """One way, and what has come of it so far."""

    way: Way
    outcomes: list[Outcome] = field(default_factory=list)


def _halving_epochs(num_trials: int) -> int:
    """Return the epochs that synchronous halving trains, each rung from the start."""
    total, left, epochs = 0, num_trials, GRACE_PERIOD
    while epochs <= min(NUM_EPOCHS, num_trials * GRACE_PERIOD):
        total += left * epochs
        left = -(-left // REDUCTION_FACTOR)
        epochs *= REDUCTION_FACTOR
    return total


def bench_search(
    *,
    peers: Sequence[str] = PEERS,
    num_trials: int = 256,
    repeats: int = 1,
    limit_s: float = 300.0,
    data_dir: Path | None = None,
    num_validation: int = NUM_VALIDATION,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run every way's search in turn and repeatedly.

    Args:
        peers: Names of `WAYS`; ours is always measured, for the others to be held against.
        num_trials: Configurations that each tries, at least 1.
        repeats: Rounds over all ways, at least 1, each with a seed of its own.
        limit_s: Seconds after which a search is ended, above 0.
        data_dir: Where datasets are or go.
        num_validation: Images to validate on, of the training set's.
        on_progress: Called before each search with which it is.

    Returns:
        One row a way, in the order of `WAYS`.

    Raises:
        ExperimentError: An option is out of range.
        DataError: The dataset cannot be had.
    """
    known = {way.name: way for way in WAYS}
    unknown = [name for name in peers if name not in known]
    if unknown:
        raise ExperimentError(
            f"bench: no way to search is called {unknown[0]!r}; known: {', '.join(known)}"
        )
    options = {"num_trials": num_trials, "repeats": repeats, "limit_s": limit_s}
    for name, value in options.items():
        if value <= 0:
            raise ExperimentError(f"bench: {name} must be above 0, got {value:g}")
    measured = [_Measured(way) for way in WAYS if way is OURS or way.name in peers]
    # A short name, for Ray puts sockets below it.
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="bench-") as place:
        images = Path(place) / "images"
        prepare_images(images, data_dir, num_validation)
        for repeat in range(repeats):
            for number, one in enumerate(measured):
                if any(outcome.error for outcome in one.outcomes):
                    continue
                on_progress(f"round {repeat + 1} of {repeats}: {one.way.name}")
                folder = Path(place) / f"{repeat}-{number}"
                folder.mkdir()
                task = Task(folder, images, num_trials, repeat, time.monotonic())
                command = _command(one.way, task, data_dir, num_validation)
                one.outcomes.append(_run(one.way, task, command, limit_s))
    return [Row(one.way, num_trials, tuple(one.outcomes)) for one in measured]


def _command(way: Way, task: Task, data_dir: Path | None, num_validation: int) -> list[str]:
    """Return the command that runs a task."""
    if way.module is None:
        return _our_search(task, data_dir, num_validation)
    return [sys.executable, "-m", f"tune_softmax.bench.peers.{way.module}", str(task.file)]


def _run(way: Way, task: Task, command: Sequence[str], limit_s: float) -> Outcome:
    """Run one search to its end, or to the time limit."""
    task.write()
    watch = _Ledger(task) if way.module is None else None
    with Child(command, task.folder / "log.txt", _variables(task.folder)) as child:
        code = None
        while code is None and (left := task.started + limit_s - time.monotonic()) > 0:
            code = child.wait(min(left, LOOK_PERIOD_S))
            wall_s = time.monotonic() - task.started
            if watch:
                watch.look()
        reports = tuple(read(task.trace.path))
        error = f"exit code {code}: {child.last_words()}" if code else None
        return Outcome(wall_s, code == 0, reports, error)


def _variables(folder: Path) -> dict[str, str]:
    """Return what keeps a search's files in its folder, and all of it on this machine."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SYNETUNE_FOLDER": str(folder / "syne-tune"),
        "JOBLIB_TEMP_FOLDER": str(folder),
    }


def _our_search(task: Task, data_dir: Path | None, num_validation: int) -> list[str]:
    """Write the experiment, and return the command that one would type."""
    dataset = {"name": "fashion-mnist", "validation": num_validation}
    file = task.folder / "experiment.yaml"
    text = our_experiment(dataset, task.num_trials, seed=task.seed)
    file.write_text(text, encoding="utf-8")
    command = our_command("search", str(file), "--run-dir", str(task.folder / "run"))
    return [*command, "--data-dir", str(data_dir.absolute())] if data_dir else command


class _Ledger:
    """Our search's ledger, read from outside while the search writes it.

    Args:
        task: Whose trace receives what is new.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._path = task.folder / "run" / "run.db"
        self._seen: set[tuple[int, int]] = set()

    def look(self) -> None:
        """Note the losses that have come since the last look."""
        for number, epoch, loss in self._rows():
            if (number, epoch) not in self._seen:
                self._seen.add((number, epoch))
                self._task.trace.add(number, nan if loss is None else loss)

    def _rows(self) -> list[tuple[int, int, float | None]]:
        columns = (EPOCHS.c.number, EPOCHS.c.epoch, EPOCHS.c.validation_loss)
        try:
            with (
                closing(SqliteFile(self._path, writable=False)) as storage,
                storage.engine.connect() as connection,
            ):
                rows = connection.execute(sa.select(*columns)).all()
        except (TuneSoftmaxError, sa.exc.DBAPIError):
            return []  # not there yet, or just being made or closed: the next look will tell
        return [(row.number, row.epoch, row.validation_loss) for row in rows]


def format_table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return what was asked, under what conditions, and the rows as aligned text."""
    ours = _reference(rows)
    heading = (
        *("", "trials", "epochs each", "wall s", "min to max", "s per trial", "trials per hour"),
        *("ratio", "best loss", *(f"after {seconds} s" for seconds in TIME_POINTS_S)),
    )
    table = [heading, *(_cells(row, ours, len(heading)) for row in rows)]
    return "\n".join([_asked(rows), str(conditions), "", aligned(table), *_notes(rows)])


def _reference(rows: Sequence[Row]) -> float | None:
    """Return our own seconds per trial, if there are any."""
    return _finite(median(rows[0].seconds_per_trial)) if not rows[0].error else None


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _ratio(row: Row, ours: float | None) -> float | None:
    """Return how many times our trials per hour are the row's."""
    return _finite(median(row.seconds_per_trial) / ours) if ours and not row.error else None


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _asked(rows: Sequence[Row]) -> str:
    return (
        f"{rows[0].num_trials:,} trials on Fashion-MNIST, up to {NUM_EPOCHS} epochs each, "
        f"{NUM_WORKERS} at once, successive halving by {REDUCTION_FACTOR}; from typing to result; "
        f"medians of {len(rows[0].outcomes)}"
    )


def _cells(row: Row, ours: float | None, num_cells: int) -> tuple[str, ...]:
    if row.error is not None:
        return (row.way.name, "failed", *("-" for _ in range(num_cells - 2)))
    seconds = _finite(median(row.seconds_per_trial))
    done = f"{row.num_trials:,}" if row.is_whole else f"{median(row.trials_done):,.0f} *"
    losses = [row.best, *(row.best_after(seconds) for seconds in TIME_POINTS_S)]
    return (
        row.way.name,
        done,
        _cell(_finite(row.epochs_per_trial), 1),
        *spread([one.wall_s for one in row.outcomes], 1),
        _cell(seconds, 3),
        _cell(3600 / seconds if seconds else None, 0),
        _cell(_ratio(row, ours), 1),
        *(_cell(loss, 4) for loss in losses),
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    if any(not row.is_whole and not row.error for row in rows):
        notes.append("* ended by the time limit; seconds per trial are of the trials done by then")
    notes += [f"{row.way.name} failed: {row.error}" for row in rows if row.error]
    return ["", *notes] if notes else []


def to_json(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return a JSON object: what was asked, the conditions, and the rows, every repeat apart."""
    ours = _reference(rows)
    content = {
        "asked": _asked(rows),
        "num_trials": rows[0].num_trials,
        "conditions": asdict(conditions),
        "rows": [
            {
                "name": row.way.name,
                "error": row.error,
                "is_whole": row.is_whole,
                "wall_s": [one.wall_s for one in row.outcomes],
                "trials_done": row.trials_done,
                "seconds_per_trial": [_finite(value) for value in row.seconds_per_trial],
                "ratio": _ratio(row, ours),
                "best_loss": [best_after(one.reports, inf) for one in row.outcomes],
                "best_loss_after_s": {str(s): row.best_after(s) for s in TIME_POINTS_S},
                "reports": [[asdict(one) for one in run.reports] for run in row.outcomes],
            }
            for row in rows
        ],
    }
    return json.dumps(content)
