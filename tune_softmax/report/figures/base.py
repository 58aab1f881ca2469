"""What all figures share: an empty figure in the report's style, axes, marks for trials."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from tune_softmax.metrics import State
from tune_softmax.report.theme import BLUE, GREEN, GREY, PURPLE, VERMILION, template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = [
    "add_trials",
    "axis_of",
    "describe",
    "new_figure",
    "new_forest",
    "range_of_the_better",
    "robust_range",
    "spec_of",
]

HEIGHT = 340  # pixels
_STATES: Mapping[State, dict[str, Any]] = {
    State.PRUNED: {"color": GREY, "symbol": "circle-open", "size": 5},
    State.COMPLETE: {"color": BLUE, "symbol": "circle", "size": 6},
    State.FAIL: {"color": PURPLE, "symbol": "x", "size": 6},
}
_NAMES = {State.PRUNED: "stopped early", State.COMPLETE: "complete", State.FAIL: "failed"}


def new_figure(title: str, x_title: str, y_title: str, *, height: int = HEIGHT) -> go.Figure:
    """Return an empty figure.

    Args:
        title: What it shows.
        x_title: The horizontal axis, with its unit.
        y_title: The vertical axis, with its unit.
        height: Pixels.
    """
    return go.Figure(
        layout={
            "template": template("light"),
            "title": {"text": title},
            "height": height,
            "xaxis": {"title": {"text": x_title}},
            "yaxis": {"title": {"text": y_title}},
        }
    )


def new_forest(
    title: str,
    x_title: str,
    rows: pd.DataFrame,
    markers: Mapping[str, Mapping[str, Any]],
    *,
    form: str = ".4f",
    unit: str = "",
    row_height: int = 30,
) -> go.Figure:
    """Return a forest plot: a mark with its interval for each row, the first row at the top.

    Args:
        title: What it shows.
        x_title: The horizontal axis, with its unit.
        rows: `name`, `kind`, `value`, `low`, `high`.
        markers: Plotly's marker of each kind, in the legend's order.
        form: How numbers are written where the pointer rests on a mark, a format specification.
        unit: What follows such a number.
        row_height: Pixels.
    """
    figure = new_figure(title, x_title, "", height=120 + row_height * len(rows))
    for kind, marker in markers.items():
        part = rows[rows["kind"] == kind]
        if part.empty:
            continue
        figure.add_scatter(
            x=part["value"].to_numpy(),
            y=part["name"].tolist(),
            mode="markers",
            name=kind,
            marker={**marker, "size": 9},
            error_x={
                "array": (part["high"] - part["value"]).to_numpy(),
                "arrayminus": (part["value"] - part["low"]).to_numpy(),
                "color": marker["color"],
            },
            customdata=part[["low", "high"]].to_numpy(),
            hovertemplate=f"%{{y}}: %{{x:{form}}}{unit} (%{{customdata[0]:{form}}} to "
            f"%{{customdata[1]:{form}}}{unit})<extra></extra>",
        )
    names = rows["name"].tolist()[::-1]  # Plotly counts from below
    figure.update_yaxes(categoryorder="array", categoryarray=names, showgrid=False)
    return figure


def describe(figure: go.Figure, text: str) -> go.Figure:
    """Give a figure its text for readers who cannot see it, and return it."""
    figure.update_layout(meta={"description": text})
    return figure


def spec_of(figure: go.Figure) -> dict[str, Any]:
    """Return a figure's `data` and `layout` as plain values, with arrays as they are.

    Plotly's own way encodes arrays as base64 of float64, which is longer than their digits.
    """
    return {
        "data": [trace.to_plotly_json() for trace in figure.data],
        "layout": figure.layout.to_plotly_json(),
    }


def axis_of(values: Sequence[float] | pd.Series[Any]) -> tuple[list[float], dict[str, Any]]:
    """Return the positions of values on an axis that suits them, and that axis.

    Values over a factor of 5 and more get a logarithmic axis. It has no zero, so that zeros
    stand a decade below the least positive value, at a tick that says 0.

    Args:
        values: Finite, at least 0.
    """
    given = [float(value) for value in values]
    positive = [value for value in given if value > 0]
    if not positive or max(positive) < 5 * min(positive):
        return given, {}
    if len(positive) == len(given):
        return given, {"type": "log", "exponentformat": "power", "dtick": 1}
    floor = 10.0 ** math.floor(math.log10(min(positive)) - 1)
    decades = range(round(math.log10(floor)) + 1, math.ceil(math.log10(max(positive))) + 1)
    ticks = {
        "tickvals": [floor, *(10.0**decade for decade in decades)],
        "ticktext": ["0", *(f"10<sup>{decade}</sup>" for decade in decades)],
    }
    return [value or floor for value in given], {"type": "log", **ticks}


def robust_range(values: Sequence[float] | pd.Series[Any]) -> list[float]:
    """Return limits for an axis that ignore far outliers.

    What is further than three times the distance between the 5th and the 95th percentile from
    either of them lies outside.

    Args:
        values: Any; what is not finite is left out.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return [0.0, 1.0]
    low, high = np.percentile(finite, [5, 95])
    reach = 3 * (high - low)
    inside = finite[(finite >= low - reach) & (finite <= high + reach)]
    bottom, top = float(inside.min()), float(inside.max())
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    return [bottom - margin, top + margin]


