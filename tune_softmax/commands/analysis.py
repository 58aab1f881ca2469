"""`results`: what a run has found, to look at or to carry elsewhere."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import RunArgument, console
from tune_softmax.errors import ResultsError, StorageError

__all__ = ["Format", "results"]


DEFAULT_TOP = 20  # rows of a table; all columns of all trials are in the other forms


class Format(StrEnum):
    """How `results` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def results(
    run: RunArgument,
    form: Annotated[
        Format,
        typer.Option("--format", help="A table for people, or every column of every trial."),
    ] = Format.TABLE,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many of the best, in a table.", show_default=str(DEFAULT_TOP)
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of the terminal.")
    ] = None,
) -> None:
    """Print a run's trials, as a table or as CSV, JSON, Parquet."""
    from tune_softmax.commands import result_tables
    from tune_softmax.run.results import load

    if form is Format.TABLE and output is not None:
        raise typer.BadParameter("--output goes with --format csv, json or parquet")
    if form is not Format.TABLE and top is not None:
        raise typer.BadParameter("--top goes with --format table; the others hold every trial")
    found = load(run)
    if form is Format.TABLE:
        terminal = console()
        ranked = found.ranked()
        shown = ranked[: top or DEFAULT_TOP]
        terminal.print(result_tables.trial_table(found, shown, str(run)))
        if top is None and len(ranked) > len(shown):
            terminal.print(
                f"\n{len(ranked) - len(shown):,} more: --top {len(ranked)}, or --format csv",
                markup=False,
                highlight=False,
            )
        return
    content = result_tables.export(found, form)
    data = content.encode() if isinstance(content, str) else content
    if output is not None:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise StorageError(
                f"--output {output}: cannot be written: {error.strerror}"
            ) from error
        return
    if form is Format.PARQUET and sys.stdout.isatty():
        raise ResultsError("--format parquet: bytes for a file; add --output FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
