"""Figures of a search: best value so far, regret, ASHA's rungs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tune_softmax.report.figures.base import describe, new_figure, range_of_the_better
from tune_softmax.report.theme import BLUE, GREEN, GREY, VERMILION

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["best_so_far", "regret", "rung_counts"]

_Over = Literal["trial", "seconds"]
_AXIS = {
    "trial": "trial number",
    "seconds": "training seconds, summed by trial",
}
_TITLE = {"trial": "over trials", "seconds": "over time"}


def best_so_far(
    history: pd.DataFrame, metric: str, over: _Over = "trial", *, optimum: float | None = None
) -> go.Figure:
    """Draw the best value of the complete trials so far.

    Args:
        history: As `measures.history` returns it.
        metric: `validation_loss` or `validation_accuracy`, which the values are of.
        over: The horizontal axis. Seconds are shares of the packs' wall clock; packs that
            trained side by side took less than their sum.
        optimum: The best value on the regularization path, to be marked.
    """
    words = metric.replace("_", " ")
    figure = new_figure(f"Best {words} {_TITLE[over]}", _AXIS[over], words)
    figure.add_scatter(
        x=history[over].to_numpy(),
        y=history["value"].to_numpy(),
        customdata=history["trial"].to_numpy(),
        mode="markers",
        name="a complete trial",
        marker={"color": GREY, "size": 4},
        hovertemplate="trial %{customdata}: %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=history[over].to_numpy(),
        y=history["best"].to_numpy(),
        mode="lines",
        name="the best so far",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )
    if optimum is not None:
        figure.add_hline(
            y=optimum,
            line={"color": GREEN, "dash": "dash"},
            annotation={"text": f"best on the path {optimum:.4f}", "showarrow": False},
        )
    mode = "min" if metric == "validation_loss" else "max"
    marks = [] if optimum is None else [optimum]
    figure.update_yaxes(range=range_of_the_better([*history["value"], *marks], mode))
    best = history["best"].dropna()
    if best.empty:
        return describe(figure, f"Best {words} {_TITLE[over]}: no trial is complete yet.")
    first = history.loc[(history["best"] == best.iloc[-1]).idxmax()]
    return describe(
        figure,
        f"Best {words} {_TITLE[over]}: {best.iloc[0]:.4f} after the first complete trial, "
        f"{best.iloc[-1]:.4f} at the end, reached by trial {int(first['trial'])} after "
        f"{first['seconds']:.1f} training seconds.",
    )


def regret(
    history: pd.DataFrame,
    optimum: float,
    mode: str = "min",
    over: _Over = "trial",
    *,
    name: str = "the final best",
) -> go.Figure:
    """Draw how far the best value so far is from a value that one would like to have had.

    Args:
        history: As `measures.history` returns it.
        optimum: That value: the best on the regularization path, or the search's own final best.
        mode: "min" or "max": which values are better; a regret below 0 is better than `optimum`.
        over: The horizontal axis, as in `best_so_far`.
        name: What `optimum` is.
    """
    left = (history["best"] - optimum) * (1 if mode == "min" else -1)
    figure = new_figure(f"Regret {_TITLE[over]}", _AXIS[over], f"distance from {name}")
    figure.add_scatter(
        x=history[over].to_numpy(),
        y=left.to_numpy(),
        mode="lines",
        line={"color": VERMILION, "width": 2, "shape": "hv"},
        hovertemplate="regret: %{y:.4f}<extra></extra>",
        showlegend=False,
    )
    known = left.dropna()
    low, high = min([*known, 0.0]), max([*known, 0.0])
    margin = 0.05 * (high - low) or 1.0
    figure.update_yaxes(range=[low - margin, high + margin], zeroline=True)
    if known.empty:
        return describe(figure, f"Regret {_TITLE[over]}: no trial is complete yet.")
    return describe(
        figure,
        f"Regret {_TITLE[over]}, the distance of the best value so far from {name}, "
        f"{optimum:.4f}: {known.iloc[0]:.4f} after the first complete trial, "
        f"{known.iloc[-1]:.4f} at the end.",
    )


def rung_counts(rungs: pd.DataFrame) -> go.Figure:
    """Draw what became of the trials that entered each of ASHA's rungs.

    Args:
        rungs: As `measures.rungs` returns it.
    """
    figure = new_figure("Trials at each rung of ASHA", "rung (epochs)", "trials", height=300)
    names = [f"epoch {rung}" for rung in rungs["rung"]]
    for column, name, color, pattern in (
        ("went_on", "went on", BLUE, ""),
        ("ended", "ended here, done or failed", GREEN, "."),
        ("stopped", "stopped by ASHA", GREY, "/"),
    ):
        figure.add_bar(
            x=names,
            y=rungs[column].to_numpy(),
            name=name,
            marker={"color": color, "pattern": {"shape": pattern}},
            hovertemplate=f"%{{y}} {name}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.5)
    figure.update_xaxes(type="category")
    parts = [
        f"at epoch {row['rung']} {row['entered']} trials entered and {row['stopped']} were stopped"
        for row in rungs.to_dict("records")
    ]
    return describe(figure, f"ASHA's rungs: {'; '.join(parts) or 'none was reached'}.")
