"""Winners: the best trial is among them, and one is called better only where it is."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.stats.intervals import binomial_interval, mean_interval
from tune_softmax.stats.winners import _compare_all, winner_sentence, winners


def as_replicates(losses):
    """Return replicates and validation values of trials 10, 11, ... from losses, (n, k)."""
    num_seeds, num_trials = np.shape(losses)
    trials = 10 + np.arange(num_trials)
    replicates = pd.DataFrame(
        {
            "trial": np.tile(trials, num_seeds),
            "seed": np.repeat(np.arange(num_seeds), num_trials),
            "test_loss": np.ravel(losses),
            "test_accuracy": 1 - np.ravel(losses) / 3,
        }
    )
    validation = pd.DataFrame(
        {"trial": trials[::-1], "validation_loss": trials / 100, "validation_accuracy": 0.9}
    )
    return replicates, validation


def test_winners_describe_every_trial():
    """Each column is what its own function says, the best trial first."""
    rng = np.random.default_rng(1)
    losses = rng.normal([0.5, 0.3, 0.302], 0.01, size=(5, 3))
    table = winners(*as_replicates(losses), 10_000)
    assert table.columns.tolist() == [
        *("trial", "num_seeds", "mean_test_accuracy", "accuracy_low", "accuracy_high"),
        *("binomial_low", "binomial_high", "binomial_half_width", "mean_test_loss", "loss_low"),
        *("loss_high", "validation_loss", "validation_accuracy", "accuracy_drop", "is_winner"),
        *("metric", "margin", "verdict"),
    ]
    assert table["trial"].tolist() == [11, 12, 10]
    assert table["is_winner"].tolist() == [True, True, False]
    assert table["validation_loss"].tolist() == [0.11, 0.10, 0.12]  # by trial, not by row
    for row, loss in zip(table.itertuples(), losses.T[[1, 2, 0]], strict=True):
        over_seeds, accuracy = mean_interval(loss), mean_interval(1 - loss / 3)
        images = binomial_interval(accuracy.mean, 10_000)
        assert (row.mean_test_loss, row.num_seeds) == (pytest.approx(over_seeds.mean), 5)
        assert (row.loss_low, row.loss_high) == pytest.approx((over_seeds.low, over_seeds.high))
        assert row.mean_test_accuracy == pytest.approx(accuracy.mean)
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx(
            (accuracy.low, accuracy.high)
        )
        assert (row.binomial_low, row.binomial_high) == pytest.approx((images.low, images.high))
        assert row.binomial_half_width == pytest.approx(images.half_width)
        assert row.accuracy_drop == pytest.approx(0.9 - accuracy.mean)


def test_trials_are_compared_pair_by_pair_one_sided():
    """A trial loses where scipy.stats' one-sided paired test says so, at 5 % over two."""
    rng = np.random.default_rng(12)
    outcomes = set()
    for _ in range(10):
        losses = rng.normal(scale=0.1, size=(4, 1)) + rng.normal(
            [1, 1.02, 1.05], 0.02, size=(4, 3)
        )
        table = winners(*as_replicates(losses), 100, margin=0).set_index("trial")
        for i in range(3):
            p = [
                stats.ttest_rel(losses[:, i], losses[:, j], alternative="greater").pvalue
                for j in range(3)
                if j != i
            ]
            assert table["is_winner"][10 + i] == (min(p) >= 0.05 / 2)
            outcomes.add(bool(table["is_winner"][10 + i]))
    assert outcomes == {True, False}


def test_the_best_trial_is_among_the_winners():
    """Ten trials, one the best by a little and noises of their own: lost in 5 % at most of 1,000.

    Two standard errors are allowed for. Trials that are far worse are no winners.
    """
    rng = np.random.default_rng(3)
    means = np.array([-0.001, *[0] * 6, 0.5, 0.5, 0.5])
    noise = np.array([0.03, *[0.01] * 9])
    kept = num_winners = 0
    for _ in range(1000):
        winning = _compare_all(rng.normal(means, noise, size=(5, 10)), 0.05 / 9, 0.0)[0]
        kept += winning[0]
        num_winners += winning[7:].sum()
    assert kept / 1000 >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert num_winners < 3 * 1000 * 0.02


def test_accuracy_may_decide():
    """The highest accuracy wins then, though its loss be the highest too."""
    losses = np.random.default_rng(0).normal([0.5, 0.3], 0.01, size=(5, 2))
    replicates, validation = as_replicates(losses)
    replicates["test_accuracy"] = replicates["test_loss"]
    table = winners(replicates, validation, 100, "test_accuracy")
    assert table[["trial", "is_winner"]].to_numpy().tolist() == [[10, True], [11, False]]
    by_loss = winners(replicates, validation, 100)
    assert by_loss[["trial", "is_winner"]].to_numpy().tolist() == [[11, True], [10, False]]


