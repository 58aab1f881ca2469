"""What the command line prints of test results: a study of remedies, and a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tune_softmax.stats.verdicts import Verdict
from tune_softmax.stats.wording import and_list, interval_text
from tune_softmax.studies.remedy_plan import BASELINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tune_softmax.studies.confirm import Confirmation
    from tune_softmax.studies.remedies import Remedies

__all__ = [
    "confirmation_lines",
    "confirmation_table",
    "doses_table",
    "effects_table",
    "remedy_lines",
]


def effects_table(found: Remedies) -> Table:
    """Return what each remedy, at its chosen strength, changes of the test loss."""
    table = _table(
        "test loss, remedy minus baseline, each at the strength that validation chose",
        ["remedy", "strength", "verdict"],
        ["baseline", "remedy", "difference", "95 % interval", "accuracy"],
    )
    accuracy = found.arms.groupby(["remedy", "strength"])["test_accuracy"].mean()
    for row in found.effects.to_dict("records"):
        table.add_row(
            _words(row["remedy"]),
            str(row["strength_label"]),
            str(row["verdict"]),
            f"{row['baseline_mean']:.4f}",
            f"{row['remedy_mean']:.4f}",
            f"{row['difference']:+.4f}",
            interval_text(row["low"], row["high"], "+.4f"),
            f"{accuracy[row['remedy'], row['strength']]:.4f}",
        )
    return table


def doses_table(arms: pd.DataFrame) -> Table:
    """Return the means over seeds of all that was trained, strength by strength.

    Args:
        arms: As `Remedies.arms`.
    """
    columns = ["train_loss", "validation_loss", "test_loss", "test_accuracy", "gap", "epochs"]
    table = _table("means over seeds", ["remedy", "strength"], [c.split("_")[0] for c in columns])
    for column, name in zip(table.columns[2:], columns, strict=True):
        column.header = name.replace("_", "\n")
    means = arms.groupby(["remedy", "strength", "strength_label"], sort=False)[columns].mean()
    shown = ""
    for row in means.reset_index().to_dict("records"):
        name = _words(row["remedy"])
        cells = [f"{row[c]:.1f}" if c == "epochs" else f"{row[c]:.4f}" for c in columns]
        table.add_row("" if name == shown else name, str(row["strength_label"]), *cells)
        shown = name
    return table


def remedy_lines(found: Remedies) -> list[str]:
    """Return what is known after a study, and what is not, in plain sentences."""
    effects, arms = found.effects, found.arms
    num_seeds = arms["seed"].nunique()
    lines = []
    for verdict, begin in (
        (Verdict.HELPS, "Helps"),
        (Verdict.HURTS, "Hurts"),
        (Verdict.UNCLEAR, "No difference seen"),
    ):
        names = effects.loc[effects["verdict"] == verdict, "remedy"]
        if len(names):
            lines.append(f"{begin}: {', '.join(map(_words, names))}.")
    lines += [
        f"Not known: {_words(row['remedy'])}, {row['reason']}."
        for row in effects[effects["reason"] != ""].to_dict("records")
    ]
    lines += _combined_against_single(effects)
    lines += [
        (
            f"Equal tuning budget: each remedy had {found.num_strengths} strengths to choose from "
            f"by the mean validation loss over {num_seeds} seeds; the test set chose nothing."
        ),
        (
            f"The intervals hold together, at 95 % for all {effects['num_comparisons'].iloc[0]} "
            "comparisons with the baseline."
        ),
    ]
    lines += [f"Left out or failed: {note}." for note in found.notes]
    return lines


def _combined_against_single(effects: pd.DataFrame) -> list[str]:
    """Say whether the combination's interval overlaps the best single remedy's."""
    rows = effects.set_index("remedy")
    if "combined" not in rows.index or len(rows) == 1:
        return []
    combined = rows.loc["combined"]
    single = rows.drop("combined").sort_values("difference").iloc[0]
    name = _words(str(single.name))
    if combined["high"] < single["low"]:
        return [f"All combined is better than {name}, the best single remedy."]
    if single["high"] < combined["low"]:
        return [f"All combined is worse than {name}, the best single remedy."]
    return [f"All combined against {name}, the best single remedy: no difference seen."]


def confirmation_table(found: Confirmation) -> Table:
    """Return how the confirmed trials do on the test set."""
    table = _table(
        f"test set, {len(found.seeds)} seeds each, trained on training and validation images",
        ["shown to be worse"],
        ["accuracy", "95 % over seeds", "loss", "95 % over seeds", "validation", "drop"],
        first="trial",
    )
    for row in found.winners.to_dict("records"):
        table.add_row(
            str(row["trial"]),
            "no" if row["is_winner"] else "yes",
            f"{row['mean_test_accuracy']:.4f}",
            interval_text(row["accuracy_low"], row["accuracy_high"], ".4f"),
            f"{row['mean_test_loss']:.4f}",
            interval_text(row["loss_low"], row["loss_high"], ".4f"),
            f"{row['validation_accuracy']:.4f}",
            f"{row['accuracy_drop']:+.4f}",
        )
    return table


def confirmation_lines(found: Confirmation) -> list[str]:
    """Return what a confirmation says, and what it does not, in plain sentences."""
    winners = found.winners
    names = winners.loc[winners["is_winner"], "trial"].tolist()
    if found.winner is None:
        return ["No winner: every trial diverged at a seed when it was trained again."]
    if len(names) > 1:
        told = f"Trials {and_list(names)} cannot be told apart by these seeds"
    else:
        told = f"Trial {names[0]} is better than all others"
    row = winners.set_index("trial").loc[found.winner]
    reach = row["binomial_half_width"]
    return [
        f"{told}; the best is among them with 95 % confidence.",
        f"Winner: trial {found.winner}, of them the best by the search's validation.",
        (
            f"Its test accuracy {row['mean_test_accuracy']:.4f} is of {found.num_test_images:,} "
            f"images: others would change it by about {reach:.4f} or less, at 95 %; the intervals "
            "above are over seeds alone."
        ),
        (
            f"Validation minus test accuracy is {row['accuracy_drop']:+.4f}: what being chosen "
            "flattered, less what more training images gave, and the chance between two sets."
        ),
        "",
        f"model        {found.folder.best.path}, trained under seed {found.seeds[0]}",
        f"a picture    tune-softmax predict {found.folder.path} PICTURE.png",
        f"report       tune-softmax report {found.folder.path}",
    ]


def _table(
    title: str, words: Sequence[str], numbers: Sequence[str], *, first: str | None = None
) -> Table:
    # As text, for brackets are no markup.
    table = Table(title=Text(title), title_justify="left", header_style="bold", box=None)
    if first is not None:
        table.add_column(first, justify="right")
    for name in words:
        table.add_column(name, justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _words(remedy: str) -> str:
    return {"l1": "L1", "weight_decay": "weight decay (L2)", BASELINE: BASELINE}.get(
        remedy, str(remedy).replace("_", " ")
    )
