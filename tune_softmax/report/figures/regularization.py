"""Figures of regularization: the convex path with trials, remedies and their strengths."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tune_softmax.report.figures.base import (
    add_trials,
    axis_of,
    describe,
    new_figure,
    new_forest,
    robust_range,
)
from tune_softmax.report.measures import comparable, completed
from tune_softmax.report.theme import BLUE, GREEN, GREY, PURPLE, SHADE, VERMILION
from tune_softmax.stats.wording import words

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["dose_response", "regularization_path", "remedy_effects"]

_VERDICTS = {  # marks differ in shape too, not in colour alone
    "better": {"color": GREEN, "symbol": "circle"},
    "worse": {"color": PURPLE, "symbol": "square"},
    "no difference that matters": {"color": GREY, "symbol": "circle-open"},
    "not settled": {"color": GREY, "symbol": "diamond-open"},
}


def regularization_path(
    path: pd.DataFrame, trials: pd.DataFrame | None = None, *, winner: int | None = None
) -> go.Figure:
    """Draw the losses of the convex optimum against weight decay, and the trials with them.

    Args:
        path: One row a weight decay: `weight_decay`, `train_loss`, `validation_loss` at the
            optimum.
        trials: One row a trial; the complete ones without L1 and hidden layer are drawn, at
            their weight decay and validation loss.
        winner: The best trial's number, to be marked.
    """
    figure = new_figure(
        "Regularization path", "weight decay λ", "mean cross-entropy in nats", height=420
    )
    path = path.sort_values("weight_decay")
    shown = None if trials is None else completed(comparable(trials))
    decays = [*path["weight_decay"], *([] if shown is None else shown["weight_decay"])]
    x, axis = axis_of(decays)
    along = x[: len(path)]
    for split, color in (("train", BLUE), ("validation", VERMILION)):
        figure.add_scatter(
            x=along,
            y=path[f"{split}_loss"].to_numpy(),
            mode="lines+markers",
            name=f"optimum, {split.replace('train', 'training')} loss",
            line={"color": color, "width": 2},
            marker={"size": 4},
            fill="tonexty" if split == "validation" else None,
            fillcolor=SHADE,
            hovertemplate=f"optimum at λ = %{{x:.3g}}: {split} loss %{{y:.4f}}<extra></extra>",
        )
    values = [*path["train_loss"], *path["validation_loss"]]
    if shown is not None:
        loss = shown["last_validation_loss"]
        values += list(loss[loss <= max(loss.quantile(0.8), path["validation_loss"].max())])
    limits = robust_range(values)
    if shown is not None:
        place = x[len(path) :]
        add_trials(
            figure, shown, place, shown["last_validation_loss"], winner=winner, limits=limits
        )
    margin = 0.04 * (limits[1] - limits[0])
    figure.update_xaxes(**axis)
    figure.update_yaxes(range=[limits[0] - margin, limits[1] + margin])
    best = path.sort_values("validation_loss").iloc[0]
    text = (
        f"Regularization path of {len(path)} weight decays: the lowest validation loss is "
        f"{best['validation_loss']:.4f}, at weight decay {best['weight_decay']:.3g}."
    )
    if shown is not None and len(shown):
        least = shown["last_validation_loss"].min()
        text += f" The lowest loss of {len(shown)} complete trials is {least:.4f}."
    return describe(figure, text)


def remedy_effects(effects: pd.DataFrame) -> go.Figure:
    """Draw what each remedy changes, with intervals: a forest plot.

    Args:
        effects: As `verdicts.effects` returns it, one row a remedy.
    """
    metric = str(effects["metric"].iloc[0]).replace("_", " ")
    names = [
        _remedy_name(row["remedy"], row["strength_label"]) for row in effects.to_dict("records")
    ]
    figure = new_forest(
        f"{metric.capitalize()}, remedy minus baseline",
        f"difference of the {metric}",
        effects.assign(name=names, kind=effects["verdict"], value=effects["difference"]),
        _VERDICTS,
        row_height=38,
    )
    figure.update_xaxes(zeroline=True, zerolinewidth=2)
    parts = [
        f"{words(row['remedy'])} {row['difference']:+.4f} ({row['low']:+.4f} to "
        f"{row['high']:+.4f}), {row['verdict']}"
        for row in effects.to_dict("records")
    ]
    return describe(figure, f"Difference of the {metric} to the baseline's: {'; '.join(parts)}.")


def _remedy_name(remedy: str, label: str) -> str:
    """Return a remedy with its strength, in the little HTML that Plotly's text knows."""
    name = escape(words(remedy), quote=False)
    return f"{name}<br>{escape(str(label), quote=False)}" if label else name


def dose_response(arms: pd.DataFrame, remedy: str) -> go.Figure:
    """Draw training and validation loss against the strength of one remedy.

    Args:
        arms: One row a remedy, strength and seed: `remedy`, `strength`, `seed`, `train_loss`,
            `validation_loss`; the remedy `baseline` gives a line to hold the others against.
        remedy: Which one.
    """
    doses = arms[arms["remedy"] == remedy].sort_values("strength")
    name = words(remedy)
    figure = new_figure(
        f"Losses against the strength: {name}",
        "strength",
        "mean cross-entropy in nats",
        height=300,
    )
    x, axis = axis_of(doses["strength"])
    doses = doses.assign(place=x)
    for split, color, symbol in (("train", BLUE, "circle"), ("validation", VERMILION, "square")):
        column = f"{split}_loss"
        mean = doses.groupby("place")[column].mean()
        shown = split.replace("train", "training")
        figure.add_scatter(
            x=mean.index.to_numpy(),
            y=mean.to_numpy(),
            mode="lines+markers",
            name=f"{shown}, mean over seeds",
            line={"color": color, "width": 2},
            marker={"symbol": symbol, "size": 6},
            hovertemplate=f"{shown} %{{y:.4f}}<extra></extra>",
        )
        figure.add_scatter(
            x=doses["place"].to_numpy(),
            y=doses[column].to_numpy(),
            mode="markers",
            marker={"color": color, "size": 3, "opacity": 0.6},
            showlegend=False,
            hoverinfo="skip",
        )
    means = doses.groupby("strength")["validation_loss"].mean()
    text = f"Validation loss against the strength of {name}, means over seeds: " + "; ".join(
        f"{strength:.4g}: {loss:.4f}" for strength, loss in means.items()
    )
    base = arms.loc[arms["remedy"] == "baseline", "validation_loss"].mean()
    if np.isfinite(base):
        figure.add_hline(
            y=base,
            line={"color": GREY, "dash": "dash"},
            annotation={"text": f"baseline {base:.4f}", "showarrow": False},
        )
        text += f"; baseline {base:.4f}"
    figure.update_xaxes(**axis)
    return describe(figure, f"{text}.")
