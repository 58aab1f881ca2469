"""Figures of test results: the confirmed trials, and the confusion matrix."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tune_softmax.report.figures.base import describe, new_figure, new_forest
from tune_softmax.report.measures import confusion_differences
from tune_softmax.report.theme import BLUE, COUNTS, DIFFERENCES, GREEN, GREY, PURPLE
from tune_softmax.stats.intervals import recall_differences
from tune_softmax.stats.wording import interval_text, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["confirmed", "confusion_difference", "confusion_matrix", "recall_difference"]

_RECALL_MARKERS = {
    "more": {"color": GREEN, "symbol": "circle"},
    "less": {"color": PURPLE, "symbol": "square"},
    "no difference seen": {"color": GREY, "symbol": "circle-open"},
}
_WINNER_MARKERS = {
    "may be the best": {"color": BLUE, "symbol": "circle"},
    "worse": {"color": GREY, "symbol": "circle-open"},
}
MAX_LABELLED = 20  # with more classes, numbers in the cells could not be read


def confirmed(winners: pd.DataFrame) -> go.Figure:
    """Draw the test results of the confirmed trials, by the metric that decides between them.

    Args:
        winners: As `stats.winners.winners` returns it: one row a trial, the best first.
    """
    metric = str(winners["metric"].iloc[0])
    short = metric.removeprefix("test_")
    rows = winners.assign(
        name=[f"trial {number}" for number in winners["trial"]],
        kind=np.where(winners["is_winner"], *_WINNER_MARKERS),
        value=winners[f"mean_{metric}"],
        low=winners[f"{short}_low"],
        high=winners[f"{short}_high"],
    )
    figure = new_forest(
        f"Confirmed {words(metric)}",
        f"{words(metric)}, mean and 95 % interval over seeds",
        rows,
        _WINNER_MARKERS,
    )
    parts = [
        f"trial {row['trial']} {row[f'mean_{metric}']:.4f} "
        f"({interval_text(row[f'{short}_low'], row[f'{short}_high'])}), {row['verdict']}"
        for row in winners.to_dict("records")
    ]
    return describe(figure, f"Confirmed {words(metric)}: {'; '.join(parts)}.")


def confusion_matrix(confusion: NDArray[np.int64], class_names: Sequence[str]) -> go.Figure:
    """Draw how often each class was predicted as each.

    Args:
        confusion: Counts, (C, C): rows are true classes, columns predicted ones.
        class_names: The C classes.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    figure = _matrix(
        "Confusion matrix",
        class_names,
        z=np.log1p(counts),
        customdata=counts,
        text=np.where(counts > 0, counts.astype(str), ""),
        colorscale=COUNTS,
        hovertemplate="true %{y}, predicted %{x}: %{customdata}<extra></extra>",
    )
    wrong = counts - np.diag(np.diag(counts))
    text = f"Confusion matrix of {len(class_names)} classes: {wrong.sum()} of {counts.sum()} wrong"
    if wrong.sum():
        true, predicted = divmod(int(wrong.argmax()), len(wrong))
        text += (
            f"; most often, {wrong.max()} times, {class_names[true]} is predicted as "
            f"{class_names[predicted]}"
        )
    return describe(figure, f"{text}.")


def confusion_difference(
    confusion: NDArray[np.int64], baseline: NDArray[np.int64], class_names: Sequence[str]
) -> go.Figure:
    """Draw how much more often than the baseline each class was predicted as each.

    A cell whose interval leaves out zero has its number in it; `measures.confusion_differences`
    says which intervals these are.

    Args:
        confusion: The winner's counts, (C, C): rows are true classes, columns predicted ones.
        baseline: The baseline's, of the same images.
        class_names: The C classes.
    """
    cells = confusion_differences(baseline, confusion)
    shape = (len(class_names), len(class_names))
    percent = 100 * cells[["difference", "low", "high"]].to_numpy().reshape(*shape, 3)
    texts = [
        f"{100 * row['difference']:+.1f}" if row["is_different"] else ""
        for row in cells.to_dict("records")
    ]
    limit = float(np.nanmax(np.abs(percent[..., 0]))) or 1.0
    figure = _matrix(
        "Confusion, best minus baseline",
        class_names,
        z=percent[..., 0],
        customdata=percent,
        text=np.array(texts).reshape(shape),
        colorscale=DIFFERENCES,
        zmin=-limit,
        zmax=limit,
        hovertemplate="true %{y}, predicted %{x}: %{customdata[0]:+.1f} % of the class "
        "(%{customdata[1]:+.1f} to %{customdata[2]:+.1f})<extra></extra>",
    )
    found = [
        f"{class_names[row['true']]} predicted as {class_names[row['predicted']]} "
        f"{100 * row['difference']:+.1f} %"
        for row in cells[cells["is_different"]].to_dict("records")
    ]
    text = "; ".join(found) or f"no difference was seen in any of {len(cells)} cells"
    return describe(figure, f"Confusion matrix, best minus baseline: {text}.")


def recall_difference(
    confusion: NDArray[np.int64], baseline: NDArray[np.int64], class_names: Sequence[str]
) -> go.Figure:
    """Draw how much more of each class the winner gets right than the baseline, with intervals.

    The arguments are those of `confusion_difference`.
    """
    rows = recall_differences(baseline, confusion).assign(name=_plain(class_names))
    percent = 100 * rows[["difference", "low", "high"]]
    kinds = np.where(rows["low"] > 0, "more", "no difference seen")
    figure = new_forest(
        "Recall of each class, best minus baseline",
        "difference of recall, in %",
        rows.assign(
            kind=np.where(rows["high"] < 0, "less", kinds),
            value=percent["difference"],
            low=percent["low"],
            high=percent["high"],
        ),
        _RECALL_MARKERS,
        form="+.1f",
        unit=" %",
    )
    figure.update_xaxes(zeroline=True, zerolinewidth=2)
    found = [
        f"{class_names[row['class']]} {100 * row['difference']:+.1f} %"
        for row in rows[rows["is_different"]].to_dict("records")
    ]
    text = "; ".join(found) or "no difference was seen in any class"
    return describe(figure, f"Recall of each class, best minus baseline: {text}.")


def _matrix(title: str, class_names: Sequence[str], **heatmap: object) -> go.Figure:
    height = 140 + 34 * min(len(class_names), MAX_LABELLED)
    figure = new_figure(title, "predicted class", "true class", height=height)
    figure.update_xaxes(showgrid=False, type="category", tickangle=-45)
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    names = _plain(class_names)
    figure.add_heatmap(
        x=names,
        y=names,
        texttemplate="%{text}" if len(names) <= MAX_LABELLED else None,
        showscale=False,
        xgap=1,
        ygap=1,
        **heatmap,
    )
    return figure


def _plain(class_names: Sequence[str]) -> list[str]:
    """Return names as Plotly's text shows them unchanged: it would read tags in them."""
    return [escape(name, quote=False) for name in class_names]
