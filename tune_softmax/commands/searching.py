"""`search` and `resume`: run a search and print its best trials."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands import testing
from tune_softmax.commands.options import (
    FAILED_TRIALS,
    AddressOption,
    DataDirOption,
    ExperimentArgument,
    RunArgument,
    StrictOption,
    one_of,
)
from tune_softmax.commands.output import console, say
from tune_softmax.stats.wording import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.export.background import BackgroundTasks
    from tune_softmax.run.results import Results

__all__ = ["SyncOption", "TrackOption", "Tracker", "resume", "search"]


class Tracker(StrEnum):
    """The tools that can show a search while it runs."""

    OPTUNA = "optuna"


SyncOption = Annotated[
    str | None,
    typer.Option(
        "--sync-to",
        metavar="URL",
        help="Copy the run to this address regularly and at the end: s3://BUCKET/PATH, "
        "gs://BUCKET/PATH or file:///PATH.",
    ),
]
TrackOption = Annotated[
    Tracker | None,
    typer.Option(
        "--track",
        parser=one_of(Tracker),
        metavar="|".join(Tracker),
        help="Keep an Optuna study of the search up to date, for optuna-dashboard.",
    ),
]


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
    warm_start: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Start from another run: try its best trials first."
        ),
    ] = None,
    ledger_url: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            metavar="URL",
            help="postgresql://USER@HOST/DATABASE to keep the ledger in; the password comes from "
            "PGPASSWORD.  [default: a file in the run folder]",
        ),
    ] = None,
    sync_to: SyncOption = None,
    track: TrackOption = None,
    strict: StrictOption = False,
) -> None:
    """Search a space of hyperparameters and print the best trials."""
    overrides = {
        "search.num_trials": num_trials,
        "search.time_budget_s": time_budget_s,
        "search.seed": seed,
        "search.pack_size": _number_or_word(pack_size),
        "resources.cpus_per_pack": cpus_per_pack,
        "resources.gpus_per_pack": gpus_per_pack,
    }
    from tune_softmax.commands.display import Display
    from tune_softmax.experiment import experiment as experiments

    loaded = experiments.load(experiment, _given(overrides))
    loaded.check_searchable()
    from tune_softmax.studies import search as searching

    with Display(console()) as display:
        found = searching.search(
            loaded,
            run_dir=run_dir,
            address=address,
            data_dir=data_dir,
            ledger_url=ledger_url,
            warm_start=warm_start,
            background=_background(sync_to, track),
            observe=display,
        )
    _finish(found, strict=strict)


def resume(
    run: RunArgument,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
    num_trials: Annotated[
        int | None, typer.Option(min=1, help="The new total number of trials, more than before.")
    ] = None,
    time_budget_s: Annotated[
        float | None,
        typer.Option(min=0, help="The new total time in seconds, more than before."),
    ] = None,
    sync_to: SyncOption = None,
    track: TrackOption = None,
    strict: StrictOption = False,
) -> None:
    """Go on with a stopped run, or give a search more trials."""
    from tune_softmax.run.folder import SEARCH, RunFolder

    if RunFolder(run).kind != SEARCH:
        given = [num_trials, time_budget_s, sync_to, track]
        if any(value is not None for value in given):
            raise typer.BadParameter(
                "--num-trials, --time-budget-s, --sync-to and --track go with a search; this run "
                "is none"
            )
        testing.resume(run, address, data_dir)
        return
    from tune_softmax.commands.display import Display
    from tune_softmax.studies import search as searching

    with Display(console()) as display:
        found = searching.resume(
            run,
            address=address,
            data_dir=data_dir,
            num_trials=num_trials,
            time_budget_s=time_budget_s,
            background=_background(sync_to, track),
            observe=display,
        )
    _finish(found, strict=strict)


def _background(sync_to: str | None, track: Tracker | None) -> BackgroundTasks:
    from tune_softmax.export.background import BackgroundTasks

    return BackgroundTasks(sync_to, track is not None, report=say)


def _finish(found: Results, *, strict: bool) -> None:
    """Print the results of a search; exit with code 3 if failed trials count."""
    from tune_softmax.commands import result_tables
    from tune_softmax.metrics import State

    ranked = found.ranked(found.trials[found.trials["state"] == State.COMPLETE])
    if len(ranked):
        title = f"The {count(min(10, len(ranked)), 'best trial')}"
        console().print(result_tables.trial_table(found, ranked.head(10), title))
        say("")
    say(*result_tables.summary(found))
    if found.count(State.FAIL) and (strict or not len(ranked)):
        raise typer.Exit(FAILED_TRIALS)


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in overrides.items() if value is not None}


def _number_or_word(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text
