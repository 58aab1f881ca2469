"""The five sentences: each number is the dataframes', and no sentence says more than they do."""

import dataclasses
import math
import re

import pytest
from report_runs import confirmation, path_points, remedies, write_run

from tune_softmax.metrics import State
from tune_softmax.report import findings, measures
from tune_softmax.report.inputs import Inputs, gather
from tune_softmax.run import results
from tune_softmax.stats import verdicts, winners


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return what a report of a search alone is made from."""
    return gather(write_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_search_is_said_in_five_sentences(inputs):
    """What was asked, found, tested, its gap, and its cost, with the frames' own numbers."""
    asked, found, tested, gap, spent = findings.sentences(inputs)
    trials = inputs.search.trials.set_index("number")
    best = inputs.search.best()
    assert "the lowest validation loss" in asked
    assert "on digits. The tpe sampler proposes 40 trials from seed 0" in asked
    assert "batch size, epochs, learning rate" in asked
    whole = measures.completed(inputs.search.trials)
    assert f"Trial {best.number} is the best of {len(whole)} complete trials" in found
    assert f"validation loss {best.value:.4f}" in found
    assert "have not been confirmed" in tested
    other = measures.baseline(inputs.search.trials, best.number)
    for number in (best.number, other):
        row = trials.loc[number]
        assert f"{row['last_validation_loss'] - row['last_train_loss']:.4f}" in gap
    assert "neither has an interval" in gap
    assert f"ASHA stopped {inputs.search.count(State.PRUNED)} of 40 trials early" in spent
    assert f"{trials['seconds'].sum():,.1f} s in all" in spent
    saved = (trials["num_epochs"] - trials["epochs_trained"])[trials["state"] == "PRUNED"].sum()
    assert f"saved {saved} epochs" in spent


@pytest.mark.parametrize(("shift", "side"), [(-0.3, "above"), (0.0, "below")])
def test_the_regret_says_its_side(inputs, shift, side):
    """A search that stops early can be better than the path's optimum, and then it is below."""
    points = path_points()
    points["validation_loss"] += shift
    found = findings.sentences(dataclasses.replace(inputs, path=points))[1]
    least = measures.completed(inputs.search.trials)["last_validation_loss"].min()
    distance = abs(least - 0.35 - shift)
    assert (
        f"{distance:.4f} {side} the lowest on the regularization path, {0.35 + shift:.4f}" in found
    )


def test_a_confirmation_says_what_decides(inputs):
    """The first trial's means with their intervals, and the verdict's own sentence."""
    confirmed = confirmation()
    text = findings.sentences(dataclasses.replace(inputs, confirmation=confirmed))[2]
    top = confirmed.winners.iloc[0]
    assert f"trial {top['trial']} is first of 3 confirmed trials: loss " in text
    for name in ("loss", "accuracy"):
        ends = f"{top[f'{name}_low']:.4f} to {top[f'{name}_high']:.4f}"
        assert f"{name} {top[f'mean_test_{name}']:.4f} ({ends})" in text
    assert text.endswith(f" over 5 seeds. {winners.winner_sentence(confirmed.winners)}")


def test_one_seed_has_no_interval(inputs):
    """The sentence says so, and names no infinite ends."""
    confirmed = confirmation()
    one = confirmed.winners.assign(accuracy_low=-math.inf, accuracy_high=math.inf, num_seeds=1)
    confirmed = dataclasses.replace(confirmed, winners=one)
    text = findings.sentences(dataclasses.replace(inputs, confirmation=confirmed))[2]
    assert "(no interval) over 1 seed. " in text


def test_remedies_say_which_help_hurt_and_are_unclear(inputs):
    """Each with its difference and interval; it is the fourth sentence beside a search."""
    studied = remedies()
    text = findings.sentences(dataclasses.replace(inputs, remedies=studied))[3]
    rows = studied.effects.set_index("remedy")
    for name in ("l2", "augmentation"):
        row = rows.loc[name]
        assert f"{row['difference']:+.4f}, {row['low']:+.4f} to {row['high']:+.4f})" in text
    assert re.search(r"L2 \([^)]*\).* lowered the test loss", text)
    assert re.search(r"augmentation \([^)]*\) raised the test loss", text)
    assert "not settled is early stopping" in text


def test_a_study_alone_has_five_sentences(inputs):
    """Asked, overfitting, what helps, what does not, and all together."""
    studied = remedies()
    alone = dataclasses.replace(inputs, search=None, remedies=studied)
    asked, sick, helping, hurting, together = findings.sentences(alone)
    assert "compares 3 remedies against overfitting" in asked
    assert "over 6 seeds" in asked
    assert sick == studied.overfitting.sentence
    assert helping.startswith("L2 (-0.0")
    assert hurting.startswith("Augmentation (+0.0")
    assert "no difference was seen between the two" in together


def test_overlapping_intervals_are_no_difference(inputs):
    """The combination and the best single remedy overlap or not, and the sentence follows."""
    studied = remedies()
    effects = studied.effects.set_index("remedy")
    effects.loc["combined", ["difference", "low", "high"]] = [-0.5, -0.6, -0.4]
    far = dataclasses.replace(studied, effects=effects.reset_index())
    alone = dataclasses.replace(inputs, search=None, remedies=far)
    together = findings.sentences(alone)[4]
    assert "separate intervals: the combination's test loss is lower" in together


def test_more_is_better_of_an_accuracy(inputs):
    """What helps raises it, and the words follow the metric."""
    arms = remedies().arms.assign(test_accuracy=lambda frame: 1 - frame["test_loss"])
    effects = verdicts.effects(arms, "test_accuracy")
    studied = dataclasses.replace(remedies(), arms=arms, effects=effects)
    alone = dataclasses.replace(inputs, search=None, remedies=studied)
    _, _, helping, hurting, _ = findings.sentences(alone)
    assert helping.endswith("raised the test accuracy.")
    assert "lowered the test accuracy" in hurting


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_search_that_has_just_begun_has_five_sentences(tmp_path, count):
    """Nothing is said of what is not there yet."""
    inputs = gather(write_run(tmp_path / "run", count))
    said = findings.sentences(inputs)
    assert len(said) == 5
    assert all(sentence.endswith(".") for sentence in said)
    assert f"So far {count} are done." in said[0]
    if not count:
        assert said[1] == "No trial has a result yet."


def test_a_search_of_stopped_trials_says_so(inputs):
    """There may be no complete one; then the best of the others is named as such."""
    trials = inputs.search.trials
    stopped = trials[trials["state"] == "PRUNED"]
    search = dataclasses.replace(inputs.search, trials=stopped)
    found = findings.sentences(dataclasses.replace(inputs, search=search))[1]
    assert found.startswith("No trial has run all its epochs; the best of the others is trial")


def test_a_search_without_asha_claims_no_saving(inputs):
    """It was not asked to stop any trial."""
    asked = inputs.experiment
    asked = asked.model_copy(update={"search": asked.search.model_copy(update={"asha": None})})
    search = dataclasses.replace(inputs.search, experiment=asked)
    spent = findings.sentences(dataclasses.replace(inputs, search=search))[4]
    assert spent.endswith("The experiment asks for no early stopping of trials.")


def test_an_empty_folder_is_said_to_be_empty(inputs):
    """Neither a search nor a study."""
    nothing = Inputs(inputs.folder, inputs.experiment)
    assert findings.sentences(nothing) == [
        "This folder holds neither a search nor a finished study of remedies."
    ]


def test_best_of_nothing_is_none(tmp_path):
    """Instead of an error."""
    assert findings.best_of(results.load(write_run(tmp_path / "run", 0))) is None
