"""Measure where a search's time goes besides training: commands, imports, Ray, ledger, sampler.

What a process must do afresh is measured in fresh processes, what a search does again and again
in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tune_softmax.bench.forms import aligned, spread
from tune_softmax.bench.histories import (
    PACK_SIZE,
    past_study,
    reports_of,
    small_experiment,
    write_run,
)
from tune_softmax.bench.processes import Child, ending_on_sigterm, our_command
from tune_softmax.bench.task import NUM_WORKERS
from tune_softmax.cluster.fast_start import SWITCH
from tune_softmax.errors import ClusterError, ExperimentError
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tune_softmax.bench.conditions import Conditions

__all__ = ["Row", "bench_overhead", "format_table", "to_json"]

IMPORTS = ("torch", "ray", "ray.tune", "optuna", "pandas", "sqlalchemy", "pydantic")
HISTORIES = (100, 1_000, 10_000)
NUM_COMMITS = 50
NUM_SEARCHED = 64
TARGETS_S = {"--help": 0.3, "validate": 1.0, "results": 2.0}


@dataclass(frozen=True, slots=True)
class Row:
    """One part, measured.

    Attributes:
        name: What is done.
        seconds: How long it took, one value a repeat.
        target_s: What it should take at most, if something was promised.
    """

    name: str
    seconds: tuple[float, ...]
    target_s: float | None = None


def bench_overhead(
    *,
    repeats: int = 3,
    num_trials: int = 10_000,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure every part in turn and repeatedly.

    Args:
        repeats: Rounds over all parts, at least 1.
        num_trials: Of the run that `results` reads, at least 1; and no study knows more trials.
        on_progress: Called before each group of parts with which it is.

    Returns:
        One row a part.

    Raises:
        ExperimentError: An option is out of range.
        ClusterError: Ray could not be measured.
    """
    for name, value in {"repeats": repeats, "num_trials": num_trials}.items():
        if value < 1:
            raise ExperimentError(f"bench: {name} must be at least 1, got {value}")
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        on_progress(f"writing a run of {num_trials:,} trials")
        write_run(folder / "large", num_trials)
        experiment = folder / "bench.yaml"
        experiment.write_text(small_experiment(NUM_SEARCHED).to_yaml(), encoding="utf-8")
        groups: Mapping[str, Callable[[int], Mapping[str, float]]] = {
            "commands": lambda _: _time_commands(folder, num_trials),
            "imports": lambda _: {f"import {name}": _time_import(name) for name in IMPORTS},
            "Ray": lambda _: _probe(folder, fast=True) | _probe(folder, fast=False),
            "the ledger": lambda repeat: _time_ledger(folder / f"ledger-{repeat}.db"),
            "the sampler": lambda _: _time_sampler(num_trials),
            "a search": lambda repeat: (
                _time_search(experiment, folder / f"fast-{repeat}", fast=True)
                | _time_search(experiment, folder / f"plain-{repeat}", fast=False)
            ),
        }
        measured: dict[str, list[float]] = {}
        for repeat in range(repeats):
            for group, measure in groups.items():
                on_progress(f"round {repeat + 1} of {repeats}: {group}")
                for name, seconds in measure(repeat).items():
                    measured.setdefault(name, []).append(seconds)
    targets = {f"tune-softmax {name}": seconds for name, seconds in TARGETS_S.items()}
    return [
        Row(name, tuple(seconds), targets.get(name.split(",")[0]))
        for name, seconds in measured.items()
    ]


def _time_commands(folder: Path, num_trials: int) -> dict[str, float]:
    """Return what commands take that load neither torch nor Ray."""
    large, experiment = str(folder / "large"), str(folder / "bench.yaml")
    return {
        "tune-softmax --help": _time_command(our_command("--help")),
        "tune-softmax validate": _time_command(our_command("validate", experiment)),
        f"tune-softmax results, {num_trials:,} trials": _time_command(
            our_command("results", large, "--top", "10")
        ),
        f"tune-softmax results, {num_trials:,} trials, CSV": _time_command(
            our_command("results", large, "--format", "csv")
        ),
    }


def _time_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(  # noqa: S603 - our own
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | dict(environment or {})
    )
    return time.perf_counter() - started


