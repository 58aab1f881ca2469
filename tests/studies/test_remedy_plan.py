"""The trials of a study of remedies: what each is for, and how the combination follows."""

import math

import numpy as np
import pandas as pd
import pytest

from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import State
from tune_softmax.run.arms import BASELINE, COMBINED
from tune_softmax.run.records import TrialRecord
from tune_softmax.stats.verdicts import effects
from tune_softmax.studies.remedy_plan import RemedyPlan

EXPERIMENT = """name: small
dataset: {name: digits, train_fraction: 0.1}
space: {batch_size: 16, num_epochs: 4, learning_rate: 0.1, hidden_units: 8}
search: {seed: 7}
remedies:
  seeds: 2
  early_stopping: [1, 2]
  weight_decay: [1e-3, 1e-2]
  l1: [1e-4, 1e-3]
  augmentation: [0.5, 1]
  smaller_model: [4, 0]
  more_data: [0.5, 1]
  less_data: [0.05]
"""
# Validation losses: the baseline's is 1; L1 and augmentation hurt.
LOSSES = {
    BASELINE: 1.0,
    "early_stopping": 0.9,
    "weight_decay": 0.8,
    "l1": 1.1,
    "augmentation": 1.2,
    "smaller_model": 0.95,
    "more_data": 0.5,
    "less_data": 0.1,
    COMBINED: 0.4,
}


def plan(text=EXPERIMENT):
    """Return the plan of an experiment."""
    return RemedyPlan(parse(text, "small.yaml"))


def loss(arm):
    """Return an arm's last validation loss; of a remedy's strengths the larger is the better."""
    return LOSSES[arm.remedy] - 1e-3 * arm.strength


def curve_of(arm, losses=loss):
    """Return an arm's validation losses; the baseline's are lowest after the first epoch.

    A patience of one stops at a first, worse minimum.
    """
    if arm.remedy == BASELINE:
        return [LOSSES["early_stopping"] + 0.05, 1.1, LOSSES["early_stopping"], losses(arm)]
    if arm.remedy == "early_stopping":
        return [LOSSES["early_stopping"] + 0.05, 1.1, LOSSES["early_stopping"]][: 2 * arm.patience]
    return [2.0, losses(arm)]


def run(made, numbers=None, losses=loss):
    """Tell a plan of its trials in an order, its single ones by default."""
    for number in range(len(made.arm_trials.trials)) if numbers is None else numbers:
        arm, _ = made.arm_trials.trials[number]
        made.tell(number, State.COMPLETE, curve_of(arm, losses))


def test_every_arm_has_every_seed():
    """The baseline and each strength are trained with search.seed and the seeds after it."""
    made = plan()
    assert made.arm_trials.seeds == [7, 8]
    assert len(made.arm_trials.arms) == 1 + 6 * 2 + 1
    assert len(made.arm_trials.trials) == 2 * len(made.arm_trials.arms)
    assert {(arm, seed) for arm, seed in made.arm_trials.trials} == {
        (arm, seed) for arm in made.arm_trials.arms for seed in made.arm_trials.seeds
    }


def test_an_arm_differs_from_the_baseline_in_its_remedy_alone():
    """Each changes one thing of the baseline: a hyperparameter, the images, or the patience."""
    base, *arms = plan().arm_trials.arms
    for arm in arms:
        changed = {
            name
            for name in ("weight_decay", "l1", "augmentation", "hidden_units")
            if getattr(arm.config, name) != getattr(base.config, name)
        }
        if arm.train_fraction != base.train_fraction:
            changed.add("images")
        if arm.patience:
            changed.add("patience")
        assert len(changed) == 1, arm


def test_packs_share_a_view_and_the_largest_come_first():
    """What is asked for together has one seed and one fraction; all is asked for once."""
    made, asked = plan(), {}
    fractions = []
    while batch := made.ask(64, {}):
        views = {task.view for task in batch.values()}
        assert len(views) == 1
        fractions.append(views.pop().train_fraction)
        asked |= batch
    assert sorted(asked) == list(range(len(made.arm_trials.trials)))
    assert fractions == sorted(fractions, reverse=True)


def test_arms_of_a_seed_begin_alike():
    """They have one draw of initial weights, so that they can be compared in pairs."""
    made = plan()
    asked = {}
    while batch := made.ask(64, {}):
        asked |= batch
    for number, (arm, seed) in enumerate(made.arm_trials.trials):
        task = asked[number]
        assert (task.config, task.view.seed, task.draw) == (arm.config, seed, 0)


