"""Tables and sentences about test results: a study of remedies, a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_softmax.commands.tables import Column, Table
from tune_softmax.errors import command
from tune_softmax.stats.margins import Verdict
from tune_softmax.stats.winners import winner_sentence
from tune_softmax.stats.wording import and_list, count, interval_text, words

if TYPE_CHECKING:
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
    accuracy = found.arms.groupby(["remedy", "strength"])["test_accuracy"].mean()
    rows = found.effects.to_dict("records")
    return Table(
        "Test loss: remedy minus baseline, each remedy at the strength that validation chose",
        [
            Column("remedy", [_remedy(row["remedy"]) for row in rows], is_text=True),
            Column("strength", [str(row["strength_label"]) for row in rows], is_text=True),
            Column("verdict", [str(row["verdict"]) for row in rows], is_text=True),
            Column("baseline", [f"{row['baseline_mean']:.4f}" for row in rows]),
            Column("with remedy", [f"{row['remedy_mean']:.4f}" for row in rows]),
            Column("difference", [f"{row['difference']:+.4f}" for row in rows]),
            Column(
                "95 % interval", [interval_text(row["low"], row["high"], "+.4f") for row in rows]
            ),
            Column(
                "test accuracy",
                [f"{accuracy[row['remedy'], row['strength']]:.4f}" for row in rows],
            ),
        ],
    )


def doses_table(arms: pd.DataFrame) -> Table:
    """Return the means over seeds of all that was trained, strength by strength.

    Args:
        arms: As `Remedies.arms`.
    """
    names = ["train_loss", "validation_loss", "test_loss", "test_accuracy", "gap", "epochs"]
    means = arms.groupby(["remedy", "strength", "strength_label"], sort=False)[names].mean()
    rows = means.reset_index()
    return Table(
        "Means over seeds",
        [
            Column("remedy", [_remedy(name) for name in rows["remedy"]], is_text=True),
            Column("strength", list(map(str, rows["strength_label"])), is_text=True),
            *(
                Column(
                    words(name).replace("train ", "training "),
                    [f"{value:{'.1f' if name == 'epochs' else '.4f'}}" for value in rows[name]],
                )
                for name in names
            ),
        ],
    )


def remedy_lines(found: Remedies) -> list[str]:
    """Return what a study has shown and what it has not, in sentences."""
    effects, arms = found.effects, found.arms
    num_seeds = arms["seed"].nunique()
    lines = []
    for verdict, begin in (
        (Verdict.BETTER, "Better"),
        (Verdict.WORSE, "Worse"),
        (Verdict.NO_DIFFERENCE, "No difference that matters"),
        (Verdict.UNSETTLED, "Not settled"),
    ):
        names = effects.loc[effects["verdict"] == verdict, "remedy"]
        if len(names):
            lines.append(f"{begin}: {and_list(list(map(_remedy, names)))}.")
    lines += [
        f"Not known: {_remedy(row['remedy'])}, {row['reason']}."
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
            "comparisons with the baseline; differences up to "
            f"{effects['margin'].iloc[0]:.4f} nats do not matter."
        ),
    ]
    lines += [f"Left out or failed: {note}." for note in found.notes]
    return lines


def _combined_against_single(effects: pd.DataFrame) -> list[str]:
    """Compare the combination's interval with that of the best single remedy."""
    rows = effects.set_index("remedy")
    if "combined" not in rows.index or len(rows) == 1:
        return []
    combined = rows.loc["combined"]
    single = rows.drop("combined").sort_values("difference").iloc[0]
    name = _remedy(str(single.name))
    if combined["high"] < single["low"]:
        return [f"All combined is better than {name}, the best single remedy."]
    if single["high"] < combined["low"]:
        return [f"All combined is worse than {name}, the best single remedy."]
    return [f"All combined against {name}, the best single remedy: not settled."]


def confirmation_table(found: Confirmation) -> Table:
    """Return how the confirmed trials do on the test set."""
    rows = found.winners.to_dict("records")
    metric = words(found.winners["metric"].iloc[0])
    return Table(
        f"Test set, {count(len(found.seeds), 'seed')} each, trained on training and validation "
        f"images; the {metric} decides",
        [
            Column("trial", [str(row["trial"]) for row in rows]),
            Column("verdict", [str(row["verdict"]) for row in rows], is_text=True),
            Column("loss", [f"{row['mean_test_loss']:.4f}" for row in rows]),
            Column(
                "95 % over seeds",
                [interval_text(row["loss_low"], row["loss_high"], ".4f") for row in rows],
            ),
            Column("accuracy", [f"{row['mean_test_accuracy']:.4f}" for row in rows]),
            Column(
                "95 % over seeds",
                [interval_text(row["accuracy_low"], row["accuracy_high"], ".4f") for row in rows],
            ),
            Column("validation accuracy", [f"{row['validation_accuracy']:.4f}" for row in rows]),
            Column("drop", [f"{row['accuracy_drop']:+.4f}" for row in rows]),
        ],
    )


def confirmation_lines(found: Confirmation) -> list[str]:
    """Return what a confirmation has shown and what it has not, in sentences."""
    winners = found.winners
    if found.winner is None:
        return ["No winner: every trial diverged at a seed when it was trained again."]
    row = winners.set_index("trial").loc[found.winner]
    reach = row["binomial_half_width"]
    return [
        winner_sentence(winners),
        (
            f"Winner: trial {found.winner}, of those that no other is shown to beat the best by "
            "the search's validation; the truly best is among them with 95 % confidence."
        ),
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
        f"a picture    {command('predict', found.folder.path, 'PICTURE.png')}",
        f"report       {command('report', found.folder.path)}",
    ]


def _remedy(name: object) -> str:
    return {"weight_decay": "weight decay (L2)"}.get(str(name), words(name))
