"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "FAILED_TRIALS",
    "AddressOption",
    "DataDirOption",
    "ExperimentArgument",
    "RunArgument",
    "StrictOption",
]

FAILED_TRIALS = 3
"""The exit code of a search that is done, with failed trials where that counts."""

ExperimentArgument = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")
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
