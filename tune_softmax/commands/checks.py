"""`validate`, `check` and `doctor`: check a file, a run and this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.options import DataDirOption, RunArgument
from tune_softmax.commands.output import say

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
        say(json.dumps(experiments.json_schema(), indent=2))
    if experiment is not None:
        say(experiments.load(experiment).to_yaml().removesuffix("\n"))
    if experiment is None and not schema:
        raise typer.BadParameter("name an EXPERIMENT file, or ask for the --schema")


def check(
    run: RunArgument,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="If the ledger has lost its last records, accept that first; these trials run "
            "again on resume.",
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
    say(f"{found.num_trials:,} trials, {found.num_epochs:,} epochs: all rules hold")


def doctor(data_dir: DataDirOption = None) -> None:
    """Print Python, packages, processor, GPUs, datasets, disk."""
    from tune_softmax.commands import doctor as diagnosis

    say(*diagnosis.examine(data_dir))
