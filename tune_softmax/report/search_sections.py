"""Sections about a search: overfitting, the regularization path, ASHA, progress, Optuna's."""

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
    Section,
    Table,
)

if TYPE_CHECKING:
    from tune_softmax.report.inputs import Inputs
    from tune_softmax.run.results import Best, Results

__all__ = ["curves", "gap", "hyperparameters", "path", "progress", "rungs"]


def curves(search: Results, best: Best) -> Section:
    """Return the learning curves of the best trial and of a baseline."""
    trials = search.trials.set_index("number")
    names = {best.number: "the best"}
    other = measures.baseline(search.trials, best.number)
    caption = (
        "The shaded area is the generalization gap. The training loss of an epoch is the mean "
        "over its mini-batches, each before its update, so early in training it can lie above."
    )
    parts: list[Part] = []
    if other is not None:
        names[other] = "the baseline"
        row = trials.loc[other]
        parts.append(
            Paragraph(
                f"The baseline is trial {other}: of the complete trials but the best, the one "
                "that fits the training images closest, which is what weak regularization and "
                f"long training come to. Its weight decay is {row['weight_decay']:.3g}, it ran "
                f"{row['epochs_trained']} epochs, and its training loss ended at "
                f"{row['last_train_loss']:.4f}."
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
    return Section("curves", "Learning curves", parts)


def gap(search: Results, best: Best) -> Section:
    """Return the generalization gap of all trials."""
    trials = search.trials
    caption = (
        "One mark a trial, after its last epoch. Trials that were stopped early have their gap "
        "after the epochs they had. Triangles at the edge lie beyond it; after one epoch the "
        "training loss still holds that of the first mini-batches."
    )
    decay = figures.generalization_gap(trials, "weight_decay", winner=best.number)
    length = figures.generalization_gap(trials, "epochs_trained", winner=best.number)
    return Section(
        "gap", "Generalization gap", [Drawings([Drawing(decay, caption), Drawing(length)])]
    )


def path(inputs: Inputs, search: Results, best: Best | None) -> Section:
    """Return the regularization path with the trials on it, or how to compute it."""
    heading = "Regularization path"
    try:
        inputs.experiment.check_convex()
    except ExperimentError as error:
        return Section("path", heading, [Paragraph(f"There is none: {error}.")])
    if inputs.path is None:
        asked = inputs.command("oracle", str(inputs.folder / "experiment.yaml"))
        text = (
            "With weight decay alone softmax regression is convex, so that its optimum is known "
            "for every weight decay. To compute it, and hold the search against it:"
        )
        return Section("path", heading, [Command(text, asked)])
    path = inputs.path
    optimum = path.sort_values("validation_loss").iloc[0]
    winner = None if best is None else best.number
    caption = (
        "The curves are the convex optimum's losses, marks are complete trials without L1, "
        "augmentation and a hidden layer. A trial that stops early can lie below the optimum's "
        "curve."
    )
    parts: list[Part] = [
        Drawings(
            [
                Drawing(
                    figures.regularization_path(path, search.trials, winner=winner),
                    caption,
                    wide=True,
                )
            ]
        )
    ]
    rows = [
        ("best on the path", f"{optimum['validation_loss']:.4f}"),
        ("at weight decay", f"{optimum['weight_decay']:.3g}"),
        ("certain to", _bound(optimum["validation_loss_bound"])),
    ]
    above = measures.regret(search.trials, path)
    if above is not None:
        found = above + optimum["validation_loss"]
        rows += [("best found", f"{found:.4f}"), ("regret", f"{above:+.4f}")]
    rows += [
        (f"all {len(path)} validation losses certain to", _bound(path["validation_loss_bound"])),
        ("their objectives optimal within", _bound(path["suboptimality_bound"])),
    ]
    parts.append(Facts(rows))
    return Section("path", heading, parts)


def _bound(values: float | pd.Series[float]) -> str:
    """Return the greatest of some bounds in nats."""
    greatest = float(np.max(values))
    return f"{greatest:.1g} nats" if math.isfinite(greatest) else "unknown"


def rungs(search: Results) -> Section:
    """Return what ASHA stopped, and what that saved."""
    heading = "What ASHA stopped"
    asha = search.experiment.search.asha
    if asha is None:
        return Section("rungs", heading, [Paragraph("The experiment asks for no early stopping.")])
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
        f"About one in {asha.reduction_factor:g} trials goes on at each rung. Stopped trials had "
        f"{spent.epochs_saved:,} epochs left, against {spent.epochs_trained:,} that were trained; "
        f"at each trial's own pace they would have taken about {spent.seconds_saved:,.1f} s, "
        f"against {spent.seconds_trained:,.1f} s."
    )
    if asha.brackets > 1:
        text += " With several brackets a trial enters every rung that it reaches, its own or not."
    header = ("rung", "entered", "stopped", "ended", "went on", "epochs saved", "seconds saved")
    return Section(
        "rungs",
        heading,
        [
            Paragraph(text),
            Drawings([Drawing(figures.rung_counts(table), wide=True)]),
            Table("What was stopped and saved at each rung", header, rows),
        ],
    )


def progress(inputs: Inputs, search: Results) -> Section:
    """Return the best value and the regret over the search."""
    asked = search.experiment.search
    history = measures.history(search.trials, asked.mode)
    heading = "Best value over the search"
    if history["best"].dropna().empty:
        return Section("progress", heading, [Paragraph("No trial is complete yet.")])
    path = inputs.path if asked.metric == "validation_loss" else None
    optimum = None if path is None else float(path["validation_loss"].min())
    goal = float(history["best"].iloc[-1]) if optimum is None else optimum
    name = "the final best" if optimum is None else "the best on the path"
    caption = (
        "Seconds are the trials' shares of their packs' wall clock, summed in the order of trial "
        "numbers; packs that trained side by side took less."
    )
    drawings = [
        Drawing(figures.best_so_far(history, asked.metric, optimum=optimum)),
        Drawing(figures.best_so_far(history, asked.metric, "seconds", optimum=optimum), caption),
        Drawing(figures.regret(history, goal, asked.mode, name=name)),
        Drawing(figures.regret(history, goal, asked.mode, "seconds", name=name)),
    ]
    return Section("progress", heading, [Drawings(drawings)])


def hyperparameters(search: Results) -> Section:
    """Return Optuna's figures of the hyperparameters."""
    heading = "Hyperparameters"
    metric = search.experiment.search.metric
    complete = measures.completed(search.trials, f"last_{metric}")
    searched = [n for n in search.experiment.space.searched if len(complete[n].unique()) > 1]
    if len(complete) < 2 or not searched:  # noqa: PLR2004 - one trial has nothing to compare
        text = "Too few complete trials differ in a hyperparameter to compare any."
        return Section("hyperparameters", heading, [Paragraph(text)])
    study = figures.study(search.trials, search.epochs, search.experiment)
    words = metric.replace("_", " ")
    importance = figures.importance(study, words)
    (bars,) = importance.data
    first = [name for name in reversed(bars.y) if name in searched][:3]
    pairs = [(one, other) for i, one in enumerate(first) for other in first[i + 1 :]]
    drawings = [
        Drawing(
            importance,
            "PED-ANOVA over the complete trials: how much each decides over being among the best.",
            wide=True,
        ),
        Drawing(
            figures.parallel_coordinates(study, words),
            "Each line is a complete trial, through its hyperparameters.",
            wide=True,
            least_width=40,
        ),
        *(Drawing(figures.slices(study, name, words)) for name in searched),
        *(Drawing(figures.contour(study, *pair, words)) for pair in pairs),
    ]
    return Section(
        "hyperparameters",
        heading,
        [
            Paragraph(
                "Optuna's figures, of complete trials alone; those that ASHA stopped had fewer "
                "epochs than their configuration asks for. Contours are drawn for the most "
                "important hyperparameters, and interpolated where no trial was."
            ),
            Drawings(drawings),
        ],
    )
