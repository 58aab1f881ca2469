"""Measure whole searches, ours and others', from typing to result.

Every way of searching is a process of its own and is asked the same: the space, the number of
trials, the split and the early stopping of `task.py`, two trials or packs at once. One that is
not done after a time limit is ended, and its time for all trials is reckoned from those it did.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tune_softmax.bench.anew import train_anew
from tune_softmax.bench.outcomes import TIME_POINTS_S, Outcome, Row
from tune_softmax.bench.processes import Child, ending_on_sigterm, our_command
from tune_softmax.bench.task import (
    NUM_VALIDATION,
    NUM_WORKERS,
    Task,
    our_experiment,
    prepare_images,
)
from tune_softmax.bench.trace import read, read_configs
from tune_softmax.bench.ways import OURS, PEERS, WAYS, Way
from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.arrays import to_arrays
from tune_softmax.errors import ExperimentError, TuneSoftmaxError
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.sqlite import SqliteFile
from tune_softmax.run.tables import EPOCHS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["NUM_SEEDS", "bench_search"]

# With which every winner is trained anew.
NUM_SEEDS = 8
# More trials than any search gets done that is to go on until the time limit.
ENDLESS = 1_000_000
# How often our own ledger is looked at from outside; so late, at most, our losses are noted.
LOOK_PERIOD_S = 0.5


@dataclass(slots=True)
class _Measured:
    """One way, and what has come of it so far."""

    way: Way
    outcomes: list[Outcome] = field(default_factory=list)


def bench_search(
    *,
    peers: Sequence[str] = PEERS,
    num_trials: int = 256,
    repeats: int = 1,
    limit_s: float = 300.0,
    num_seeds: int = NUM_SEEDS,
    data_dir: Path | None = None,
    num_validation: int = NUM_VALIDATION,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run every way's search in turn and repeatedly.

    Args:
        peers: Names of `WAYS`; ours is always measured, for the others to be held against. One
            that fills time has no number of trials, and goes on until it is ended.
        num_trials: Configurations that each tries, at least 1.
        repeats: Rounds over all ways, at least 1, each with a seed of its own.
        limit_s: Seconds after which a search is ended, above 0.
        num_seeds: With which winners are trained anew after all searches; 0 for not at all.
        data_dir: Where datasets are or go.
        num_validation: Images to validate on, of the training set's.
        on_progress: Called before each search with which it is, and before winners are trained.

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
    if num_seeds < 0:
        raise ExperimentError(f"bench: num_seeds must be at least 0, got {num_seeds}")
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
                asked = ENDLESS if one.way.fills_time else num_trials
                task = Task(folder, images, asked, repeat, time.monotonic())
                command = _command(one.way, task, data_dir, num_validation)
                one.outcomes.append(_run(one.way, task, command, limit_s))
    rows = [Row(one.way, num_trials, tuple(one.outcomes)) for one in measured]
    return _with_winners_anew(rows, num_seeds, data_dir, num_validation, on_progress)


def _with_winners_anew(
    rows: list[Row],
    num_seeds: int,
    data_dir: Path | None,
    num_validation: int,
    on_progress: Callable[[str], None],
) -> list[Row]:
    """Train the winners of every search at every time point, and return rows that know of it."""
    winners = dict.fromkeys(
        winner
        for row in rows
        for one in row.outcomes
        for seconds in (*TIME_POINTS_S, inf)
        if (winner := one.winner_after(seconds, row.way.answer))
    )
    if not winners or not num_seeds:
        return rows
    on_progress(f"training winners anew: {len(winners)}, each with {num_seeds} seeds")
    dataset = load_dataset("fashion-mnist", validation=num_validation, data_dir=data_dir)
    anew = train_anew(winners, to_arrays(dataset), num_seeds=num_seeds, num_threads=NUM_WORKERS)
    return [replace(row, anew=anew) for row in rows]


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
        error = f"exit code {code}: {child.last_words()}" if code else None
    if watch:
        watch.describe()
    trace = task.trace.path
    return Outcome(wall_s, code == 0, tuple(read(trace)), error, read_configs(trace))


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

    def describe(self) -> None:
        """Note what every trial is trained with."""
        if not self._seen:
            return
        with closing(Ledger.open(self._path)) as ledger:
            for record in ledger.trials():
                self._task.trace.describe(record.number, record.config)

    def _rows(self) -> list[tuple[int, int, float | None]]:
        columns = (EPOCHS.c.number, EPOCHS.c.epoch, EPOCHS.c.validation_loss)
        asked = sa.select(*columns).order_by(EPOCHS.c.number, EPOCHS.c.epoch)
        try:
            with (
                closing(SqliteFile(self._path, writable=False)) as storage,
                storage.engine.connect() as connection,
            ):
                rows = connection.execute(asked).all()
        except (TuneSoftmaxError, sa.exc.DBAPIError):
            return []  # not there yet, or just being made or closed: the next look will tell
        return [(row.number, row.epoch, row.validation_loss) for row in rows]
