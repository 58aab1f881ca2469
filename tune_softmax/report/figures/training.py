"""Figures of training: learning curves, and the generalization gap over all trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tune_softmax.report.figures.base import (
    add_trials,
    axis_of,
    describe,
    new_figure,
    robust_range,
)
from tune_softmax.report.measures import gaps
from tune_softmax.report.theme import BLUE, GREY, SHADE, VERMILION

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["generalization_gap", "learning_curves"]

_Against = Literal["weight_decay", "epochs_trained"]
_AXIS = {"weight_decay": "weight decay λ", "epochs_trained": "epochs trained"}
_TITLE = {"weight_decay": "weight decay", "epochs_trained": "number of epochs"}


def learning_curves(
    epochs: pd.DataFrame,
    trial: int,
    *,
    best_epoch: int | None = None,
    name: str = "",
    limits: Sequence[float] | None = None,
) -> go.Figure:
    """Draw a trial's training loss against its validation loss, with the gap between shaded.

    Args:
        epochs: One row a trial and epoch, as `results.load(run).epochs`.
        trial: Which trial.
        best_epoch: To be marked; the epoch of the least validation loss by default.
        name: What the trial is, for the title: "the best".
        limits: Of the vertical axis, for figures to stand beside each other.
    """
    curves = epochs[epochs["trial"] == trial].sort_values("epoch")
    title = f"Learning curves of trial {trial}{', ' if name else ''}{name}"
    figure = new_figure(title, "epoch", "mean cross-entropy in nats")
    number = curves["epoch"].to_numpy()
    train, validation = (curves[f"{split}_loss"].to_numpy() for split in ("train", "validation"))
    for values, split, color, symbol in (
        (train, "training", BLUE, "circle"),
        (validation, "validation", VERMILION, "square"),
    ):
        figure.add_scatter(
            x=number,
            y=values,
            name=split,
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"symbol": symbol, "size": 5},
            fill="tonexty" if split == "validation" else None,
            fillcolor=SHADE,
            hovertemplate=f"{split} loss after epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(range=[0.5, max(len(curves), 1) + 0.5], tickformat="d", nticks=8)
    figure.update_yaxes(range=limits)
    if best_epoch is None and np.isfinite(validation).any():
        best_epoch = int(number[np.nanargmin(validation)])
    if best_epoch is not None:
        figure.add_vline(
            x=best_epoch,
            line={"color": GREY, "dash": "dot"},
            annotation={"text": f"best epoch {best_epoch}", "showarrow": False},
            annotation_position="top left" if best_epoch > len(curves) / 2 else "top right",
        )
    return describe(figure, _curves_in_words(title, train, validation, best_epoch))


def _curves_in_words(
    title: str,
    train: NDArray[np.float64],
    validation: NDArray[np.float64],
    best_epoch: int | None,
) -> str:
    if not len(train):
        return f"{title}: it has no epochs."
    return (
        f"{title}, over {len(train)} epochs: the training loss goes from "
        f"{train[0]:.4f} to {train[-1]:.4f}, the validation loss from {validation[0]:.4f} to "
        f"{validation[-1]:.4f}; best epoch {best_epoch}; the gap at the end is "
        f"{validation[-1] - train[-1]:.4f} nats."
    )


def generalization_gap(
    trials: pd.DataFrame, against: _Against = "weight_decay", *, winner: int | None = None
) -> go.Figure:
    """Draw every trial's generalization gap: validation minus training loss at its last epoch.

    Args:
        trials: One row a trial, as `results.load(run).trials`.
        against: The horizontal axis; `epochs_trained` counts a stopped trial's epochs too.
        winner: The best trial's number, to be marked.

    Returns:
        A figure over the gaps of two and more epochs, if there are such: after one epoch the
        training loss still holds the loss of the first mini-batches. What lies beyond is
        drawn at the edge.
    """
    gap = gaps(trials)
    trained = trials[np.isfinite(gap.to_numpy(dtype=float))]
    gap = gap.loc[trained.index]
    figure = new_figure(
        f"Generalization gap against {_TITLE[against]}",
        _AXIS[against],
        "validation minus training loss in nats",
    )
    x = trained[against].tolist()
    axis: dict[str, Any] = {}
    if against == "weight_decay":
        x, axis = axis_of(x)
    longer = gap[trained["epochs_trained"] > 1]
    limits = robust_range(longer if len(longer) else gap)
    add_trials(figure, trained, x, gap, winner=winner, limits=limits)
    margin = 0.04 * (limits[1] - limits[0])
    figure.update_xaxes(**axis)
    figure.update_yaxes(range=[limits[0] - margin, limits[1] + margin], zeroline=True)
    spread = ""
    if len(gap):
        low, middle, high = np.percentile(gap, [5, 50, 95])
        spread = (
            f" Half of the gaps are below {middle:.4f} nats, nine in ten between {low:.4f} and "
            f"{high:.4f}."
        )
    return describe(
        figure, f"Generalization gap of {len(gap)} trials against {_TITLE[against]}.{spread}"
    )
