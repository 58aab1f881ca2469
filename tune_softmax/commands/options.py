"""Arguments and options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tune_softmax.errors import ExperimentError, command

__all__ = [
    "FAILED_TRIALS",
    "AddressOption",
    "DataDirOption",
    "ExperimentArgument",
    "RunArgument",
    "StrictOption",
    "one_of",
]

if TYPE_CHECKING:
    from collections.abc import Callable

_Values = TypeVar("_Values", bound=StrEnum)

FAILED_TRIALS = 3
"""The exit code of a search that is done, with failed trials where that counts."""


def one_of(values: type[_Values]) -> Callable[[str], _Values]:
    """Return the parser of an option that takes one of some words."""

    def parse(text: str) -> _Values:
        try:
            return values(text)
        except ValueError as error:
            raise typer.BadParameter(
                f"must be one of {', '.join(values)}, got {text!r}"
            ) from error

    return parse


def _no_folder(path: Path) -> Path:
    """Refuse a folder where an experiment file is meant."""
    if path.is_dir():
        advice = (
            f"go on with a run with: {command('resume', path)}"
            if (path / "experiment.yaml").exists()
            else "name an experiment file"
        )
        raise ExperimentError(f"{path}: is a folder, not an experiment file; {advice}")
    return path


ExperimentArgument = Annotated[
    Path,
    typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).", callback=_no_folder),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where datasets are or go.  [default: $TUNE_SOFTMAX_DATA_DIR or "
        "~/.cache/tune_softmax]",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="A Ray cluster to join.  [default: a local one, started and ended here]",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with code 3 if any trial failed.")
]
