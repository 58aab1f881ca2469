"""`oracle`: compute the known optimum that a search is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import DataDirOption
from tune_softmax.commands.output import console, say, warn
from tune_softmax.errors import command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from tune_softmax.oracle.path import Progress

__all__ = ["oracle"]


def oracle(
    source: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT|RUN", help="An experiment file, or a run folder."),
    ],
    num_penalties: Annotated[
        int,
        typer.Option(min=2, help="How many weight decays, before more are added around the best."),
    ] = 12,
    low: Annotated[
        float | None,
        typer.Option(
            help="The smallest weight decay.  [default: that of space.weight_decay, at least 1e-6]"
        ),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(
            help="The largest weight decay.  [default: that of space.weight_decay, or 1e-1]"
        ),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Compute the best loss that weight decay can reach.

    The convex optimum is computed for a path of weight decays, each with a certified bound.
    Training to convergence with weight decay alone cannot do better than the best of them.
    """
    from tune_softmax.commands import result_tables
    from tune_softmax.experiment import experiment as experiments
    from tune_softmax.oracle import path as oracles
    from tune_softmax.report.measures import regret
    from tune_softmax.run import results

    run = results.load(source) if source.is_dir() else None
    experiment = experiments.load(source) if run is None else run.experiment
    path = oracles.penalties(experiment, number=num_penalties, low=low, high=high)
    errors = console(stderr=True)
    with errors.status("loading the dataset") as status:
        found = oracles.oracle(
            experiment,
            path=path,
            data_dir=data_dir,
            on_progress=lambda progress: _show(errors, status, progress),
            on_note=warn,
        )
    console().print(result_tables.path_table(found.path))
    best = found.best
    line = f"Best on the path: validation loss {best.validation_loss:.4f} at weight decay "
    bound = f"certain to {best.validation_loss_bound:.1g} nats"
    lines = ["", f"{line}{best.weight_decay:.3g}, {bound}."]
    if run is not None:
        above = regret(run.trials, found.path)
        if above is not None:
            lines.append(_regret_in_words(above))
    if not found.num_computed:
        lines.append(f"All points were known already, from {found.file.path}")
    if run is not None:
        lines += ["", f"report  {command('report', source)}"]
    say(*lines)


def _regret_in_words(regret: float) -> str:
    if regret >= 0:
        return f"Regret: the best loss of the search is {regret:.4f} nats above that."
    return (
        f"Regret: the best loss of the search is {-regret:.4f} nats below that, because training "
        "that stops before the optimum can generalize better than any weight decay."
    )


def _show(errors: Console, status: Status, progress: Progress) -> None:
    """Print a new point as a line when it is found, and show its progress before that."""
    about = f"{progress.number} of {progress.total}: weight decay {progress.weight_decay:.3g}"
    point = progress.point
    if point is None:
        status.update(f"{about}, step {progress.num_steps}, certain to {progress.bound:.1g}")
        return
    if not progress.is_known:
        errors.print(
            f"{about}, validation loss {point.validation_loss:.4f}, certain to "
            f"{point.validation_loss_bound:.1g}, {point.seconds:.1f} s",
            soft_wrap=True,
        )
