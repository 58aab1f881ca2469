"""Verdicts on remedies: against worked examples, scipy.stats, and many simulated studies."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.stats.intervals import paired_intervals
from tune_softmax.stats.margins import Verdict
from tune_softmax.stats.verdicts import (
    better_on_validation,
    choose_strengths,
    effects,
    losses_at_stops,
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
