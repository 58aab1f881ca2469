"""Verdicts over seeds: against scipy.stats, and by simulation how often they are wrong."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.stats.intervals import binomial_interval, mean_interval, paired_intervals
from tune_softmax.stats.verdicts import (
    Verdict,
    _compare_all,
    _from_best_to_last,
    better_on_validation,
    choose_strengths,
    default_margin,
    effects,
    losses_at_stops,
    overfitting,
    winner_sentence,
    winners,
)

REMEDIES = ["early_stopping", "l2", "l1", "augmentation", "smaller_model", "more_data", "combined"]


def as_arms(losses):
    """Return arms from {(remedy, strength): (validation, test) or (both)} over seeds 0, 1, ..."""
    rows = []
    for (remedy, strength), values in losses.items():
        validation, test = values if len(np.shape(values)) == 2 else (values, values)
        for seed, (v, t) in enumerate(zip(validation, test, strict=True)):
            arm = {"remedy": remedy, "strength": strength, "strength_label": f"x {strength}"}
            measured = {"validation_loss": v, "test_loss": t, "test_accuracy": 1 - t}
            rows.append({**arm, "seed": seed, **measured})
    return pd.DataFrame(rows)


def similar(rng, num_seeds, num_arms, correlation=0.9):
    """Return validation and test losses of arms that are equal in truth, (2, n, arms).

    A run that was lucky is so on both sets; and a seed is easy or hard for all arms.
    """
    validation, own = rng.normal(scale=0.004, size=(2, num_seeds, num_arms))
    test = correlation * validation + math.sqrt(1 - correlation**2) * own
    return 0.45 + rng.normal(scale=0.02, size=(num_seeds, 1)) + np.array([validation, test])


def test_strengths_are_chosen_by_validation_loss():
    """The lowest mean over seeds is chosen, whatever the test set says, in the order given."""
    arms = as_arms(
        {
            ("l2", 0.1): ([0.50, 0.52], [0.1, 0.1]),
            ("baseline", 0.0): ([0.60, 0.60], [0.6, 0.6]),
            ("l1", 0.3): ([0.40, 0.40], [0.6, 0.6]),
            ("l2", 0.2): ([0.54, 0.46], [0.9, 0.9]),
        }
    )
    chosen = choose_strengths(arms)
    assert chosen["remedy"].tolist() == ["l2", "l1"]
    assert chosen["strength"].tolist() == [0.2, 0.3]
    assert chosen["strength_label"].tolist() == ["x 0.2", "x 0.3"]
    assert chosen["validation_loss"].tolist() == pytest.approx([0.5, 0.4])
    assert chosen["num_seeds"].tolist() == [2, 2]
    assert chosen["num_diverged"].tolist() == [0, 0]


def test_a_strength_that_diverged_once_is_not_chosen():
    """Its other seeds may be the best of all; if every strength diverged, the fewest count."""
    baseline = {("baseline", 0.0): [0.6, 0.6, 0.6]}
    lucky, plain = [0.1, 0.1, math.nan], [0.5, 0.5, 0.5]
    chosen = choose_strengths(as_arms({**baseline, ("l2", 1.0): lucky, ("l2", 2.0): plain}))
    assert chosen["strength"].tolist() == [2.0]
    worse = [math.inf, 0.5, math.nan]
    chosen = choose_strengths(as_arms({**baseline, ("l2", 1.0): worse, ("l2", 2.0): lucky}))
    assert chosen[["strength", "num_diverged"]].to_numpy().tolist() == [[2.0, 1]]
    assert chosen["validation_loss"].tolist() == [math.inf]


def test_of_equal_strengths_the_smaller_is_chosen():
    """However the rows are ordered."""
    equal = [0.5, 0.4]
    arms = as_arms({("l2", 3.0): equal, ("l2", 2.0): equal, ("baseline", math.nan): equal})
    assert choose_strengths(arms)["strength"].tolist() == [2.0]


def test_effects_are_paired_t_tests_with_bonferronis_correction():
    """Ends and p-values agree with scipy.stats, at a level divided by all four other arms."""
    rng = np.random.default_rng(3)
    keys = [("baseline", 0.0), ("l2", 1.0), ("l2", 2.0), ("l1", 1.0), ("combined", math.nan)]
    validation, test = similar(rng, 6, len(keys))
    test += np.array([0, -0.02, -0.02, 0.003, 0.03])
    pairs = zip(validation.T, test.T, strict=True)
    table = effects(as_arms(dict(zip(keys, pairs, strict=True))))

    assert table.columns.tolist() == [
        *("remedy", "strength", "strength_label", "metric", "num_seeds", "num_comparisons"),
        *("baseline_mean", "remedy_mean", "difference", "low", "high", "p_value", "margin"),
        *("verdict", "reason"),
    ]
    l2 = 1 + int(validation[:, 2].mean() < validation[:, 1].mean())
    for row, arm in zip(table.itertuples(), [l2, 3, 4], strict=True):
        expected = stats.ttest_rel(test[:, arm], test[:, 0])
        ends = expected.confidence_interval(1 - 0.05 / 4)
        assert (row.num_seeds, row.num_comparisons, row.metric) == (6, 4, "test_loss")
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high))
        assert row.p_value == pytest.approx(min(1, 4 * expected.pvalue))
        assert row.baseline_mean == pytest.approx(test[:, 0].mean())
        assert row.remedy_mean == pytest.approx(test[:, arm].mean())
        assert row.difference == pytest.approx(row.remedy_mean - row.baseline_mean)
    assert table["verdict"].tolist() == ["better", "not settled", "worse"]
    assert table["margin"].tolist() == pytest.approx([0.01 * test[:, 0].mean()] * 3)
    assert table["reason"].tolist() == ["", "", ""]


def test_more_accuracy_helps():
    """A loss that falls and an accuracy that rises are the same verdict."""
    rng = np.random.default_rng(1)
    losses = 0.4 + rng.normal(scale=0.001, size=(3, 5)) + [[0], [-0.1], [0.1]]
    keys = [("baseline", 0.0), ("l2", 1.0), ("l1", 1.0)]
    arms = as_arms(dict(zip(keys, losses, strict=True)))
    table = effects(arms, "test_accuracy")
    assert table["verdict"].tolist() == ["better", "worse"]
    assert table["difference"][0] > 0
    assert effects(arms)["verdict"].tolist() == ["better", "worse"]
    arms["gap"] = arms["test_loss"]
    assert effects(arms, "gap")["verdict"].tolist() == ["better", "worse"]


def test_an_arm_against_itself_shows_no_difference():
    """A/A: seven remedies of two strengths, all equal in truth, in 100 studies.

    In at least 93 of them no remedy is said to do anything: all 5 % are for the whole study.
    """
    rng = np.random.default_rng(11)
    keys = [("baseline", 0.0)] + [(remedy, s) for remedy in REMEDIES for s in (1.0, 2.0)]
    quiet = 0
    for _ in range(100):
        pairs = similar(rng, 5, len(keys)).transpose(2, 0, 1)
        table = effects(as_arms(dict(zip(keys, pairs, strict=True))), margin=0)
        assert len(table) == 7
        quiet += not set(table["verdict"]) & {Verdict.BETTER, Verdict.WORSE}
    assert quiet >= 93


def wrong_studies(num_seeds, num_remedies, num_strengths, num_comparisons):
    """Return in which share of 2,000 A/A studies some remedy is said to do something.

    Each study does what `effects` does, all at once: choose by validation, compare on test.
    """
    rng = np.random.default_rng(5)
    shape = (num_seeds, 2000, num_remedies, num_strengths)
    validation, own = rng.normal(size=(2, *shape))
    test = 0.9 * validation + math.sqrt(0.19) * own
    pick = validation.mean(axis=0).argmin(axis=-1)[None, ..., None]
    after = np.take_along_axis(test, pick, axis=-1).reshape(num_seeds, -1)
    before = np.repeat(rng.normal(size=(num_seeds, 2000)), num_remedies, axis=1)
    paired = paired_intervals(before, after, 0.025 / num_comparisons)
    return ((paired.low > 0) | (paired.high < 0)).reshape(2000, -1).any(axis=1).mean()


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_seven_remedies_are_wrong_in_five_per_cent_of_studies_at_most(num_seeds):
    """The family-wise error stays below 5 % and two standard errors; uncorrected it is 20 %."""
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert 0.02 < wrong_studies(num_seeds, 7, 1, num_comparisons=7) <= limit
    assert wrong_studies(num_seeds, 7, 5, num_comparisons=35) <= 0.05
    assert wrong_studies(num_seeds, 7, 1, num_comparisons=1) > 0.2


def test_strengths_that_were_not_chosen_count():
    """One remedy, the best of ten equal strengths: 5 % wrong becomes 10 % if only one counts."""
    assert wrong_studies(5, 1, 10, num_comparisons=1) > 0.08
    assert wrong_studies(5, 1, 10, num_comparisons=10) <= 0.05


@pytest.mark.parametrize(("num_seeds", "effect"), [(5, 0.03), (10, 0.012)])
def test_a_real_difference_is_found(num_seeds, effect):
    """Among 14 arms, differences of 7 (5 seeds) or 3 (10 seeds) standard deviations of a run.

    In at least 18 of 20 studies the remedy that helps is said to help and the one that hurts to
    hurt, and the five others to do nothing.
    """
    rng = np.random.default_rng(2)
    keys = [("baseline", 0.0)] + [(remedy, s) for remedy in REMEDIES for s in (1.0, 2.0)]
    shift = np.array([0, *np.repeat([-effect, effect, 0, 0, 0, 0, 0], 2)])
    right = 0
    for _ in range(20):
        losses = similar(rng, num_seeds, len(keys)) + shift
        arms = as_arms(dict(zip(keys, losses.transpose(2, 0, 1), strict=True)))
        table = effects(arms, margin=0)
        right += table["verdict"].tolist() == ["better", "worse"] + ["not settled"] * 5
    assert right >= 18


@pytest.mark.parametrize(
    ("baseline", "remedy", "difference", "reason"),
    [
        ([0.5], [0.1], -0.4, "one seed shows no spread"),
        ([0.5, 0.6], [0.5, 0.6], 0, "0 at all 2 seeds: no spread to judge by"),
        ([0.5, 0.6, 0.9], [0.4, 0.5, 0.8], -0.1, "the same at all 3 seeds: no spread to judge by"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, math.nan], math.nan, "not finite at 1 of 3 seeds"),
        ([0.5, 0.5], [math.inf, math.inf], math.inf, "not finite at 2 of 2 seeds"),
        ([math.inf, 0.5], [0.1, 0.2], -math.inf, "not finite at 1 of 2 seeds"),
        ([math.inf, 0.5], [math.inf, 0.2], math.nan, "not finite at 1 of 2 seeds"),
    ],
)
def test_without_an_interval_there_is_no_verdict(baseline, remedy, difference, reason):
    """One seed, no spread and divergence, on either side, are said and prove nothing."""
    row = effects(as_arms({("baseline", 0.0): baseline, ("l2", 1.0): remedy})).iloc[0]
    assert row["difference"] == pytest.approx(difference, nan_ok=True)
    assert (row["low"], row["high"]) == (-math.inf, math.inf)
    assert math.isnan(row["p_value"])
    same = reason.startswith("0 at all")  # the very same model
    assert row["verdict"] == ("no difference that matters" if same else "not settled")
    assert row["reason"] == reason


LOSSES = st.sampled_from([math.nan, math.inf, 0.25, 0.5]) | st.floats(0, 10)


@settings(deadline=None, max_examples=50)  # a dataframe takes its time on a busy machine
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.5, 0.95]),
    st.sampled_from([0, 0.1, 1]),
)
def test_interval_p_value_margin_and_verdict_agree(
    data, num_seeds, num_remedies, confidence, margin
):
    """For any numbers: a verdict is where the interval lies, and p is against 0."""
    row = st.lists(LOSSES, min_size=num_seeds, max_size=num_seeds)
    keys = [("baseline", 0.0), *((name, 1.0) for name in REMEDIES[:num_remedies])]
    table = effects(
        as_arms({key: data.draw(row) for key in keys}), "test_loss", confidence, margin
    )
    for row in table.itertuples():
        assert (row.verdict == "better") == (row.high < -margin)
        assert (row.verdict == "worse") == (row.low > margin)
        is_within = -margin <= row.low and row.high <= margin
        assert (row.verdict == "no difference that matters") == (
            is_within or row.reason.startswith("0 at all")
        )
        assert math.isinf(row.low) == math.isinf(row.high) == math.isnan(row.p_value)
        assert bool(row.reason) == math.isnan(row.p_value)
        if row.p_value < 0.999 * (1 - confidence):
            assert row.low > 0 or row.high < 0
        if row.p_value > 1.001 * (1 - confidence):
            assert row.low <= 0 <= row.high


@pytest.mark.parametrize("shuffle", range(3))
def test_the_order_of_rows_and_names_of_seeds_do_not_matter(shuffle):
    """Pairs are found by seed."""
    keys = [("baseline", 0.0), ("l2", 1.0), ("l2", 2.0), ("l1", 1.0)]
    pairs = similar(np.random.default_rng(0), 4, 4).transpose(2, 0, 1)
    arms = as_arms(dict(zip(keys, pairs, strict=True)))
    expected = effects(arms).set_index("remedy").sort_index()
    shuffled = arms.sample(frac=1, random_state=shuffle).assign(seed=lambda x: 100 - 7 * x["seed"])
    pd.testing.assert_frame_equal(effects(shuffled).set_index("remedy").sort_index(), expected)


TWO = as_arms({("baseline", 0.0): [0.5, 0.6], ("l2", 0.1): [0.4, 0.5]})


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (TWO.iloc[:3], r"remedy l2, strength 0.1, strength_label x 0.1 is there 0 times for seed"),
        (TWO.iloc[[0, 1, 2, 3, 3]], "is there 2 times for seed 1, and 0 more are wrong: train"),
        (TWO.assign(seed=[0, 1, 2, 3]), "of the seeds 0, 1, 2, 3; .* and 3 more are wrong"),
        (TWO.assign(remedy="l2"), 'exactly one arm whose remedy is "baseline", not 0'),
        (TWO.assign(remedy="baseline"), 'exactly one arm whose remedy is "baseline", not 2'),
        (TWO.drop(columns="seed"), "arms: needs the columns .*; missing: seed"),
        (TWO.drop(columns="test_loss"), "arms: needs the columns .*; missing: test_loss"),
        (TWO.iloc[:0], "at least one row; missing: rows"),
        (TWO.iloc[:2], "there is no remedy beside the baseline"),
    ],
)
def test_arms_that_cannot_be_paired_are_refused(arms, message):
    """What is missing or there twice is named, and nothing is dropped in silence."""
    with pytest.raises(ResultsError, match=message):
        effects(arms)


def test_odd_choices_are_refused():
    """A metric that has no better and worse, and a confidence in per cent."""
    with pytest.raises(ExperimentError, match="metric: 'epochs' is not allowed; allowed: train_"):
        effects(TWO, "epochs")
    with pytest.raises(ExperimentError, match=r"confidence: must be at least 0\.5"):
        effects(TWO, confidence=95)


def as_epochs(curves, gap=0.05):
    """Return epochs from validation curves, (n, E)."""
    num_seeds, num_epochs = np.shape(curves)
    return pd.DataFrame(
        {
            "seed": np.repeat(np.arange(num_seeds), num_epochs),
            "epoch": np.tile(np.arange(1, num_epochs + 1), num_seeds),
            "train_loss": np.ravel(curves) - gap,
            "validation_loss": np.ravel(curves),
        }
    )


def falling(num_epochs=40):
    """Return a loss that falls to about 0.4 and never rises."""
    return 0.4 + 0.5 * np.exp(-np.arange(num_epochs) / 8)


def test_noise_on_a_falling_curve_is_no_overfitting():
    """Of 100 studies with noise above the floor, at least 95 find nothing.

    The rise above each curve's own minimum would have found something in most.
    """
    rng = np.random.default_rng(4)
    found = naive = 0
    for _ in range(100):
        curves = falling() + rng.normal(scale=0.01, size=(10, 40))
        found += overfitting(as_epochs(curves)).is_overfitting
        naive += mean_interval(curves[:, -1] - curves.min(axis=1)).low > 0.004
    assert found <= 5
    assert naive > 50


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_flat_curves_seldom_seem_to_rise(num_seeds):
    """Noise alone is said to rise above 0 in 2.5 % of 2,000 studies, and 2 standard errors."""
    rng = np.random.default_rng(num_seeds)
    curves = rng.normal(0.5, 0.01, size=(2000, num_seeds, 40))
    best, last = np.array([_from_best_to_last(c) for c in curves]).transpose(1, 2, 0)
    paired = paired_intervals(best, last, 0.025)
    assert abs(paired.mean.mean()) < 4 * paired.mean.std() / math.sqrt(2000)
    assert (paired.low > 0).mean() <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 2000)


def test_leaving_one_seed_out_would_see_rises_in_noise():
    """Choosing by all other seeds is right on average and wrong too often: the way not taken."""
    curves = np.random.default_rng(10).normal(0.5, 0.01, size=(2000, 10, 40))
    others = (curves.sum(axis=1, keepdims=True) - curves).argmin(axis=2)
    best = np.take_along_axis(curves, others[..., None], axis=2)[..., 0]
    paired = paired_intervals(best.T, curves[:, :, -1].T, 0.025)
    assert abs(paired.mean.mean()) < 4 * paired.mean.std() / math.sqrt(2000)
    assert (paired.low > 0).mean() > 0.05


def test_a_real_rise_is_found():
    """A loss that rises by 0.02 nats, 5 %, after epoch 15, under noise of 0.004."""
    rng = np.random.default_rng(6)
    truth = 0.4 + 0.02 * np.abs(np.arange(1, 41) - 15) / 25
    verdicts = [
        overfitting(as_epochs(truth + rng.normal(scale=0.004, size=(5, 40)))) for _ in range(20)
    ]
    assert sum(verdict.is_overfitting for verdict in verdicts) >= 19
    assert np.mean([verdict.rise for verdict in verdicts]) == pytest.approx(0.02, abs=0.002)
    assert all(abs(verdict.best_epoch - 15) <= 8 for verdict in verdicts)
    found = next(verdict for verdict in verdicts if verdict.is_overfitting)
    assert found.sentence.startswith(f"Overfitting: from its best epoch (about {found.best_epoch}")
    assert f"{found.rise:+.4f} nats (95% interval {found.low:+.4f} to" in found.sentence


def test_each_seed_is_measured_where_those_before_it_are_best():
    """Worked by hand: the first chooses epoch 1, the first two choose epoch 2."""
    curves = [[0.30, 0.50, 0.70], [0.60, 0.20, 0.90], [0.35, 0.45, 0.95]]
    verdict = overfitting(as_epochs(curves, gap=0.25))
    expected = mean_interval([0.90 - 0.60, 0.95 - 0.45])
    assert (verdict.rise, verdict.low) == pytest.approx((expected.mean, expected.low))
    assert verdict.high == pytest.approx(expected.high)
    assert verdict.best_loss == pytest.approx((0.60 + 0.45) / 2)
    assert verdict.last_loss == pytest.approx((0.90 + 0.95) / 2)
    assert (verdict.num_seeds, verdict.best_epoch, verdict.last_epoch) == (3, 2, 3)
    assert verdict.gap == pytest.approx(0.25)
    assert verdict.floor == pytest.approx(0.00525)


def test_a_certain_but_tiny_rise_does_not_matter():
    """A rise of half a per cent, beyond doubt above 0, stays below the floor of 1 %."""
    rng = np.random.default_rng(8)
    curves = rng.normal([0.4, 0.402], 1e-5, size=(5, 2))
    verdict = overfitting(as_epochs(curves))
    assert verdict.low > 0
    assert not verdict.is_overfitting
    assert verdict.sentence.startswith("No rise that matters: from its best epoch (about 1)")
    tiny = overfitting(as_epochs(curves / 100))
    assert tiny.floor == 0.001  # nats, where 1 % of a loss near 0 would be nothing at all


def test_a_rise_among_noise_is_not_shown():
    """An interval on both sides of the floor proves neither."""
    verdict = overfitting(as_epochs([[0.4, 0.5], [0.4, 0.5], [0.4, 0.41], [0.4, 0.45]]))
    assert verdict.low < verdict.floor < verdict.high
    assert not verdict.is_overfitting
    assert verdict.sentence.startswith("Not settled: from its best epoch")


@pytest.mark.parametrize(
    ("curves", "sentence"),
    [
        ([[0.4, 0.9]], "No verdict: one seed must choose an epoch, and two or more measure"),
        ([[0.4, 0.9], [0.4, 0.8]], "No verdict: one seed must choose an epoch"),
        ([[0.4, 0.9], [0.4, math.nan]], "No verdict: a validation loss is not finite"),
        ([[0.4, math.inf], [0.4, math.inf]], "No verdict: a validation loss is not finite"),
        (
            [falling(), falling() + 0.01, falling()],
            "The validation loss does not rise again: the last epoch is its best. After epoch 40",
        ),
        (
            [[0.5], [0.6], [0.7]],
            "The validation loss does not rise again: the last epoch is its best. After",
        ),
        ([[0.4, 0.9], [0.4, 0.9], [0.4, 0.9]], "Not settled: from its best epoch"),
    ],
)
def test_without_an_interval_there_is_no_overfitting(curves, sentence):
    """Too few seeds, divergence, a loss without noise, and a single epoch."""
    verdict = overfitting(as_epochs(curves))
    assert (verdict.low, verdict.high) == (-math.inf, math.inf)
    assert not verdict.is_overfitting
    assert verdict.sentence.startswith(sentence)


def test_epochs_may_come_in_any_order():
    """Rows are found by seed and epoch."""
    epochs = as_epochs(falling() + np.random.default_rng(0).normal(scale=0.01, size=(3, 40)))
    assert overfitting(epochs.sample(frac=1, random_state=1)) == overfitting(epochs)


def test_curves_of_unequal_length_are_refused():
    """A seed that lacks an epoch is named."""
    with pytest.raises(ResultsError, match=r"epochs: .* epoch 2 is there 0 times for seed 1"):
        overfitting(as_epochs([[0.4, 0.5], [0.4, 0.5]]).iloc[:3])


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


def test_the_default_margin_is_a_part_of_a_loss():
    """1 % of it and at least 0.001 nats; of an accuracy 20 images in 10,000."""
    assert default_margin("test_loss", 0.45) == pytest.approx(0.0045)
    assert default_margin("test_loss", 0.01) == 0.001
    assert default_margin("gap", -0.5) == 0.001
    assert default_margin("validation_loss", math.inf) == 0.001
    assert default_margin("test_accuracy", 0.45) == 0.002


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0002, "no difference that matters"),
        (-0.0002, "no difference that matters"),
        (0.02, "worse"),
        (-0.02, "better"),
        (0.005, "not settled"),
        (-0.005, "not settled"),
    ],
)
def test_a_certain_difference_matters_beyond_the_margin_alone(shift, verdict):
    """+0.0002 nats at every seed is no harm, however surely it is above 0."""
    rng = np.random.default_rng(0)
    base = 0.5 + rng.normal(scale=0.01, size=10)
    other = base + shift + rng.normal(scale=1e-4 if abs(shift) < 0.001 else 1e-3, size=10)
    arms = as_arms({("baseline", 0.0): base, ("l1", 1.0): other})
    row = effects(arms).iloc[0]
    assert (row["low"] > 0) or (row["high"] < 0)
    assert row["verdict"] == verdict
    assert effects(arms, margin=0.1)["verdict"][0] == "no difference that matters"
    assert effects(arms, margin=0)["verdict"][0] == ("worse" if shift > 0 else "better")


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan])
def test_an_odd_margin_is_refused(margin):
    """Below 0, and what no difference can reach."""
    with pytest.raises(ExperimentError, match="margin: must be a number >= 0, not"):
        effects(TWO, margin=margin)
    with pytest.raises(ExperimentError, match="margin: must be a number >= 0, not"):
        winners(*as_replicates(np.ones((2, 2))), 100, margin=margin)


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


def test_a_loss_at_a_stop_is_of_the_other_seeds():
    """By hand; a curve that ended earlier counts with its last value, a failed one not at all."""
    curves = {5: [9, 1, 2, 3], 6: [9, 4, 8, 8], 7: [7, 6]}
    found = losses_at_stops({5: 1, 6: 3, 7: 0}, curves)
    assert found == {5: (4 + 6) / 2, 6: (3 + 6) / 2, 7: 9}
    assert losses_at_stops({5: 1, 6: 2}, {5: [9, 1, 2, 3], 6: []}) == {5: math.inf, 6: 2}


def test_the_least_of_a_flat_curve_flatters_and_other_seeds_do_not():
    """Noise of 0.01 around 0.5: the own least is far below, the others' mean is right."""
    rng = np.random.default_rng(1)
    own, fair = [], []
    for _ in range(500):
        curves = rng.normal(0.5, 0.01, size=(5, 40))
        own.append(curves.min(axis=1).mean())
        stops = dict(enumerate(curves.argmin(axis=1).tolist()))
        losses = losses_at_stops(stops, dict(enumerate(curves.tolist())))
        fair.append(np.mean([*losses.values()]))
    assert np.mean(own) < 0.48
    assert np.mean(fair) == pytest.approx(0.5, abs=4 * np.std(fair) / math.sqrt(500))


