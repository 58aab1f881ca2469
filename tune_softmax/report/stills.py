"""The report's main figures as PNG files, for pages without scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from tune_softmax.metrics import State
from tune_softmax.report.figures.base import robust_range
from tune_softmax.report.measures import comparable, completed, gaps
from tune_softmax.report.theme import BLUE, GREEN, GREY, PURPLE, VERMILION
from tune_softmax.studies.pictures import draw_curves, finish, save

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["draw_effects", "save_effects", "save_gap", "save_learning_curves", "save_path"]

SIZES = {".": 6, "v": 4, "^": 4, "D": 7}
LOSS = "mean cross-entropy in nats"


def save_learning_curves(path: Path, epochs: pd.DataFrame, names: dict[int, str]) -> None:
    """Draw the training and validation loss of some trials side by side."""
    curves = {
        f"trial {number}, {name}": epochs[epochs["trial"] == number].sort_values("epoch")
        for number, name in names.items()
    }
    save(draw_curves(curves, ["loss"]), path)


def save_gap(path: Path, trials: pd.DataFrame, winner: int) -> None:
    """Draw every trial's generalization gap against weight decay and against its epochs.

    What lies far beyond the gaps of two and more epochs is drawn as a triangle at the edge.
    """
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    gap = gaps(trials)
    longer = gap[trials["epochs_trained"] > 1]
    low, high = robust_range(longer if len(longer) else gap)
    inside = gap.between(low, high)
    marks = (
        ("stopped early", ".", GREY, inside & (trials["state"] == State.PRUNED)),
        ("complete", ".", BLUE, inside & (trials["state"] == State.COMPLETE)),
        ("beyond", "v", GREY, gap < low),
        ("_", "^", GREY, gap > high),  # told by the line above; "_" keeps it out of the legend
        ("best", "D", VERMILION, trials["number"] == winner),
    )
    for axes, column in zip(panels, ("weight_decay", "epochs_trained"), strict=True):
        for name, mark, color, rows in marks:
            across, up = trials.loc[rows, column], gap[rows].clip(low, high)
            axes.plot(across, up, mark, color=color, label=name, ms=SIZES[mark])
        if trials[column].gt(0).all() and trials[column].max() > 30 * trials[column].min():
            axes.set_xscale("log")
        axes.set_xlabel(column.replace("_", " "))
        finish(axes)
    panels[0].set_ylabel("validation minus training loss")
    save(figure, path)


def save_path(path: Path, points: pd.DataFrame, trials: pd.DataFrame) -> None:
    """Draw the regularization path with the complete trials on it.

    Args:
        path: The PNG file to write.
        points: One row a weight decay: `weight_decay`, `train_loss`, `validation_loss`.
        trials: One row a trial.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    points = points[points["weight_decay"] > 0].sort_values("weight_decay")
    for split, color in (("train", BLUE), ("validation", VERMILION)):
        name = f"optimum, {split.replace('train', 'training')} loss"
        axes.plot(points["weight_decay"], points[f"{split}_loss"], color=color, label=name)
    shown = completed(comparable(trials))
    axes.plot(
        shown["weight_decay"], shown["last_validation_loss"], ".", color=GREY, label="trials"
    )
    top = max(points["validation_loss"].max(), shown["last_validation_loss"].quantile(0.8))
    axes.set(xscale="log", ylim=(None, 1.02 * top), xlabel="weight decay", ylabel=LOSS)
    finish(axes)
    save(figure, path)


def draw_effects(effects: pd.DataFrame) -> Figure:
    """Draw what each remedy did to the test loss, with intervals.

    Args:
        effects: One row a remedy: `remedy`, `strength_label`, `difference`, `low`, `high`,
            `verdict`.
    """
    figure = Figure(figsize=(7.2, 1.2 + 0.4 * len(effects)), layout="constrained")
    axes = figure.subplots()
    colors = {"better": GREEN, "worse": PURPLE}
    for place, row in enumerate(effects.iloc[::-1].to_dict("records")):
        color = colors.get(str(row["verdict"]), GREY)
        axes.plot([row["low"], row["high"]], [place, place], color=color)
        axes.plot([row["difference"]], [place], "o", color=color)
    axes.axvline(0, color=GREY, lw=1)
    names = [
        f"{row['remedy'].replace('_', ' ')} {row['strength_label']}".replace("$", r"\$")
        for row in effects.iloc[::-1].to_dict("records")
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test loss, remedy minus baseline, in nats")
    finish(axes, legend=False)
    return figure


def save_effects(path: Path, effects: pd.DataFrame) -> None:
    """Write `draw_effects` as a PNG file."""
    save(draw_effects(effects), path)
