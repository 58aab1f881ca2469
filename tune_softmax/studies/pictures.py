"""Pictures of one trained model: learning curves and weights, as PNG files and on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotext
from matplotlib.figure import Figure
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tune_softmax.metrics import EpochMetrics

__all__ = [
    "curves_text",
    "draw_confusion",
    "draw_curves",
    "draw_weights",
    "save_confusion",
    "save_curves",
    "save_weights",
    "weights_text",
]

_DPI = 144

TRAIN_COLOR, VALIDATION_COLOR = "#4477aa", "#ee6677"  # told apart by colour-blind readers too


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
    # The root, or the diagonal would leave all else white.
    axes.imshow(np.sqrt(counts), cmap="Blues")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true class")
    dark = np.sqrt(counts.max()) / 2
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if np.sqrt(count) > dark else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def save_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Write `draw_confusion` as a PNG file."""
    draw_confusion(confusion, names).savefig(path, dpi=_DPI)


def draw_curves(epochs: Sequence[EpochMetrics]) -> Figure:
    """Draw loss and accuracy over the epochs, training against validation.

    Args:
        epochs: Metrics from the first epoch on.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    numbers = range(1, len(epochs) + 1)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in (("train", TRAIN_COLOR), ("validation", VALIDATION_COLOR)):
            values = [getattr(metrics, f"{split}_{quantity}") for metrics in epochs]
            axes.plot(numbers, values, color=color, marker="o", markersize=3, label=split)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def save_curves(path: Path, epochs: Sequence[EpochMetrics]) -> None:
    """Write `draw_curves` as a PNG file."""
    draw_curves(epochs).savefig(path, dpi=_DPI)


def curves_text(epochs: Sequence[EpochMetrics], width: int) -> str:
    """Return the loss curves as a chart of characters, `width` columns wide."""
    numbers = list(range(1, len(epochs) + 1))
    plotext.clear_figure()
    plotext.plot_size(min(width, 100), 16)
    plotext.theme("clear")
    plotext.xlabel("epoch")
    plotext.title("cross-entropy")
    plotext.xticks(numbers[:: max(1, len(numbers) // 10)])
    for split, marker in (("train", "braille"), ("validation", "o")):
        values = [getattr(metrics, f"{split}_loss") for metrics in epochs]
        plotext.plot(numbers, values, label=split, marker=marker)
    chart: str = plotext.uncolorize(plotext.build())
    return chart


def draw_weights(weights: NDArray[np.float32], names: Sequence[str]) -> Figure:
    """Draw each output's weights as an image: blue where a bright pixel speaks against it.

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
        axes.set_title(name, fontsize=9)
    return figure


def save_weights(path: Path, weights: NDArray[np.float32], names: Sequence[str]) -> None:
    """Write `draw_weights` as a PNG file."""
    draw_weights(weights, names).savefig(path, dpi=_DPI)


def weights_text(weights: NDArray[np.float32], names: Sequence[str], width: int) -> Text:
    """Return the weights as coloured half-blocks, as many images side by side as fit.

    Args:
        weights: float32, (outputs, H, W).
        names: What each output is.
        width: Columns of the terminal.
    """
    _, height, image_width = weights.shape
    limit = float(np.abs(weights).max()) or 1.0
    levels = np.clip(weights / limit, -1, 1)
    levels = np.pad(levels, ((0, 0), (0, height % 2), (0, 0)))
    per_row = max(1, width // (image_width + 2))
    text = Text()
    for start in range(0, len(levels), per_row):
        images = levels[start : start + per_row]
        for name in names[start : start + per_row]:
            text.append(name[:image_width].ljust(image_width + 2))
        text.append("\n")
        for y in range(0, height, 2):
            for image in images:
                for upper, lower in zip(image[y], image[y + 1], strict=True):
                    text.append("▀", style=f"{_color(upper)} on {_color(lower)}")
                text.append("  ")
            text.append("\n")
    return text


def _color(level: float) -> str:
    """Return red for 1, white for 0, blue for -1."""
    fade = round(255 * (1 - abs(level)))
    return f"rgb(255,{fade},{fade})" if level > 0 else f"rgb({fade},{fade},255)"
