"""What the command line says of test results, and that it says what is not known."""

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from tune_softmax.commands.study_tables import (
    confirmation_lines,
    confirmation_table,
    doses_table,
    effects_table,
    remedy_lines,
)
from tune_softmax.experiment.experiment import parse
from tune_softmax.run.folder import RunFolder
from tune_softmax.stats import overfitting, verdicts, winners
from tune_softmax.studies.confirm import Confirmation
from tune_softmax.studies.remedies import Remedies

NOISE = [0.001, -0.001, 0.0005, -0.0005]


def arms(changes):
    """Return arms of four seeds whose losses differ from the baseline's by given amounts."""
    rows = [
        {
            "remedy": remedy,
            "strength": strength,
            "strength_label": f"{strength:g}" if remedy != "baseline" else "",
            "seed": seed,
            "train_loss": 0.3,
            "validation_loss": 0.5 + change + noise,
            "test_loss": 0.5 + change + noise * (1 + strength),
            "test_accuracy": 0.9 - change,
            "gap": 0.2,
            "epochs": 10,
        }
        for (remedy, strength), change in changes.items()
        for seed, noise in enumerate(NOISE)
    ]
    return pd.DataFrame(rows)


def study(changes, notes=()):
    """Return a study that found such changes."""
    frame = arms({("baseline", 0.0): 0.0} | changes)
    sick = overfitting.Overfitting(4, 4, 8, 0.45, 0.5, 0.05, 0.04, 0.06, 0.001, 0.1, 0.95)
    text = "dataset: {name: digits}\nspace: {batch_size: 1, num_epochs: 50, learning_rate: 1}\n"
    experiment = parse(f"{text}remedies: {{}}\n", "small.yaml")
    effects = verdicts.effects(frame)
    return Remedies(RunFolder(Path("run")), experiment, frame, effects, sick, 1, tuple(notes))


def printed(table):
    """Return a table as text."""
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_each_verdict_has_its_sentence():
    """What is better, what is worse, and what makes no difference that matters, by name."""
    lines = remedy_lines(
        study({("weight_decay", 0.1): -0.2, ("l1", 0.2): 0.2, ("augmentation", 0.3): 0.0})
    )
    assert "Better: weight decay (L2)." in lines
    assert "Worse: L1." in lines
    assert "No difference that matters: augmentation." in lines


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (-0.4, "All combined is better than weight decay (L2), the best single remedy."),
        (-0.1, "All combined is worse than weight decay (L2), the best single remedy."),
        (
            -0.2,
            "All combined against weight decay (L2), the best single remedy: not settled.",
        ),
    ],
)
def test_the_combination_is_held_against_the_best_remedy(change, sentence):
    """Only intervals apart from each other tell the two apart."""
    lines = remedy_lines(study({("weight_decay", 0.1): -0.2, ("combined", 1.0): change}))
    assert sentence in lines


def test_what_has_no_interval_is_not_known():
    """A difference that is the same at every seed has none, and the reason is said."""
    frame = study({("weight_decay", 0.0): -0.2})
    assert any(
        line.startswith("Not known: weight decay (L2), the same at")
        for line in remedy_lines(frame)
    )
    assert "no interval" in printed(effects_table(frame))


def test_the_budget_and_the_notes_are_said():
    """How many strengths each had, and what was left out."""
    lines = remedy_lines(study({("l1", 0.2): 0.2}, notes=["more_data: all are used"]))
    assert any("Equal tuning budget: each remedy had 1 strengths" in line for line in lines)
    assert "Left out or failed: more_data: all are used." in lines


def test_the_tables_hold_every_arm():
    """A row for each strength; a row for each remedy's effect."""
    found = study({("l1", 0.1): 0.2, ("l1", 0.2): 0.1, ("more_data", 0.5): -0.1})
    doses = printed(doses_table(found.arms))
    assert doses.count("L1") == 2
    assert all(f"{0.5 + change:.4f}" in doses for change in (0.2, 0.1, -0.1))
    effects = printed(effects_table(found))
    assert "+0.1" in effects
    assert "-0.1" in effects


def confirmation(losses, winner):
    """Return a confirmation of trials whose mean test losses are given."""
    rows = [
        {"trial": trial, "seed": seed, "test_loss": loss + noise, "test_accuracy": 0.9 + noise}
        for trial, loss in losses.items()
        for seed, noise in enumerate(NOISE)
    ]
    replicates = pd.DataFrame(rows)
    seen = pd.DataFrame(
        {"trial": list(losses), "validation_loss": 0.4, "validation_accuracy": 0.92}
    )
    replicates["test_loss"] += replicates["trial"] * replicates["seed"] * 1e-4
    table = winners.winners(replicates, seen, 1000)
    return Confirmation(RunFolder(Path("run")), 5, (1, 2, 3, 4), replicates, table, winner, 1000)


def test_a_confirmation_says_who_may_be_the_best():
    """Those that cannot be told apart are named, the worse one is not; images count apart."""
    found = confirmation({3: 0.4, 5: 0.4, 8: 0.9}, 5)
    first, second, third, *_ = confirmation_lines(found)
    assert first.startswith("Between trials 3 and 5 there is no difference that matters")
    assert second.startswith("Winner: trial 5")
    assert "of 1,000 images" in third
    rows = printed(confirmation_table(found)).splitlines()
    assert "the test loss decides" in rows[0]
    verdicts_of = found.winners.set_index("trial")["verdict"]
    assert verdicts_of[8] == "worse"
    for row in rows[-3:]:
        trial = int(row.split()[0])
        assert f" {verdicts_of[trial]} " in row


def test_a_lone_winner_is_better_than_all_others():
    """One trial that none can be confused with is named alone."""
    found = confirmation({3: 0.4, 8: 0.9}, 3)
    assert confirmation_lines(found)[0].startswith("Trial 3 is better than every other by")


def test_without_a_winner_the_reason_is_said():
    """Where all diverged there is nothing to recommend."""
    found = confirmation({3: 0.4, 8: 0.9}, None)
    assert confirmation_lines(found) == [
        "No winner: every trial diverged at a seed when it was trained again."
    ]
