"""Measure how a search grows: packs at once, trials, and nodes; with memory over its time.

Each search is our own command line in a process of its own, from typing to result. More packs
and nodes are local Ray nodes that say how many CPUs they have, whatever the machine has.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tune_softmax.bench.forms import aligned, sparkline, spread
from tune_softmax.bench.nodes import LocalNodes
from tune_softmax.bench.processes import Child, Memory, ending_on_sigterm, our_command
from tune_softmax.bench.task import NUM_WORKERS, our_experiment
from tune_softmax.errors import ClusterError, ExperimentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tune_softmax.bench.conditions import Conditions

__all__ = [
    "NODES",
    "PACKS",
    "PARTS",
    "TRIALS",
    "Case",
    "Row",
    "Run",
    "Sample",
    "bench_scaling",
    "draw_memory",
    "format_table",
    "to_json",
]

PARTS = ("packs", "nodes", "trials")
PACKS = (1, 2, 4)
NODES = (1, 2, 3)
TRIALS = (100, 1_000)
# More trials are held against so many, where these are measured.
REFERENCE_TRIALS = 1_000
SAMPLE_PERIOD_S = 1.0
CURVE_WIDTH = 60
ROLES = ("driver", "workers", "others")


@dataclass(frozen=True, slots=True)
class Case:
    """One size of a search.

    Attributes:
        part: Which of `PARTS` it is of.
        value: Packs at once, nodes of one CPU, or trials.
        num_trials: Trials to try.
        nodes: CPUs of each local node to join; none is a Ray of the search's own.
        max_concurrent_packs: Packs at once, where they fit.
    """

    part: str
    value: int
    num_trials: int
    nodes: tuple[int, ...]
    max_concurrent_packs: int

    @property
    def name(self) -> str:
        """What a table calls it."""
        return {
            "packs": f"{self.value} packs at once",
            "nodes": f"{self.value} nodes",
            "trials": f"{self.value:,} trials",
        }[self.part]


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes of a search took at one moment.

    Attributes:
        seconds: Since typing.
        memory: Bytes, by role.
    """

    seconds: float
    memory: Memory


@dataclass(frozen=True, slots=True)
class Run:
    """One search, measured.

    Attributes:
        wall_s: From typing to result.
        run_bytes: What its run folder takes on the disk.
        samples: Memory over its time; not empty.
    """

    wall_s: float
    run_bytes: int
    samples: tuple[Sample, ...]

    def bytes_at(self, role: str, fraction: float) -> int:
        """Return a role's memory around a moment: the median over a tenth of the search.

        Args:
            role: One of `ROLES`.
            fraction: Of the search's time, up to 1; the tenth that ends there.
        """
        near = [
            getattr(sample.memory, role)
            for sample in self.samples
            if fraction - 0.1 <= sample.seconds / self.wall_s <= fraction
        ]
        return int(median(near or [getattr(self.samples[-1].memory, role)]))


@dataclass(frozen=True, slots=True)
class Row:
    """One size, measured.

    Attributes:
        case: Which.
        runs: One a repeat.
        ratio: Median seconds a trial over those of the part's first row, or of the row of
            `REFERENCE_TRIALS` trials where there is one.
    """

    case: Case
    runs: tuple[Run, ...]
    ratio: float

    @property
    def seconds_per_trial(self) -> float:
        """Median wall seconds over trials, start-up included."""
        return median(run.wall_s for run in self.runs) / self.case.num_trials


@dataclass(slots=True)
class _Measured:
    """One size, and what it has measured so far."""

    case: Case
    runs: list[Run] = field(default_factory=list)


def bench_scaling(
    *,
    parts: Sequence[str] = PARTS,
    trials: Sequence[int] = TRIALS,
    dataset: str = "digits",
    train_fraction: float = 1.0,
    repeats: int = 1,
    data_dir: Path | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run every size's search in turn and repeatedly.

    Args:
        parts: Of `PARTS`.
        trials: How many trials; packs and nodes are measured with the first.
        dataset: Its name; with `digits` training is short, so that all else shows.
        train_fraction: How much of it to train on, above 0 and up to 1.
        repeats: Rounds over all sizes, at least 1.
        data_dir: Where datasets are or go.
        on_progress: Called before each search with which it is.

    Returns:
        One row a size, by part.

    Raises:
        ExperimentError: An option is out of range.
        ClusterError: A search failed, or a node did not start.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ExperimentError(
            f"bench: scaling has no part {unknown[0]!r}; known: {', '.join(PARTS)}"
        )
    if repeats < 1 or not trials or min(trials) < 1:
        raise ExperimentError("bench: repeats and every number of trials must be at least 1")
    options = {"name": dataset, "train_fraction": train_fraction}
    measured = [_Measured(case) for case in _cases(parts, trials)]
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="bench-") as place:
        for repeat in range(repeats):
            for number, one in enumerate(measured):
                on_progress(f"round {repeat + 1} of {repeats}: {one.case.name}")
                folder = Path(place) / f"{repeat}-{number}"
                folder.mkdir()
                one.runs.append(_search(one.case, folder, options, repeat, data_dir))
    return _rows(measured)