def range_of_the_better(values: Sequence[float], mode: str) -> list[float]:
    """Return limits for an axis from the best of the values to where nine in ten are.

    Args:
        values: Any; what is not finite is left out.
        mode: "min" or "max": which values are better.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return [0.0, 1.0]
    shares = [0, 90] if mode == "min" else [10, 100]
    low, high = np.percentile(finite, shares)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return [float(low - margin), float(high + margin)]


def add_trials(
    figure: go.Figure,
    trials: pd.DataFrame,
    x: Sequence[float],
    y: pd.Series[float],
    *,
    winner: int | None = None,
    limits: Sequence[float] = (-math.inf, math.inf),
) -> None:
    """Draw one mark a trial, by its state, and the winner's on top.

    Args:
        figure: Where to draw.
        trials: One row a trial, with `number` and `state`.
        x: Where each trial stands.
        y: Where each trial stands; what is not finite is left out.
        winner: The best trial's number.
        limits: Of the vertical axis; what lies beyond is drawn as a triangle at its edge.
    """
    across, up = np.asarray(x, dtype=float), y.to_numpy(dtype=float)
    number, state = trials["number"].to_numpy(), trials["state"].to_numpy()
    seen = np.isfinite(across) & np.isfinite(up)
    inside = seen & (up >= limits[0]) & (up <= limits[1])
    groups = [(_NAMES[s], marker, inside & (state == s)) for s, marker in _STATES.items()]
    unfinished = {"color": GREEN, "symbol": "circle-open", "size": 6}
    groups.append(("unfinished", unfinished, inside & ~np.isin(state, list(_STATES))))
    beyond = seen & ~inside
    symbols = np.where(up[beyond] < limits[0], "triangle-down", "triangle-up")
    groups.append(("beyond", {"color": GREY, "symbol": symbols, "size": 6}, beyond))
    best = {"color": VERMILION, "symbol": "diamond", "size": 12, "line": {"width": 1}}
    groups.append(("best", best, seen & (number == winner)))
    for name, marker, rows in groups:
        if rows.any():
            figure.add_scatter(
                x=across[rows],
                y=np.clip(up[rows], limits[0], limits[1]),
                customdata=np.stack([number[rows], up[rows]], axis=-1),
                mode="markers",
                name=name,
                marker=marker,
                hovertemplate="trial %{customdata[0]}: %{x:.4g}, %{customdata[1]:.4f}"
                "<extra></extra>",
            )
