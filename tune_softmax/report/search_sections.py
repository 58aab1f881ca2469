"""Sections about a search: learning curves, gap, regularization path, ASHA, progress."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.errors import ExperimentError
from tune_softmax.report import figures, measures
from tune_softmax.report.parts import (
    Command,
    Drawing,
    Drawings,
    Facts,
    Paragraph,
    Part,
    Table,
)
from tune_softmax.stats.wording import count, words

if TYPE_CHECKING:
    from tune_softmax.report.inputs import Inputs
    from tune_softmax.run.results import Best, Results

__all__ = ["curves", "gap", "hyperparameters", "path", "progress", "rungs"]


def curves(search: Results, best: Best) -> list[Part]:
    """Return the learning curves of the best trial and of a baseline."""
    trials = search.trials.set_index("number")
    names = {best.number: "the best"}
    other = measures.baseline(search.trials, best.number)
    caption = (
        "The shaded area is the generalization gap. The training loss of an epoch is the mean "
        "over its mini-batches, each taken before its update, so in the first epochs it can lie "
        "above the validation loss."
    )
    parts: list[Part] = []
    if other is not None:
        names[other] = "the baseline"
        row = trials.loc[other]
        parts.append(
            Paragraph(
                f"The baseline is trial {other}: the complete trial, besides the best, with the "
                "lowest training loss. Weak regularization and long training lead to such a "
                f"trial. It has weight decay {row['weight_decay']:.3g}, {row['epochs_trained']} "
                f"epochs and a final training loss of {row['last_train_loss']:.4f}."
            )
        )
    drawn = search.epochs[search.epochs["trial"].isin(names)]
    limits = figures.robust_range([*drawn["train_loss"], *drawn["validation_loss"]])
    drawings = []
    for number, name in names.items():
        epoch = trials["best_epoch"][number]
        figure = figures.learning_curves(
            search.epochs,
            number,
            best_epoch=None if pd.isna(epoch) else int(epoch),
            name=name,
            limits=limits,
        )
        drawings.append(Drawing(figure, caption if number == best.number else ""))
    parts.append(Drawings(drawings))
    return parts


def gap(search: Results, best: Best) -> list[Part]:
    """Return the generalization gap of all trials."""
    trials = search.trials
    caption = (
        "One mark for each trial, after its last epoch; a trial that was stopped early has the "
        "gap of the epoch at which it stopped. Triangles at the edge are values beyond it: after "
        "one epoch the training loss still contains the loss of the first mini-batches."
    )
    decay = figures.generalization_gap(trials, "weight_decay", winner=best.number)
    length = figures.generalization_gap(trials, "epochs_trained", winner=best.number)
    return [Drawings([Drawing(decay, caption), Drawing(length)])]


def path(inputs: Inputs, search: Results, best: Best | None) -> list[Part]:
    """Return the regularization path with the trials on it, or how to compute it."""
    try:
        inputs.experiment.check_convex()
    except ExperimentError as error:
        return [Paragraph(f"This experiment has none: {error}.")]
    if inputs.path is None:
        asked = inputs.command("oracle", inputs.folder / "experiment.yaml")
        text = (
            "Softmax regression with weight decay alone is convex, so its optimum can be computed "
            "for every weight decay. To compute it and compare the search with it:"
        )
        return [Command(text, asked)]
    path = inputs.path
    optimum = path.sort_values("validation_loss").iloc[0]
    winner = None if best is None else best.number
    caption = (
        "The curves are the losses of the convex optimum. Marks are complete trials without L1, "
        "augmentation and hidden layer. A trial can lie below the curve, because training that "
        "ends before the optimum can generalize better."
    )
    figure = figures.regularization_path(path, search.trials, winner=winner)
    rows = [
        ("lowest loss on the path", f"{optimum['validation_loss']:.4f}"),
        ("at weight decay", f"{optimum['weight_decay']:.3g}"),
        ("certain to", _bound(optimum["validation_loss_bound"])),
    ]
    above = measures.regret(search.trials, path)
    if above is not None:
        found = above + optimum["validation_loss"]
        rows += [("lowest loss of the search", f"{found:.4f}"), ("regret", f"{above:+.4f} nats")]
    rows += [
        (f"all {len(path)} losses certain to", _bound(path["validation_loss_bound"])),
        ("their objectives certain to", _bound(path["suboptimality_bound"])),
    ]
    return [Drawings([Drawing(figure, caption, wide=True)]), Facts(rows)]


def _bound(values: float | pd.Series[float]) -> str:
    """Return the greatest of some bounds in nats."""
    greatest = float(np.max(values))
    return f"{greatest:.1g} nats" if math.isfinite(greatest) else "unknown"


def rungs(search: Results) -> list[Part]:
    """Return what ASHA stopped, and what that saved."""
    asha = search.experiment.search.asha
    if asha is None:
        return [Paragraph("The experiment asks for no early stopping of trials.")]
    table = measures.rungs(search.trials)
    rows = [
        (
            f"epoch {row['rung']}",
            f"{row['entered']:,}",
            f"{row['stopped']:,}",
            f"{row['ended']:,}",
            f"{row['went_on']:,}",
            f"{row['epochs_saved']:,}",
            f"{row['seconds_saved']:,.1f}",
        )
        for row in table.to_dict("records")
    ]
    spent = measures.spending(search.trials)
    text = (
        f"ASHA lets about one in {asha.reduction_factor:g} trials go on at each rung. It saved "
        f"{count(spent.epochs_saved, 'epoch')} of the stopped trials; "
        f"{count(spent.epochs_trained, 'epoch')} were trained. At each trial's own speed the "
        f"saved epochs would have taken about {spent.seconds_saved:,.1f} s; training took "
        f"{spent.seconds_trained:,.1f} s."
    )
    if asha.brackets > 1:
        text += " With several brackets a trial counts at every rung that it reaches."
    header = ("rung", "entered", "stopped", "ended", "went on", "epochs saved", "seconds saved")
    return [
        Paragraph(text),
        Drawings([Drawing(figures.rung_counts(table), wide=True)]),
        Table("Trials at each rung", header, rows),
    ]


def progress(inputs: Inputs, search: Results) -> list[Part]:
    """Return the best value and the regret over the search."""
    asked = search.experiment.search
    history = measures.history(search.trials, asked.mode)
    if history["best"].dropna().empty:
        return [Paragraph("No trial is complete yet.")]
    path = inputs.path if asked.metric == "validation_loss" else None
    optimum = None if path is None else float(path["validation_loss"].min())
    goal = float(history["best"].iloc[-1]) if optimum is None else optimum
    name = "the final best" if optimum is None else "the lowest on the path"
    caption = (
        "Seconds are summed over trials, in the order of their numbers. Each trial has its share "
        "of its pack's time, so packs that trained side by side took less than the sum."
    )
    drawings = [
        Drawing(figures.best_so_far(history, asked.metric, optimum=optimum)),
        Drawing(figures.best_so_far(history, asked.metric, "seconds", optimum=optimum), caption),
        Drawing(figures.regret(history, goal, asked.mode, name=name)),
        Drawing(figures.regret(history, goal, asked.mode, "seconds", name=name)),
    ]
    return [Drawings(drawings)]


def hyperparameters(search: Results) -> list[Part]:
    """Return Optuna's figures of the hyperparameters."""
    metric = search.experiment.search.metric
    complete = measures.completed(search.trials, f"last_{metric}")
    searched = [n for n in search.experiment.space.searched if len(complete[n].unique()) > 1]
    if len(complete) < 2 or not searched:  # noqa: PLR2004 - one trial has nothing to compare
        text = "There are too few complete trials with different hyperparameters to compare."
        return [Paragraph(text)]
    study = figures.study(search.trials, search.epochs, search.experiment)
    name = words(metric)
    importance = figures.importance(study, name)
    (bars,) = importance.data
    first = [name for name in reversed(bars.y) if name in searched][:3]
    pairs = [(one, other) for i, one in enumerate(first) for other in first[i + 1 :]]
    drawings = [
        Drawing(
            importance,
            "How much each hyperparameter decides whether a trial is among the best (PED-ANOVA).",
            wide=True,
        ),
        Drawing(
            figures.parallel_coordinates(study, name),
            "Each line is a complete trial.",
            wide=True,
            least_width=40,
        ),
        *(Drawing(figures.slices(study, one, name)) for one in searched),
        *(Drawing(figures.contour(study, *pair, name)) for pair in pairs),
    ]
    return [
        Paragraph(
            "These figures are drawn by Optuna from complete trials; a trial that ASHA "
            "stopped had fewer epochs than its configuration asks for. The contours show the "
            "most important hyperparameters and are interpolated between the trials."
        ),
        Drawings(drawings),
    ]