def test_few_equal_remedies_seem_better_on_validation():
    """Of 7 remedies of 4 strengths, equal in truth, at most 5 % pass, and 2 standard errors."""
    rng = np.random.default_rng(9)
    keys = [("baseline", 0.0)] + [(remedy, s) for remedy in REMEDIES for s in range(1, 5)]
    passed = 0
    for _ in range(40):
        losses = similar(rng, 5, len(keys))[0].T
        passed += len(better_on_validation(as_arms(dict(zip(keys, losses, strict=True))), 0))
    assert passed <= 280 * (0.05 + 2 * math.sqrt(0.05 * 0.95 / 280))


def test_a_remedy_that_is_better_on_validation_is_found():
    """With noise, without any, and not where it is by less than the margin."""
    rng = np.random.default_rng(9)
    base = 0.5 + rng.normal(scale=0.001, size=3)
    arms = {("baseline", 0.0): base, ("l2", 1.0): base - 0.1 + rng.normal(scale=1e-3, size=3)}
    arms |= {("l1", 1.0): base - 0.2, ("combined", 1.0): base - 0.001}
    found = better_on_validation(as_arms(arms))
    assert found["remedy"].tolist() == ["l2", "l1"]
    assert better_on_validation(as_arms(arms), 0.15)["remedy"].tolist() == ["l1"]