def _time_import(name: str) -> float:
    """Return what one import takes in a process that has imported nothing else."""
    code = f"import time; started = time.perf_counter(); import {name}\n"
    return float(_printed([sys.executable, "-c", f"{code}print(time.perf_counter() - started)"]))


def _printed(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own
    return done.stdout.splitlines()[-1]


def _way(*, fast: bool) -> tuple[str, dict[str, str]]:
    """Return what a way to start Ray is called, and the variable that chooses it."""
    return "fast" if fast else "plain", {SWITCH: "1" if fast else "0"}


def _probe(folder: Path, *, fast: bool) -> dict[str, float]:
    """Return what Ray takes, from a process of its own."""
    log = folder / "probe.txt"
    name, environment = _way(fast=fast)
    command = [sys.executable, "-m", "tune_softmax.bench.probes"]
    with Child(command, log, environment=environment) as child:
        code = child.process.wait()
        if code:
            raise ClusterError(
                f"bench: Ray could not be measured, its process ended with exit code {code}: "
                f"{child.last_words()}"
            )
        parts: dict[str, float] = json.loads(child.last_words())
    return {f"{part}, {name}": seconds for part, seconds in parts.items()}


def _time_ledger(path: Path) -> dict[str, float]:
    """Return what it takes to hand a pack out, and to record one epoch of it: a commit each."""
    asked = [task.config for task in past_study(0).ask(PACK_SIZE, {}).values()]
    handed, recorded = [], []
    with closing(Ledger.create(path, {})) as ledger:
        for pack in range(NUM_COMMITS):
            numbers = range(pack * PACK_SIZE, (pack + 1) * PACK_SIZE)
            configs = dict(zip(numbers, asked, strict=True))
            started = time.perf_counter()
            ledger.hand_out(pack, configs)
            handed.append(time.perf_counter() - started)
            reports = [reports_of(number)[0] for number in numbers]
            started = time.perf_counter()
            ledger.record(pack, reports)
            recorded.append(time.perf_counter() - started)
    return {
        f"ledger: hand {PACK_SIZE} trials out": median(handed),
        f"ledger: record an epoch of {PACK_SIZE}": median(recorded),
    }


def _time_sampler(num_trials: int) -> dict[str, float]:
    """Return what the sampler takes for each trial of a pack, by the trials that it knows."""
    parts = {}
    for history in (length for length in HISTORIES if length <= num_trials):
        study = past_study(history)
        started = time.perf_counter()
        asked = len(study.ask(PACK_SIZE, {}))
        parts[f"Optuna: ask for one, {history:,} known"] = (time.perf_counter() - started) / asked
    return parts


def _time_search(experiment: Path, run: Path, *, fast: bool) -> dict[str, float]:
    """Return where the time of a whole small search went, by the events in its ledger."""
    way, environment = _way(fast=fast)
    typed = time.time()
    _time_command(our_command("search", str(experiment), "--run-dir", str(run)), environment)
    ended = time.time()
    with closing(Ledger.open(RunFolder(run).ledger)) as ledger:
        at = {kind: datetime.fromisoformat(when).timestamp() for when, kind, _ in ledger.events()}
        trained = sum(metrics.seconds for _, _, metrics in ledger.epochs()) / NUM_WORKERS
    name = f"search of {NUM_SEARCHED} on digits, {way} start"
    return {
        f"{name}, in all": ended - typed,
        f"{name}: until it may train": at["started"] - typed,
        f"{name}: from there to the last trial": at["ended"] - at["started"],
        f"{name}: of that, training": trained,
        f"{name}: to the end": ended - at["ended"],
    }


def format_table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return the conditions, and the rows as aligned text."""
    table = [("milliseconds", "median", "min to max", "target")]
    table += [
        (
            row.name,
            *spread([1000 * seconds for seconds in row.seconds], 1),
            "" if row.target_s is None else f"{1000 * row.target_s:,.0f}",
        )
        for row in rows
    ]
    repeats = f"medians of {len(rows[0].seconds)}"
    return "\n".join([repeats, str(conditions), "", aligned(table)])


def to_json(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return a JSON object: the conditions, and the rows, every repeat apart."""
    content = {"conditions": asdict(conditions), "rows": [asdict(row) for row in rows]}
    return json.dumps(content, indent=2)
