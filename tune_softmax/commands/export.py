"""`export`: write a run in the format of another tool."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tune_softmax.commands.options import RunArgument, one_of
from tune_softmax.commands.output import say
from tune_softmax.errors import command

__all__ = ["Form", "export"]


class Form(StrEnum):
    """The formats of `export`."""

    OPTUNA = "optuna"


def export(
    run: RunArgument,
    to: Annotated[
        Form,
        typer.Option(
            "--to",
            parser=one_of(Form),
            metavar="|".join(Form),
            help="optuna: a study in a SQLite file, for optuna-dashboard.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file, or sqlite:///FILE.  [default: RUN/optuna.db]",
        ),
    ] = None,
) -> None:
    """Write a run in the format of another tool (Optuna)."""
    from tune_softmax.export import optuna_file
    from tune_softmax.run.folder import RunFolder

    assert to is Form.OPTUNA, "there is one form"
    folder = RunFolder(run)
    path = optuna_file.default_path(folder) if output is None else optuna_file.path_of(output)
    num_trials = optuna_file.export(folder, path)
    url = optuna_file.url_of(path)
    shown = command(url, program="optuna-dashboard")
    say(f"{num_trials:,} trials in {path}; see them with: {shown}")
