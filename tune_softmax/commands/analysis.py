"""`results`: a run's trials as a table, or as a file for other programs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import RunArgument, one_of
from tune_softmax.commands.output import console, say
from tune_softmax.errors import ResultsError, StorageError

__all__ = ["Format", "results"]


DEFAULT_TOP = 20  # rows of the table; the other formats hold all


class Format(StrEnum):
    """The formats of `results`."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def results(
    run: RunArgument,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            parser=one_of(Format),
            metavar="|".join(Format),
            help="A table of the best, or a file with every column of every trial.",
        ),
    ] = Format.TABLE,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only so many of the best trials.  [default: 20 in a table, else all]"
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
        raise typer.BadParameter("--output needs --format csv, json or parquet")
    found = load(run)
    if form is Format.TABLE:
        ranked = found.ranked()
        shown = ranked[: top or DEFAULT_TOP]
        console().print(result_tables.trial_table(found, shown, str(run)))
        if top is None and len(ranked) > len(shown):
            say(f"\n{len(ranked) - len(shown):,} more: --top {len(ranked)}, or --format csv")
        return
    rows = found.trials if top is None else found.ranked().head(top)
    content = result_tables.export(rows, form)
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
        raise ResultsError("--format parquet: a terminal cannot show it; add --output FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
