"""`validate`, `check` and `doctor`: whether a file, a run and a machine are as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import DataDirOption, RunArgument, console

__all__ = ["check", "doctor", "validate"]


def validate(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema that editors use.")
    ] = False,
) -> None:
    """Check an experiment file and print it with all defaults."""
    from tune_softmax.experiment import experiment as experiments

    if schema:
        print(json.dumps(experiments.json_schema(), indent=2))
    if experiment is not None:
        print(experiments.load(experiment).to_yaml(), end="")
    if experiment is None and not schema:
        raise typer.BadParameter("name an EXPERIMENT file, or ask for the --schema")


def check(
    run: RunArgument,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="First give up the ledger's lost end, if it has lost it: the trials concerned "
            "run again on resume.",
        ),
    ] = False,
) -> None:
    """Check that a run's files are sound and agree."""
    from tune_softmax.run import check as checks
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.run.ledger import Ledger

    if accept_loss:
        folder = RunFolder(run)
        with folder.writing():
            Ledger.accept_loss(folder.ledger)
    found = checks.check(run)
    print(f"{found.num_trials:,} trials, {found.num_epochs:,} epochs: all rules hold")


def doctor(data_dir: DataDirOption = None) -> None:
    """Print Python, packages, processor, GPUs, datasets, disk."""
    from tune_softmax.commands import doctor as diagnosis

    terminal = console()
    for line in diagnosis.examine(data_dir):
        terminal.print(line, highlight=False, soft_wrap=True)
