"""`search` and `resume`: from an experiment file to a run folder and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import (
    FAILED_TRIALS,
    AddressOption,
    DataDirOption,
    ExperimentArgument,
    RunArgument,
    StrictOption,
    console,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.results import Results

__all__ = ["resume", "search"]


def search(
    experiment: ExperimentArgument,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run folder to make.  [default: runs/NAME, or runs/NAME-2, ...]"),
    ] = None,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
    num_trials: Annotated[int | None, typer.Option(help="Instead of search.num_trials.")] = None,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Instead of search.time_budget_s, in seconds.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of search.seed.")] = None,
    pack_size: Annotated[
        str | None, typer.Option(help="Instead of search.pack_size: a number, or auto.")
    ] = None,
    cpus_per_pack: Annotated[
        int | None, typer.Option(help="Instead of resources.cpus_per_pack.")
    ] = None,
    gpus_per_pack: Annotated[
        float | None,
        typer.Option(help="Instead of resources.gpus_per_pack; may be a fraction of one GPU."),
    ] = None,
    strict: StrictOption = False,
) -> None:
    """Search an experiment's space and print the ten best trials."""
    from tune_softmax import experiment as experiments
    from tune_softmax.progress import Display

    overrides = {
        "search.num_trials": num_trials,
        "search.time_budget_s": time_budget_s,
        "search.seed": seed,
        "search.pack_size": _number_or_word(pack_size),
        "resources.cpus_per_pack": cpus_per_pack,
        "resources.gpus_per_pack": gpus_per_pack,
    }
    loaded = experiments.load(experiment, _given(overrides))
    loaded.check_searchable()
    from tune_softmax import search as searching

    with Display(console()) as display:
        found = searching.search(
            loaded, run_dir=run_dir, address=address, data_dir=data_dir, observe=display
        )
    _finish(found, strict=strict)


def resume(
    run: RunArgument,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
    strict: StrictOption = False,
) -> None:
    """Run what is left of a search."""
    from tune_softmax import search as searching
    from tune_softmax.progress import Display

    with Display(console()) as display:
        found = searching.resume(run, address=address, data_dir=data_dir, observe=display)
    _finish(found, strict=strict)


def _finish(found: Results, *, strict: bool) -> None:
    """Print what a search found; exit with 3 for failed trials where that counts."""
    from tune_softmax import tables
    from tune_softmax.metrics import State

    terminal = console()
    ranked = found.ranked(found.trials[found.trials["state"] == State.COMPLETE])
    if len(ranked):
        terminal.print(tables.trial_table(found, ranked.head(10), "the ten best trials"))
        terminal.print()
    for line in tables.summary(found):
        terminal.print(line, highlight=False, soft_wrap=True)
    if found.count(State.FAIL) and (strict or not len(ranked)):
        raise typer.Exit(FAILED_TRIALS)


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in overrides.items() if value is not None}


def _number_or_word(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text
