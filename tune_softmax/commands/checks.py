"""`validate` and `doctor`: what is right and what is there, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import DataDirOption, console

__all__ = ["doctor", "validate"]


def validate(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema that editors use.")
    ] = False,
) -> None:
    """Check an experiment file and print it with every default written out."""
    from tune_softmax import experiment as experiments

    if schema:
        print(json.dumps(experiments.json_schema(), indent=2))
    if experiment is not None:
        print(experiments.load(experiment).to_yaml(), end="")
    if experiment is None and not schema:
        raise typer.BadParameter("name an EXPERIMENT file, or ask for the --schema")


def doctor(data_dir: DataDirOption = None) -> None:
    """Say what is here: Python, packages, processor, GPUs, datasets, disk."""
    from tune_softmax import diagnosis

    terminal = console()
    for line in diagnosis.examine(data_dir):
        terminal.print(line, highlight=False, soft_wrap=True)
