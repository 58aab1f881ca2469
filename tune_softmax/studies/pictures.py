"""Matplotlib figures of trained models: learning curves, weights, confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["draw_confusion", "draw_curves", "draw_weights", "finish", "save"]

_DPI = 144

# Okabe and Ito's blue and vermilion: colour-blind readers tell them apart.
_SPLITS = (("train", "training", "#0072b2", "o"), ("validation", "validation", "#d55e00", "s"))
_LABELS = {"loss": "mean cross-entropy in nats", "accuracy": "accuracy"}


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Draw a confusion matrix with its counts.

    Args:
        confusion: Numbers of images, (C, C): row the true class, column the predicted one.
        names: The C classes.
    """
    counts = np.array(confusion)
    size = 2.5 + 0.45 * len(names)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # The diagonal holds most images; on a linear scale all other cells would be white.
    axes.imshow(np.sqrt(counts), cmap="Blues")
    places = range(len(names))
    labels = [_literal(name) for name in names]
    axes.set_xticks(places, labels, rotation=90)
    axes.set_yticks(places, labels)
    axes.set(xlabel="predicted class", ylabel="true class")
    dark = np.sqrt(counts.max()) / 2
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if np.sqrt(count) > dark else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def draw_curves(
    curves: Mapping[str, pd.DataFrame], quantities: Sequence[str] = ("loss", "accuracy")
) -> Figure:
    """Draw learning curves: training against validation, over the epochs.

    Args:
        curves: By title of a model, one row an epoch, ascending: `epoch`, and `train_` and
            `validation_` of every quantity. What is not finite is left out.
        quantities: What to draw, each in a panel: "loss", "accuracy".
    """
    panels = [(title, quantity) for title in curves for quantity in quantities]
    figure = Figure(figsize=(4.8 * len(panels), 3.4), layout="constrained")
    sharey = len(quantities) == 1  # for one quantity of several models
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=sharey)[0]
    for axes, (title, quantity) in zip(grid, panels, strict=True):
        _draw_panel(axes, curves[title], quantity)
        axes.set(title=_literal(title), xlabel="epoch", ylabel=_LABELS[quantity])
    return figure


def _draw_panel(axes: Axes, curves: pd.DataFrame, quantity: str) -> None:
    values = {split: curves[f"{split}_{quantity}"] for split, *_ in _SPLITS}
    for split, name, color, mark in _SPLITS:
        axes.plot(
            curves["epoch"], values[split], mark, ls="-", color=color, markersize=3, label=name
        )
    axes.fill_between(
        curves["epoch"], values["train"], values["validation"], color="grey", alpha=0.25
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes)


def finish(axes: Axes, *, legend: bool = True) -> None:
    """Give axes that are drawn the looks that all have: a faint grid, an open frame."""
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8)


def draw_weights(weights: NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw each output's weights as an image.

    Red weights raise the output where a pixel is bright, blue ones lower it.

    Args:
        weights: float32, (outputs, H, W).
        names: What each output is.
    """
    columns = min(5, len(weights))
    rows = -(-len(weights) // columns)
    figure = Figure(figsize=(1.8 * columns, 2.0 * rows), layout="constrained")
    limit = float(np.abs(weights).max()) or 1.0
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, name in zip(grid.flat, weights, names, strict=False):
        axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(_literal(name), fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    figure.savefig(path, dpi=_DPI)


def _literal(text: str) -> str:
    """Return a text that Matplotlib shows unchanged; it reads formulas between dollar signs."""
    return text.replace("$", r"\$")
