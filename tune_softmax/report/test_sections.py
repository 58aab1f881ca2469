"""Sections about the test set: confirmed trials, remedies, the confusion matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tune_softmax.report import figures
from tune_softmax.report.parts import (
    Command,
    Drawing,
    Drawings,
    Images,
    Paragraph,
    Part,
    Table,
)
from tune_softmax.stats.winners import winner_sentence
from tune_softmax.stats.wording import interval_text, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tune_softmax.report.evaluation import WinnerEvaluation
    from tune_softmax.report.inputs import Inputs
    from tune_softmax.studies.confirm import Confirmation

__all__ = ["confirmed", "confusion", "remedies"]


def confirmed(confirmation: Confirmation) -> Iterator[Part]:
    """Yield what the confirmation over seeds says of the winners."""
    winners = confirmation.winners
    metric, margin = str(winners["metric"].iloc[0]), float(winners["margin"].iloc[0])
    caption = (
        f"The {words(metric)} decides. Intervals are of each trial alone; two trials are compared "
        "by their differences at the same seeds, which vary less than either of them. Differences "
        f"up to {margin:.4f} do not matter."
    )
    yield Drawings([Drawing(figures.confirmed(winners), caption, wide=True)])
    rows = [
        (
            f"trial {row['trial']}",
            f"{row['num_seeds']}",
            str(row["verdict"]),
            f"{row['mean_test_loss']:.4f}",
            interval_text(row["loss_low"], row["loss_high"], ".4f"),
            f"{row['mean_test_accuracy']:.4f}",
            interval_text(row["accuracy_low"], row["accuracy_high"], ".4f"),
        )
        for row in winners.to_dict("records")
    ]
    header = ("", "seeds", "verdict", "test loss", "interval", "test accuracy", "interval")
    yield Table("Confirmed on the test set", header, rows)
    yield Paragraph(winner_sentence(winners))


def remedies(inputs: Inputs) -> list[Part]:
    """Return what each remedy does, and at which strengths."""
    assert inputs.remedies is not None, "the caller has checked"
    arms, effects = inputs.remedies.arms, inputs.remedies.effects
    caption = (
        "Each remedy at the strength that the validation loss chose. Lines are intervals over "
        "seeds that hold for all remedies together. Differences up to "
        f"{effects['margin'].iloc[0]:.4f} do not matter."
    )
    forest = Drawing(figures.remedy_effects(effects), caption, wide=True)
    doses = arms.groupby("remedy")["strength"].nunique()
    curves = [
        Drawing(figures.dose_response(arms, name))
        for name in dict.fromkeys(arms["remedy"])
        if doses[name] > 1 and name != "baseline"
    ]
    rows = [
        (
            words(row["remedy"]),
            str(row["strength_label"]),
            f"{row['difference']:+.4f}",
            interval_text(row["low"], row["high"], "+.4f"),
            "" if math.isnan(row["p_value"]) else f"{row['p_value']:.3g}",
            str(row["verdict"]),
        )
        for row in effects.to_dict("records")
    ]
    header = ("", "strength", "difference", "interval", "p", "verdict")
    table = Table("Remedy minus baseline", header, rows)
    return [Drawings([forest]), table, Drawings(curves)]


def confusion(inputs: Inputs) -> list[Part]:
    """Return the winner's confusion matrix, or how to get it."""
    found = inputs.evaluation
    if found is None:
        text = inputs.stale or "No winner has been evaluated on the test images yet. To do that:"
        return [Command(text, inputs.command("confirm"))]
    parts: list[Part] = [
        Paragraph(
            f"On the {int(found.confusion.sum()):,} test images the winner has loss "
            f"{found.loss:.4f} and accuracy {found.accuracy:.4f}."
        ),
        Drawings(list(_matrices(found))),
    ]
    if found.wrong:
        parts.append(Images(found.wrong))
    return parts


def _matrices(found: WinnerEvaluation) -> Iterator[Drawing]:
    names = found.class_names
    matrix = figures.confusion_matrix(found.confusion, names)
    yield Drawing(matrix, "Numbers of test images; darker is more.", least_width=31)
    if found.baseline_confusion is None:
        return
    pair = (found.confusion, found.baseline_confusion, names)
    yield Drawing(
        figures.confusion_difference(*pair),
        "Per cent of the true class, winner minus baseline. Cells with a number differ: their "
        "interval, at 95 % for all cells together, excludes zero. In the others no difference was "
        "seen.",
        least_width=31,
    )
    yield Drawing(
        figures.recall_difference(*pair),
        "Lines are 95 % intervals for all classes together.",
        wide=True,
    )