def test_the_combination_holds_what_helped_on_validation():
    """Remedies better than the baseline are combined at their best strengths, scaled."""
    made = plan()
    before = made.num_trials
    assert made.ask(1000, {})
    run(made)
    combined = [arm for arm in made.arm_trials.arms if arm.remedy == COMBINED]
    assert [arm.strength for arm in combined] == [1.0, 0.5]
    assert [arm.config.weight_decay for arm in combined] == [1e-2, 5e-3]
    for arm in combined:
        assert (arm.config.l1, arm.config.augmentation) == (0, 0)
        assert (arm.patience, arm.config.hidden_units, arm.train_fraction) == (2, 4, 1.0)
    assert made.num_trials == before == len(made.arm_trials.trials)


def test_the_combination_waits_for_the_last_trial():
    """Before all is known nothing is asked of phase two; afterwards all of it is."""
    made = plan()
    last = len(made.arm_trials.trials) - 1
    while made.ask(64, {}):
        pass
    run(made, range(last))
    assert made.ask(64, {}) == {}
    run(made, [last])
    assert len(made.ask(64, {})) == 2  # the two scales of the first seed


def test_the_order_of_news_changes_nothing():
    """Packs may end in any order."""
    one, other = plan(), plan()
    numbers = range(len(one.arm_trials.trials))
    run(one, numbers)
    run(other, reversed(numbers))
    assert one.arm_trials.trials == other.arm_trials.trials


def test_a_replay_stands_where_the_ledger_is():
    """A resumed study knows its combination, and goes on after the last trial handed out."""
    made = plan()
    run(made)
    single = len(plan().arm_trials.trials)
    records = [
        TrialRecord(number, State.COMPLETE, arm.config, 0, 1, None, None)
        for number, (arm, _) in enumerate(made.arm_trials.trials[: single + 1])
    ]
    curves = {n: curve_of(arm) for n, (arm, _) in enumerate(made.arm_trials.trials)}
    resumed = plan()
    resumed.replay(records, curves)
    assert resumed.arm_trials.trials == made.arm_trials.trials
    assert min(resumed.ask(64, {})) == single + 1


def test_early_stopping_is_judged_where_it_stops_by_the_other_seeds():
    """Each seed's best epoch chooses, and the other seeds' baselines say what it is worth."""
    made = plan()
    curves = {7: [0.9, 0.3, 1.0, 1.1], 8: [0.9, 0.8, 0.7, 1.2]}
    for number, (arm, seed) in enumerate(made.arm_trials.trials):
        curve = curves[seed] if arm.remedy in {BASELINE, "early_stopping"} else [2.0, 2.0]
        stop = curve.index(min(curve))
        curve = curve[: stop + 1 + arm.patience] if arm.patience else curve
        made.tell(number, State.COMPLETE, curve)
    found = {
        (arm.remedy, arm.patience, seed): made.arm_trials.choice_losses()[number]
        for number, (arm, seed) in enumerate(made.arm_trials.trials)
    }
    assert (found[BASELINE, 0, 7], found[BASELINE, 0, 8]) == (1.1, 1.2)
    for patience in (1, 2):
        assert found["early_stopping", patience, 7] == 0.8  # seed 8 after two epochs
        assert found["early_stopping", patience, 8] == 1.0  # seed 7 after three


NOISE = """name: noise
dataset: {name: digits}
space: {batch_size: 16, num_epochs: 30, learning_rate: 0.1}
remedies:
  seeds: 10
  early_stopping: [5, 10, 20, 29]
  weight_decay: [1e-4, 1e-3, 1e-2, 1e-1]
  l1: []
  augmentation: []
"""


def test_early_stopping_on_noise_seems_no_better():
    """100 studies of curves that are flat but for noise, so that nothing helps in truth.

    In at least 93 no remedy is better or worse on the test set, and early stopping enters the
    combination in 5 at most, and 2 standard errors. The longest patience is never reached: it
    is the baseline. Judged by its least validation loss it would enter nearly always.
    """
    rng = np.random.default_rng(22)
    quiet = entered = naive = 0
    for _ in range(100):
        made = plan(NOISE)
        # What a seed draws: its curves with and without weight decay, and its test losses.
        shape = len(made.arm_trials.seeds), 30
        flat, tested = 0.5 + rng.normal(scale=0.01, size=(2, *shape))
        rows = []
        single = list(made.arm_trials.trials)
        for number, (arm, seed) in enumerate(single):
            curve, test = flat[seed], tested[seed]
            if arm.config.weight_decay:
                curve, test = 0.5 + rng.normal(scale=0.01, size=(2, 30))
            stop = stop_of(curve, arm.patience) if arm.patience else 30
            curve = curve[:stop].tolist()
            made.tell(number, State.COMPLETE, curve)
            measured = curve.index(min(curve)) if arm.patience else -1
            key = {"remedy": arm.remedy, "strength": arm.strength, "strength_label": arm.label}
            rows.append({**key, "seed": seed, "test_loss": float(test[measured])})
        losses = made.arm_trials.choice_losses()
        arms = pd.DataFrame(rows).assign(validation_loss=[losses[n] for n in range(len(single))])
        verdicts = set(effects(arms)["verdict"])
        quiet += verdicts <= {"no difference that matters", "not settled"}
        entered += any(arm.patience for arm in made.arm_trials.arms if arm.remedy == COMBINED)
        naive += flat.min(axis=1).mean() < flat[:, -1].mean() - 0.005
    assert quiet >= 93
    assert entered <= 100 * (0.05 + 2 * math.sqrt(0.05 * 0.95 / 100))
    assert naive > 90


