"""`bench`: speed on this machine, one command a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tune_softmax.config import Precision  # noqa: TC001 - typer reads it

__all__ = ["packed"]


def packed(
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="A batch size of the mix; repeat for more.  [default: 64 128 256 512]"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Training images.")] = 50_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads of a pack.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        Precision, typer.Option(help="In which packs multiply; the products alone are float32.")
    ] = "float32",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file too.")
    ] = None,
) -> None:
    """Seconds per trial-epoch: one at a time, packs of 1 to 256, and the products alone."""
    from tune_softmax import bench as benchmark

    console = Console(stderr=True)
    with console.status("measuring") as status:
        rows = benchmark.bench_packed(
            batch_sizes=batch_size or benchmark.BATCH_SIZES,
            num_images=num_images,
            repeats=repeats,
            num_threads=num_threads,
            device=device,
            precision=precision,
            on_progress=status.update,
        )
    print(benchmark.format_table(rows))
    if json_file is not None:
        json_file.write_text(benchmark.to_json(rows))
