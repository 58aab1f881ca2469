"""`bench`: measure speed on this machine, one command for each question."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import DataDirOption
from tune_softmax.commands.output import say, warn
from tune_softmax.config import Precision
from tune_softmax.errors import StorageError

__all__ = ["Part", "overhead", "packed", "race", "scaling", "search"]


class Part(StrEnum):
    """What `scaling` increases."""

    PACKS = "packs"
    NODES = "nodes"
    TRIALS = "trials"


_JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the figures to this file too.")
]


def packed(
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="A batch size of the mix; repeat for more.  [default: 64 128 256 512]"),
    ] = None,
    pack_size: Annotated[
        list[int] | None,
        typer.Option(help="Trials trained together; repeat.  [default: 1 4 16 64 256]"),
    ] = None,
    hidden_units: Annotated[
        int, typer.Option(min=0, help="Width of the hidden layer; 0 is softmax regression.")
    ] = 0,
    num_images: Annotated[int, typer.Option(min=1, help="Training images.")] = 50_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads of a pack.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="How packs multiply; the products alone are always float32.")
    ] = "float32",
    json_file: _JsonOption = None,
) -> None:
    """Measure seconds per trial-epoch, alone and in packs.

    The table compares trials trained one at a time, packs of 1 to 256 trials, and the matrix
    products alone, which no way of training can beat.
    """
    from tune_softmax.bench import packed as benchmark
    from tune_softmax.bench.conditions import Conditions

    conditions = Conditions.now()
    rows = benchmark.bench_packed(
        batch_sizes=batch_size or benchmark.BATCH_SIZES,
        pack_sizes=pack_size or benchmark.PACK_SIZES,
        num_images=num_images,
        repeats=repeats,
        num_threads=num_threads,
        device=device,
        hidden_units=hidden_units,
        precision=precision,
        on_progress=_tell,
    )
    _show(benchmark.format_table(rows, conditions), json_file, benchmark.to_json(rows, conditions))


def race(
    num_trials: Annotated[int, typer.Option(min=1, help="Configurations.")] = 10_000,
    pack_size: Annotated[
        int | None,
        typer.Option(min=1, help="Trials of a new pack.  [default: 64, on a GPU 1024]"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Training images.")] = 50_000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[Precision, typer.Option(help="How packs multiply.")] = "float32",
    seed: Annotated[
        int, typer.Option(help="Decides the configurations and everything random.")
    ] = 0,
    json_file: _JsonOption = None,
) -> None:
    """Race thousands of configurations through ASHA, without Ray.

    The engine runs alone: there is no sampler and no ledger either.
    """
    from tune_softmax.bench import race as benchmark
    from tune_softmax.bench.conditions import Conditions

    conditions = Conditions.now()
    measured = benchmark.bench_race(
        num_trials=num_trials,
        pack_size=pack_size,
        num_images=num_images,
        device=device,
        precision=precision,
        seed=seed,
        on_progress=_tell,
    )
    table = benchmark.format_table(measured, conditions)
    _show(table, json_file, benchmark.to_json(measured, conditions))


def search(
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure beside tune_softmax: optuna, scikit-learn, syne-tune, "
            "ray-tutorial, or tune_softmax-to-limit (as many trials as the time limit allows); "
            "repeat for more. tune_softmax measures nothing else.  [default: all]"
        ),
    ] = None,
    num_trials: Annotated[int, typer.Option(min=1, help="Configurations for each tool.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 1,
    limit_s: Annotated[
        float,
        typer.Option(
            help="Stop a search after so many seconds; its whole time is then estimated."
        ),
    ] = 300.0,
    num_seeds: Annotated[
        int,
        typer.Option(min=0, help="Seeds with which each winner is trained again; 0 skips that."),
    ] = 8,
    data_dir: DataDirOption = None,
    json_file: _JsonOption = None,
) -> None:
    """Time whole searches on Fashion-MNIST, ours and other tools'."""
    from tune_softmax.bench.conditions import Conditions
    from tune_softmax.bench.search import bench_search
    from tune_softmax.bench.search_table import format_table, to_json
    from tune_softmax.bench.ways import OURS_TO_LIMIT, PACKAGES, PEERS

    conditions = Conditions.now(PACKAGES)
    rows = bench_search(
        peers=peer or (OURS_TO_LIMIT.name, *PEERS),
        num_trials=num_trials,
        repeats=repeats,
        limit_s=limit_s,
        num_seeds=num_seeds,
        data_dir=data_dir,
        on_progress=_tell,
    )
    _show(format_table(rows, conditions), json_file, to_json(rows, conditions))


def overhead(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    num_trials: Annotated[
        int, typer.Option(min=1, help="Trials of the run that `results` reads.")
    ] = 10_000,
    json_file: _JsonOption = None,
) -> None:
    """Measure the time outside training: start, Ray, ledger."""
    from tune_softmax.bench import overhead as benchmark
    from tune_softmax.bench.conditions import Conditions

    conditions = Conditions.now()
    rows = benchmark.bench_overhead(repeats=repeats, num_trials=num_trials, on_progress=_tell)
    _show(benchmark.format_table(rows, conditions), json_file, benchmark.to_json(rows, conditions))


def scaling(
    part: Annotated[
        list[Part] | None,
        typer.Option(help="What to increase; repeat for more.  [default: all three]"),
    ] = None,
    num_trials: Annotated[
        list[int] | None,
        typer.Option(
            help="Numbers of trials; repeat for more. The parts packs and nodes use the first.  "
            "[default: 100 1000]"
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="digits, fashion-mnist, ...")] = "digits",
    train_fraction: Annotated[float, typer.Option(help="How much of it to train on.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Draw memory over time into this PNG file.")
    ] = None,
    data_dir: DataDirOption = None,
    json_file: _JsonOption = None,
) -> None:
    """Measure time and memory with more packs, nodes or trials."""
    from tune_softmax.bench import scaling as benchmark
    from tune_softmax.bench.conditions import Conditions

    conditions = Conditions.now()
    rows = benchmark.bench_scaling(
        parts=part or benchmark.PARTS,
        trials=num_trials or benchmark.TRIALS,
        dataset=dataset,
        train_fraction=train_fraction,
        repeats=repeats,
        data_dir=data_dir,
        on_progress=_tell,
    )
    _show(benchmark.format_table(rows, conditions), json_file, benchmark.to_json(rows, conditions))
    if plot is not None:
        benchmark.draw_memory(rows, plot)


def _tell(line: str) -> None:
    warn(line)


def _show(table: str, json_file: Path | None, content: str) -> None:
    say(table)
    if json_file is not None:
        try:
            json_file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"--json {json_file}: cannot be written: {error.strerror}"
            ) from error
