"""`train`: train one configuration, test it and save it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import FAILED_TRIALS, DataDirOption
from tune_softmax.commands.output import console, say

if TYPE_CHECKING:
    from tune_softmax.metrics import EpochMetrics

__all__ = ["train"]

_ALL_UP_TO, _THEN_EVERY = 5, 10  # which epochs are printed; curves.csv has all


def train(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT|RUN",
            help="An experiment file without a search, or a run folder: its best trial.",
        ),
    ],
    trial: Annotated[
        int | None, typer.Option(help="Which trial of a run.  [default: its best]")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where to save.  [default: runs/NAME-train for an experiment, RUN-train for a "
            "run, or the same with -2, -3, ...]"
        ),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Train one configuration, test it and save the model."""
    from tune_softmax.commands.result_tables import confusion_table, most_confused
    from tune_softmax.studies import train as studies

    def show(epoch: int, metrics: EpochMetrics) -> None:
        if epoch == 1:
            say("epoch   training: loss  accuracy   validation: loss  accuracy   seconds")
        if epoch <= _ALL_UP_TO or not epoch % _THEN_EVERY:
            say(_line(epoch, metrics))

    trained = studies.train(source, folder=run_dir, trial=trial, data_dir=data_dir, on_epoch=show)
    last = len(trained.epochs)
    if last > _ALL_UP_TO and last % _THEN_EVERY:
        say(_line(last, trained.epochs[-1]))
    say("", *trained.summary)
    if trained.test is not None:
        confusion = trained.test.confusion.tolist()
        console().print(confusion_table(confusion, trained.class_names))
        say(*most_confused(confusion, trained.class_names))
    say("", f"saved in {trained.folder}")
    if trained.test is None:
        raise typer.Exit(FAILED_TRIALS)


def _line(epoch: int, metrics: EpochMetrics) -> str:
    return (
        f"{epoch:5d}{metrics.train_loss:17.4f}{metrics.train_accuracy:10.4f}"
        f"{metrics.validation_loss:19.4f}{metrics.validation_accuracy:10.4f}"
        f"{metrics.seconds:10.2f}"
    )
