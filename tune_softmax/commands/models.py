"""`train`: one configuration to a model, its weights and its test result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import DataDirOption, console

if TYPE_CHECKING:
    from tune_softmax.metrics import EpochMetrics

__all__ = ["train"]


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
        typer.Option(help="Where to save.  [default: runs/NAME-train, or runs/NAME-train-2, ...]"),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Train one configuration, test it and save the model."""
    from tune_softmax.commands.result_tables import confusion_table
    from tune_softmax.studies import chosen
    from tune_softmax.studies import train as single
    from tune_softmax.studies.pictures import curves_text, weights_text

    terminal = console()
    choice = chosen.choose(source, trial)

    def show(epoch: int, metrics: EpochMetrics) -> None:
        if epoch == 1:
            terminal.print(
                "epoch  train_loss  train_accuracy  validation_loss  validation_accuracy  seconds"
            )
        terminal.print(
            f"{epoch:5d}{metrics.train_loss:12.4f}{metrics.train_accuracy:16.4f}"
            f"{metrics.validation_loss:17.4f}{metrics.validation_accuracy:21.4f}"
            f"{metrics.seconds:9.2f}",
            highlight=False,
        )

    def record_opening() -> None:
        if choice.run is not None:
            choice.run.record_test_opening(command="train", trial=choice.number)

    trained = single.train(
        choice.experiment,
        choice.config,
        run_dir,
        number=choice.number,
        data_dir=data_dir,
        on_epoch=show,
        before_test=record_opening,
    )
    terminal.print()
    print(curves_text(trained.epochs, terminal.width))
    if terminal.is_terminal:
        names, weights = trained.output_names, trained.first_weights
        terminal.print(weights_text(weights[:10], names[:10], terminal.width))
    terminal.print(confusion_table(trained.test.confusion.tolist(), trained.class_names))
    terminal.print(
        f"test loss {trained.test.loss:.4f}, test accuracy {trained.test.accuracy:.4f} "
        f"on {int(trained.test.confusion.sum()):,} images; saved in {trained.folder}",
        highlight=False,
    )
