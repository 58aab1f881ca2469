"""`remedies`, `confirm` and `predict`: the commands that use the test set or its winner."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import (
    AddressOption,
    DataDirOption,
    ExperimentArgument,
    RunArgument,
    one_of,
)
from tune_softmax.commands.output import console, say, warn
from tune_softmax.errors import DataError, command

if TYPE_CHECKING:
    from tune_softmax.studies.confirm import Confirmation
    from tune_softmax.studies.predict import Prediction
    from tune_softmax.studies.remedies import Remedies

__all__ = ["PredictionFormat", "confirm", "predict", "remedies", "resume"]


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
        typer.Option(
            min=2, max=1000, help="How many fresh seeds for each.  [default: as before, or 10]"
        ),
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


class PredictionFormat(StrEnum):
    """The formats of `predict`."""

    TEXT = "text"
    JSON = "json"


def predict(
    run: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="PNG or JPEG files; they become grey and are fitted into the model's shape.",
        ),
    ],
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert",
            help="Swap light and dark.  [default: where the border's tone is not that of the "
            "training images]",
        ),
    ] = None,
    form: Annotated[
        PredictionFormat,
        typer.Option(
            "--format",
            parser=one_of(PredictionFormat),
            metavar="|".join(PredictionFormat),
            help="A line for each picture, or JSON.",
        ),
    ] = PredictionFormat.TEXT,
) -> None:
    """Classify pictures with the confirmed winner of a search."""
    from tune_softmax.studies import predict as studies

    errors: dict[Path, str] = {}

    def note(path: Path, error: DataError) -> None:
        errors[path] = str(error)
        warn(f"error: {error}")

    found = studies.predict(run, images, invert=invert, on_error=note)
    if form is PredictionFormat.JSON:
        say(_predictions_json(found, errors))
    else:
        for one in found:
            first, *others = (f"{name}  {share:.4f}" for name, share in one.ranked)
            say("  ".join([str(one.path), first, f"(then {', '.join(others)})"]))
            for text in one.notes:
                say(f"  {text}")
    if errors:
        raise typer.Exit(DataError.exit_code)


def _predictions_json(found: list[Prediction], errors: dict[Path, str]) -> str:
    rows: list[dict[str, object]] = [
        {
            "path": str(one.path),
            "class": one.class_name,
            "probability": one.probability,
            "ranked": [{"class": name, "probability": share} for name, share in one.ranked],
            "size": one.size,
            "notes": one.notes,
        }
        for one in found
    ]
    rows += [{"path": str(path), "error": text} for path, text in errors.items()]
    return json.dumps(rows, indent=2)


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
    from tune_softmax.commands import study_tables

    console().print(study_tables.confirmation_table(found), "")
    say(*study_tables.confirmation_lines(found))
