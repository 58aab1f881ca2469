"""`remedies`, `confirm` and `predict`: the commands that use the test set or its winner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import (
    AddressOption,
    DataDirOption,
    ExperimentArgument,
    RunArgument,
)
from tune_softmax.commands.output import console, say
from tune_softmax.errors import command

if TYPE_CHECKING:
    from tune_softmax.studies.confirm import Confirmation
    from tune_softmax.studies.remedies import Remedies

__all__ = ["confirm", "predict", "remedies", "resume"]


def remedies(
    experiment: ExperimentArgument,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run folder to make.  [default: runs/NAME, or runs/NAME-2, ...]"),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Instead of remedies.seeds.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Smallest difference that matters, instead of remedies.margin."),
    ] = None,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Compare remedies against overfitting with a baseline."""
    from tune_softmax.commands.display import Display
    from tune_softmax.experiment import experiment as experiments

    loaded = experiments.load(experiment)
    loaded.check_remedies()
    given = {"remedies.seeds": seeds, "remedies.margin": margin}
    if overrides := {key: value for key, value in given.items() if value is not None}:
        loaded = experiments.load(experiment, overrides)
    from tune_softmax.studies import remedies as studies

    with Display(console()) as display:
        found = studies.remedies(
            loaded, run_dir=run_dir, address=address, data_dir=data_dir, observe=display
        )
    _show_remedies(found)


def confirm(
    run: RunArgument,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the best trials.  [default: as before, or 5]"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, help="How many fresh seeds for each.  [default: as before, or 10]"),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Smallest difference that matters.  [default: as before, or 1 % of the loss]"
        ),
    ] = None,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Retrain the best trials over seeds and test them."""
    from tune_softmax.commands.display import Display
    from tune_softmax.studies import confirm as confirmation

    with Display(console()) as display:
        found = confirmation.confirm(
            run,
            top=top,
            seeds=seeds,
            margin=margin,
            address=address,
            data_dir=data_dir,
            observe=display,
        )
    _show_confirmation(found)


def predict(
    run: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="PNG files; they become grey and are resized to the model's shape.",
        ),
    ],
) -> None:
    """Classify pictures with the confirmed winner of a search."""
    from tune_softmax.studies import predict as prediction

    for found in prediction.predict(run, images):
        note = f"  (resized from {found.size[0]} x {found.size[1]})" if found.size else ""
        say(f"{found.path}  {found.class_name}  {found.probability:.4f}{note}")


def resume(run: Path, address: str | None, data_dir: Path | None) -> None:
    """Go on with a study of remedies or a confirmation, and print its results."""
    from tune_softmax.commands.display import Display
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.studies import confirm as confirmation
    from tune_softmax.studies import remedies as studies

    is_confirmation = RunFolder(run).kind == confirmation.KIND
    with Display(console()) as display:
        if is_confirmation:
            confirmed = confirmation.confirm(
                run.absolute().parent, address=address, data_dir=data_dir, observe=display
            )
        else:
            found = studies.resume(run, address=address, data_dir=data_dir, observe=display)
    if is_confirmation:
        _show_confirmation(confirmed)
    else:
        _show_remedies(found)


def _show_remedies(found: Remedies) -> None:
    """Print a study of remedies, first whether the baseline overfits."""
    from tune_softmax.commands import study_tables

    terminal = console()
    say(found.overfitting.sentence, "")
    terminal.print(study_tables.doses_table(found.arms), "")
    terminal.print(study_tables.effects_table(found), "")
    path = found.folder.path
    say(*study_tables.remedy_lines(found), "", f"run folder   {path}")
    say(f"report       {command('report', path)}")


def _show_confirmation(found: Confirmation) -> None:
    """Print the test results of the confirmed trials."""
    from tune_softmax.commands import study_tables

    console().print(study_tables.confirmation_table(found), "")
    say(*study_tables.confirmation_lines(found))