def stop_of(curve, patience):
    """Return after how many epochs training stops: so many without a better loss."""
    best = 0
    for epoch in range(len(curve)):
        if curve[epoch] < curve[best]:
            best = epoch
        elif epoch - best >= patience:
            return epoch + 1
    return len(curve)


def test_early_stopping_that_cures_enters():
    """Where the loss rises by a fifth after its best epoch, the combination stops early."""
    rng = np.random.default_rng(3)
    made = plan(NOISE)
    truth = 0.5 + 0.1 * np.abs(np.arange(30) - 10) / 19
    flat = truth + rng.normal(scale=0.005, size=(10, 30))
    for number, (arm, seed) in enumerate(made.arm_trials.trials):
        curve = flat[seed] if not arm.config.weight_decay else truth - 0.2
        stop = stop_of(curve, arm.patience) if arm.patience else 30
        made.tell(number, State.COMPLETE, curve[:stop].tolist())
    combined = [arm for arm in made.arm_trials.arms if arm.remedy == COMBINED]
    assert len(combined) == 4
    assert {arm.patience for arm in combined} <= {5, 10, 20}


def test_the_margin_of_the_experiment_decides_what_enters():
    """Remedies that are better by less are left out of the combination."""
    made = plan(EXPERIMENT + "  margin: 0.15\n")
    run(made)
    (first, *_) = (arm for arm in made.arm_trials.arms if arm.remedy == COMBINED)
    assert (first.train_fraction, first.config.weight_decay) == (1.0, 1e-2)
    assert (first.patience, first.config.hidden_units) == (0, 8)


def test_one_remedy_is_no_combination():
    """It has been trained, and more strengths of it alone would be more tuning."""
    made = plan(EXPERIMENT + "  margin: 0.3\n")
    run(made)
    assert all(arm.remedy != COMBINED for arm in made.arm_trials.arms)
    assert made.num_trials == len(made.arm_trials.trials)
    (note,) = made.arm_trials.left_out
    assert note.startswith("combined: more_data alone is shown to lower the validation loss")


def test_a_strength_that_diverged_at_a_seed_is_not_chosen():
    """A failed trial counts as infinitely bad."""
    made = plan()
    for number, (arm, seed) in enumerate(made.arm_trials.trials):
        failed = arm.remedy == "weight_decay" and arm.strength == 1e-2 and seed == 8
        curve = [math.nan] if failed else [loss(arm)]
        made.tell(number, State.FAIL if failed else State.COMPLETE, curve)
    (first, *_) = (arm for arm in made.arm_trials.arms if arm.remedy == COMBINED)
    assert first.config.weight_decay == 1e-3


def test_where_nothing_helps_nothing_is_combined():
    """The study ends after phase one, and says why."""
    made = plan()
    run(made, losses=lambda arm: 0.1 if arm.remedy == BASELINE else 1.0)
    assert made.num_trials == len(made.arm_trials.trials)
    assert all(arm.remedy != COMBINED for arm in made.arm_trials.arms)
    assert any(
        note.startswith("combined: no remedy is shown to lower")
        for note in made.arm_trials.left_out
    )


def test_scales_that_change_nothing_are_trained_once():
    """Patience, width and images have no scale."""
    made = plan()
    helpful = {"early_stopping", "more_data"}
    run(made, losses=lambda arm: 0.5 if arm.remedy in helpful else 1.0)
    assert len([arm for arm in made.arm_trials.arms if arm.remedy == COMBINED]) == 1
    assert made.num_trials == len(made.arm_trials.trials)


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        (
            "  smaller_model: [4, 0]\n",
            "",
            "smaller_model: the base is softmax regression, and there is no smaller model",
        ),
        ("  l1: [1e-4, 1e-3]\n", "  l1: []\n", "l1: the experiment leaves it out"),
    ],
)
def test_what_is_left_out_is_said(before, after, note):
    """A remedy that cannot apply, or was not asked for, is named with the reason."""
    text = EXPERIMENT.replace(before, after)
    if "softmax" in note:
        text = text.replace(", hidden_units: 8", "")
    made = plan(text)
    assert made.arm_trials.left_out == [note]
    assert all(arm.remedy != note.partition(":")[0] for arm in made.arm_trials.arms)