def _cases(parts: Sequence[str], trials: Sequence[int]) -> list[Case]:
    first = trials[0]
    cases = {
        "packs": [Case("packs", n, first, (n,), n) for n in PACKS],
        "nodes": [Case("nodes", n, first, (1,) * n, n) for n in NODES],
        "trials": [Case("trials", n, n, (), NUM_WORKERS) for n in trials],
    }
    return [case for part in PARTS if part in parts for case in cases[part]]


def _search(
    case: Case, folder: Path, dataset: dict[str, Any], seed: int, data_dir: Path | None
) -> Run:
    """Run one search, and look at its memory while it runs."""
    experiment = folder / "bench.yaml"
    text = our_experiment(
        dataset, case.num_trials, seed=seed, max_concurrent_packs=case.max_concurrent_packs
    )
    experiment.write_text(text, encoding="utf-8")
    run = folder / "run"
    command = our_command("search", str(experiment), "--run-dir", str(run))
    if data_dir:
        command += ["--data-dir", str(data_dir.absolute())]
    with ExitStack() as stack:
        others: list[Child] = []
        variables = {}
        if case.nodes:
            nodes = stack.enter_context(LocalNodes(case.nodes, folder))
            command += ["--address", nodes.address]
            others, variables = nodes.children, nodes.environment
        started = time.monotonic()
        child = stack.enter_context(Child(command, folder / "log.txt", variables))
        samples: list[Sample] = []
        code = None
        while code is None:
            memories = [one.memory() for one in others]
            own = child.memory()
            joined = Memory(
                driver=own.driver,
                workers=own.workers + sum(one.workers for one in memories),
                others=own.others + sum(one.driver + one.others for one in memories),
            )
            samples.append(Sample(round(time.monotonic() - started, 2), joined))
            code = child.wait(SAMPLE_PERIOD_S)
        wall_s = time.monotonic() - started
        if code:
            raise ClusterError(
                f"bench: the search of {case.name} ended with exit code {code}: "
                f"{child.last_words()}"
            )
    run_bytes = sum(path.stat().st_blocks * 512 for path in run.rglob("*"))
    return Run(wall_s, run_bytes, tuple(samples))


def _rows(measured: Sequence[_Measured]) -> list[Row]:
    """Put each size beside its part's reference."""
    references: dict[str, float] = {}
    for one in measured:
        seconds = median(run.wall_s for run in one.runs) / one.case.num_trials
        is_named = one.case.part == "trials" and one.case.value == REFERENCE_TRIALS
        if one.case.part not in references or is_named:
            references[one.case.part] = seconds
    rows = []
    for one in measured:
        seconds = median(run.wall_s for run in one.runs) / one.case.num_trials
        rows.append(Row(one.case, tuple(one.runs), seconds / references[one.case.part]))
    return rows


def format_table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return the conditions, the rows as aligned text, and the memory of each as curves."""
    table: list[tuple[str, ...]] = [
        (
            *("", "wall s", "min to max", "ms per trial", "ratio", "run folder MB"),
            *("driver MB", "workers MB", "Ray and others MB"),
        )
    ]
    table += [
        (
            row.case.name,
            *spread([run.wall_s for run in row.runs], 1),
            f"{1000 * row.seconds_per_trial:.1f}",
            f"{row.ratio:.2f}",
            f"{max(run.run_bytes for run in row.runs) / 1e6:.1f}",
            *(_growth(row.runs[-1], role) for role in ROLES),
        )
        for row in rows
    ]
    legend = "memory after half of the time, and after nine tenths; a page that n share counts 1/n"
    return "\n".join(
        [
            f"medians of {len(rows[0].runs)}; {legend}",
            str(conditions),
            "",
            aligned(table),
            "",
            *(line for row in rows for line in _curves(row)),
        ]
    )


def _growth(run: Run, role: str) -> str:
    return f"{run.bytes_at(role, 0.5) / 1e6:,.0f} to {run.bytes_at(role, 0.9) / 1e6:,.0f}"


def _curves(row: Row) -> list[str]:
    """Return one line a role: its memory over the last repeat's time, and the largest."""
    lines = []
    for role in ROLES:
        values = [getattr(sample.memory, role) / 1e6 for sample in row.runs[-1].samples]
        curve = sparkline(values, CURVE_WIDTH)
        lines.append(f"{row.case.name:>18}  {role:8}  {curve}  up to {max(values):,.0f} MB")
    return lines


def to_json(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return a JSON object: the conditions, and the rows with every sample of memory."""
    content = {
        "conditions": asdict(conditions),
        "rows": [
            {
                "name": row.case.name,
                **asdict(row.case),
                "seconds_per_trial": row.seconds_per_trial,
                "ratio": row.ratio,
                "runs": [asdict(run) for run in row.runs],
            }
            for row in rows
        ],
    }
    return json.dumps(content)


def draw_memory(rows: Sequence[Row], path: Path) -> None:
    """Draw the memory of each size's last repeat over its time.

    Args:
        rows: What `bench_scaling` returned.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        samples = row.runs[-1].samples
        for role in ROLES:
            values = [getattr(sample.memory, role) / 1e6 for sample in samples]
            axes.plot([sample.seconds for sample in samples], values, label=role)
        axes.set(title=row.case.name, xlabel="seconds", ylabel="MB", ylim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside what it names
    figure.savefig(path, dpi=144)