def test_a_trial_that_diverged_wins_nothing_and_beats_nobody():
    """It comes last, even where its other seeds are the best, and its accuracies are NaN."""
    losses = np.random.default_rng(0).normal([0.1, 0.3, 0.3], 0.01, size=(5, 3))
    losses[2, 0] = math.nan
    table = winners(*as_replicates(losses), 100).set_index("trial")
    assert table.index[-1] == 10
    assert table["is_winner"].to_dict() == {10: False, 11: True, 12: True}
    assert math.isnan(table["mean_test_accuracy"][10])
    assert math.isnan(table["binomial_half_width"][10])
    losses[:] = math.inf
    assert not winners(*as_replicates(losses), 100)["is_winner"].any()


@pytest.mark.parametrize("losses", [[[0.5, 0.1]], [[0.5, 0.1], [0.5, 0.1]], [[0.3], [0.4]]])
def test_without_a_comparison_every_trial_may_be_the_best(losses):
    """One seed, no spread, and one trial alone."""
    assert winners(*as_replicates(losses), 100)["is_winner"].all()


def test_replicates_that_do_not_match_are_refused():
    """A missing seed, a trial that validation lacks or has twice, a metric and an image count."""
    replicates, validation = as_replicates([[0.5, 0.1], [0.4, 0.2]])
    with pytest.raises(ResultsError, match=r"replicates: .* trial 11 is there 0 times for seed 1"):
        winners(replicates.iloc[:3], validation, 100)
    message = r"validation: must have one row for each of the trials \[10, 11\], and has rows for "
    with pytest.raises(ResultsError, match=message + r"\[11\]"):
        winners(replicates, validation.iloc[:1], 100)
    with pytest.raises(ResultsError, match=message + r"\[10, 11, 11\]"):
        winners(replicates, validation.iloc[[0, 0, 1]], 100)
    with pytest.raises(ResultsError, match=r"validation: needs the columns .* missing: trial"):
        winners(replicates, validation.drop(columns="trial"), 100)
    with pytest.raises(ExperimentError, match="num_images: must be at least 1, not 0"):
        winners(replicates, validation, 0)
    with pytest.raises(ExperimentError, match="metric: 'validation_loss' is not allowed"):
        winners(replicates, validation, 100, "validation_loss")
    more = pd.concat([validation, validation.assign(trial=[98, 99])])
    assert len(winners(replicates, more, 100)) == 2


def confirmed(means, noise=1e-4, num_seeds=6, **options):
    """Return the winners of trials 10, 11, ... of these mean losses, and their sentence."""
    losses = np.random.default_rng(0).normal(means, noise, size=(num_seeds, len(means)))
    table = winners(*as_replicates(losses), 100, **options)
    return table.set_index("trial")["verdict"].to_dict(), winner_sentence(table)


@pytest.mark.parametrize(
    ("means", "verdicts", "sentence"),
    [
        (
            [0.3],
            ["not settled"],
            "Trial 10 was confirmed alone: there is none to compare it with.",
        ),
        (
            [0.3, 0.4],
            ["better", "worse"],
            "Trial 10 is better than every other by more than 0.0030 nats of test loss.",
        ),
        (
            [0.3, 0.3004, 0.4],
            ["no difference that matters"] * 2 + ["worse"],
            (
                "Between trials 10 and 11 there is no difference that matters, which is more than "
                "0.0030 nats of test loss."
            ),
        ),
        ([0.3, math.nan], ["not settled", "diverged"], "Trial 10 is the only one that no other"),
        ([math.nan, math.nan], ["diverged"] * 2, "No winner: every trial diverged at a seed"),
    ],
)
def test_winners_are_called_better_only_where_they_are(means, verdicts, sentence):
    """One trial alone, and the only one left, are not better than all others."""
    found, said = confirmed(means)
    assert list(found.values()) == verdicts
    assert said.startswith(sentence)


def test_what_few_seeds_leave_open_is_said():
    """Neither better nor alike by three seeds of much noise."""
    found, said = confirmed([0.3, 0.31], noise=0.01, num_seeds=3)
    assert set(found.values()) == {"not settled"}
    assert said.startswith("Between trials 10 and 11 it is not settled which is better by more")


def test_a_margin_keeps_near_trials_among_the_winners():
    """A trial that is worse by less than matters may win all the same."""
    assert confirmed([0.3, 0.301], margin=0)[0] == {10: "better", 11: "worse"}
    found, said = confirmed([0.3, 0.301], margin=0.01)
    assert set(found.values()) == {"no difference that matters"}
    assert "0.0100 nats of test loss" in said
