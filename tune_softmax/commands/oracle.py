"""`oracle`: the known optimum that a search is held against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tune_softmax.commands.options import DataDirOption, console

if TYPE_CHECKING:
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
        typer.Option(min=2, help="Penalties of the path, before it is refined around the best."),
    ] = 12,
    low: Annotated[
        float | None,
        typer.Option(help="The least.  [default: that of space.weight_decay, but not below 1e-6]"),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(help="The greatest.  [default: that of space.weight_decay, or 1e-1]"),
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
    errors = Console(stderr=True, markup=False)
    with errors.status("loading the dataset") as status:
        found = oracles.oracle(
            experiment,
            path=path,
            data_dir=data_dir,
            on_progress=lambda progress: _show(errors, status, progress),
            on_note=lambda line: errors.print(line, highlight=False, soft_wrap=True),
        )
    terminal = console()
    terminal.print(result_tables.path_table(found.path))
    terminal.print()
    best = found.best
    line = f"Best on the path: validation loss {best.validation_loss:.4f} at weight decay "
    lines = [f"{line}{best.weight_decay:.3g}, certain to {best.validation_loss_bound:.1g}."]
    if run is not None:
        above = regret(run.trials, found.path)
        if above is not None:
            lines.append(f"Regret of the search: {above:+.4f}.")
    if not found.num_computed:
        lines.append(f"Nothing had to be computed; all of it was in {found.file.path}")
    next_run = "RUN" if run is None else source
    lines += ["", f"beside a search  tune-softmax report {next_run}"]
    for line in lines:
        terminal.print(line, highlight=False, soft_wrap=True)


def _show(errors: Console, status: Status, progress: Progress) -> None:
    """Show a new point as a line once it is found, and before that how far it is."""
    about = f"{progress.number} of {progress.total}: weight decay {progress.weight_decay:.3g}"
    point = progress.point
    if point is None:
        status.update(f"{about}, step {progress.num_steps}, certain to {progress.bound:.1g}")
        return
    if not progress.is_known:
        errors.print(
            f"{about}, validation loss {point.validation_loss:.4f}, certain to "
            f"{point.validation_loss_bound:.1g}, {point.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
