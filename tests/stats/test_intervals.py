"""Intervals: against their formulas, published values, exact sums, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_softmax.errors import ExperimentError, ResultsError
from tune_softmax.stats.intervals import (
    binomial_interval,
    mean_interval,
    paired_intervals,
    recall_differences,
)

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
ANY_NUMBERS = NUMBERS | st.sampled_from([math.nan, math.inf, -math.inf])


def test_three_values_by_hand():
    """The mean of 1, 2, 3 is 2 ± 4.3027 · 1 / √3, the quantile as tables have it."""
    interval = mean_interval([1, 2, 3])
    assert (interval.mean, interval.num_values, interval.reason) == (2, 3, "")
    assert interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert 2 - interval.low == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


@settings(max_examples=40)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1),
    st.floats(0.5, 0.999),
)
def test_mean_interval_is_students(values, confidence):
    """It is mean ± t(n - 1) · s / √n for any values with a spread, at any confidence."""
    interval = mean_interval(values, confidence)
    num = len(values)
    quantile = stats.t.isf((1 - confidence) / 2, num - 1)
    half_width = quantile * np.std(values, ddof=1) / math.sqrt(num)
    mean = np.mean(values)
    assert (interval.low, interval.high) == pytest.approx((mean - half_width, mean + half_width))


@given(st.lists(ANY_NUMBERS, min_size=1, max_size=6))
def test_mean_interval_bears_any_values(values):
    """It holds its mean, or it is unbounded and says why; never both, and never without a word."""
    interval = mean_interval(values)
    if interval.reason:
        assert (interval.low, interval.high) == (-math.inf, math.inf)
    else:
        assert interval.low < interval.mean < interval.high
        assert math.isfinite(interval.high - interval.low)
    if not np.isfinite(values).all() or len(set(values)) == 1:
        assert interval.reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5], "one seed shows no spread"),
        ([0.5, 0.5, 0.5], "the same at all 3 seeds: no spread to judge by"),
        ([0.0, 0.0], "0 at all 2 seeds: no spread to judge by"),
        ([0.3, 0.1 + 0.2], "the same at all 2 seeds: no spread to judge by"),
        ([0.5, math.nan, 0.4, math.inf], "not finite at 2 of 4 seeds"),
    ],
)
def test_a_mean_without_interval_says_why(values, reason):
    """One seed, no spread but rounding, and what is not finite give no interval."""
    interval = mean_interval(values)
    assert interval.reason == reason
    assert (interval.low, interval.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [[1, 2]], 3])
def test_a_mean_needs_a_row_of_numbers(values):
    """Nothing, a table and a single number are refused."""
    with pytest.raises(ResultsError, match="one or more numbers in a row, not an array of shape"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 0.49, 1, 95, math.nan])
def test_an_odd_confidence_is_refused(confidence):
    """Whichever interval is asked for; 95 for 95 % is the usual slip."""
    message = f"confidence: must be at least 0.5 and below 1, not {confidence}"
    for call in (
        lambda: mean_interval([1, 2], confidence),
        lambda: binomial_interval(0.5, 10, confidence),
        lambda: recall_differences([[1]], [[1]], confidence),
    ):
        with pytest.raises(ExperimentError, match=message):
            call()


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_paired_intervals_cover_the_truth(num_seeds):
    """Of 20,000 intervals at 95 % about 19,000 hold the true difference: ± 4 standard errors."""
    rng = np.random.default_rng(num_seeds)
    seeds = rng.normal(scale=3, size=(num_seeds, 20_000))  # the same for both sides
    before = seeds + rng.normal(size=seeds.shape)
    after = seeds + 0.7 + rng.normal(scale=2, size=seeds.shape)
    paired = paired_intervals(before, after, 0.025)
    covers = (paired.low < 0.7) & (paired.high > 0.7)
    assert covers.mean() == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 20_000))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8).filter(
        lambda pairs: np.std([b - a for a, b in pairs]) > 1e-6
    )
)
def test_paired_intervals_are_the_paired_t_tests(pairs):
    """The ends and the p-value are those of `after` minus `before`, by their formulas."""
    before, after = np.array(pairs).T[:, :, None]
    paired = paired_intervals(before, after, 0.025)
    differences = (after - before)[:, 0]
    mean, num = differences.mean(), len(differences)
    error = differences.std(ddof=1) / math.sqrt(num)
    half_width = stats.t.isf(0.025, num - 1) * error
    ends = mean - half_width, mean + half_width
    assert (paired.low[0], paired.high[0]) == pytest.approx(ends, rel=1e-6)
    assert paired.p_value[0] == pytest.approx(2 * stats.t.sf(abs(mean / error), num - 1), rel=1e-6)


@settings(max_examples=40)
@given(st.floats(1e-3, 1e3), st.lists(st.integers(-40, 40), min_size=2, max_size=5))
def test_values_that_nearly_agree_give_no_warning(value, units):
    """Spreads at the limit of rounding are none, or are judged without SciPy's doubt."""
    values = [value * (1 + unit * np.finfo(float).eps) for unit in units]
    mean_interval(values)
    paired_intervals(np.full((len(values), 1), value), np.array(values)[:, None], 0.025)


def test_a_small_tail_keeps_its_digits():
    """Corrected for many comparisons, the quantile is still that of scipy.stats."""
    before, after = np.zeros((5, 1)), np.array([[1.0], [2], [3], [4], [5]])
    low = paired_intervals(before, after, 1e-6).low[0]
    assert low == pytest.approx(3 - stats.t.isf(1e-6, 4) * math.sqrt(2.5 / 5))


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_as_published(successes, num, low, high):
    """The four examples of Newcombe, Statistics in Medicine 17 (1998), 857-872, method 3."""
    interval = binomial_interval(successes / num, num)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 100_000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilsons_interval_agrees_with_scipy(num, share, confidence):
    """For any count it is scipy.stats.binomtest's, holds the share, and stays within 0 and 1."""
    successes = round(share * num)
    interval = binomial_interval(successes / num, num, confidence)
    expected = stats.binomtest(successes, num).proportion_ci(confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert 0 <= interval.low <= successes / num <= interval.high <= 1


@pytest.mark.parametrize("accuracy", [0.845, 0.97, 0.99])
def test_wilsons_interval_covers_where_good_models_are(accuracy):
    """On 360 images it covers 93 to 97.5 %, summed exactly; the usual ± z·s falls below 91 %."""
    counts = np.arange(361)
    chance = stats.binom.pmf(counts, 360, accuracy)
    intervals = [binomial_interval(count / 360, 360) for count in counts]
    covers = np.array([i.low <= accuracy <= i.high for i in intervals])
    assert 0.93 <= chance[covers].sum() <= 0.975
    if accuracy == 0.99:
        usual = 1.96 * np.sqrt(counts / 360 * (1 - counts / 360) / 360)
        assert chance[abs(counts / 360 - accuracy) <= usual].sum() < 0.91


def test_ten_thousand_images_tell_accuracies_apart_to_0_7_per_cent():
    """Half of the interval at Fashion-MNIST's 0.845 is 1.96 · √(0.845 · 0.155 / 10,000)."""
    assert binomial_interval(0.845, 10_000).half_width == pytest.approx(0.0071, abs=5e-5)


@pytest.mark.parametrize(
    ("accuracy", "num_images", "message"),
    [
        (84.5, 100, "accuracy: must be a fraction from 0 to 1, not 84.5; divide per cent by 100"),
        (math.nan, 100, "accuracy: must be a fraction from 0 to 1, not nan"),
        (0.5, 0, "num_images: must be at least 1, not 0"),
    ],
)
def test_odd_shares_are_refused(accuracy, num_images, message):
    """Per cent, NaN and an empty test set."""
    with pytest.raises(ExperimentError, match=message):
        binomial_interval(accuracy, num_images)


def confusion(*right_of):
    """Return a confusion matrix; each class is (right, of), its errors in the next class."""
    matrix = np.diag([right for right, _ in right_of])
    for i, (right, of) in enumerate(right_of):
        matrix[i, (i + 1) % len(right_of)] += of - right
    return matrix


@pytest.mark.parametrize(("a", "b", "ends"), [(3, 9, (0.1705, 0.8090)), (0, 10, (0.6075, 1))])
def test_newcombes_interval_as_published(a, b, ends):
    """Two examples of his second paper of 1998, method 10: 9/10 - 3/10 and 10/10 - 0/10."""
    # Of two classes Bonferroni's correction makes each miss half: 0.9 together is 0.95 for one.
    table = recall_differences(confusion((a, 10), (1, 2)), confusion((b, 10), (1, 2)), 0.9)
    assert table["num_images"][0] == 10
    assert table["difference"][0] == pytest.approx((b - a) / 10)
    assert (table["low"][0], table["high"][0]) == pytest.approx(ends, abs=5e-5)
    assert table["is_different"].tolist() == [True, False]


def test_recalls_of_equal_models_are_not_different():
    """A matrix against itself: no difference, and intervals about 0."""
    table = recall_differences(confusion((90, 100), (10, 100)), confusion((90, 100), (10, 100)))
    assert list(table["difference"]) == [0, 0]
    assert not table["is_different"].any()
    assert (table["low"] < 0).all()
    assert (table["high"] > 0).all()


def test_a_class_without_images_has_no_recall():
    """Its row stays, with NaN and an interval that says nothing."""
    table = recall_differences(confusion((5, 9), (0, 0)), confusion((6, 9), (0, 0)))
    row = table.iloc[1]
    assert math.isnan(row["recall_a"])
    assert math.isnan(row["difference"])
    assert (row["low"], row["high"], row["is_different"]) == (-1, 1, False)


@pytest.mark.parametrize("overlap", [0, 0.8], ids=["independent", "alike"])
def test_recalls_of_models_equal_in_truth_seldom_differ(overlap):
    """In at most 5 % of 200 pairs, plus three standard errors, is any class called different.

    `overlap` is the share of images on which both models are right or wrong together.
    """
    rng = np.random.default_rng(7)
    different = 0
    for _ in range(200):
        first, second = rng.random((2, 10, 200)) < 0.85
        second = np.where(rng.random((10, 200)) < overlap, first, second)
        matrices = [confusion(*((n, 200) for n in x.sum(axis=1))) for x in (first, second)]
        different += recall_differences(*matrices)["is_different"].any()
    assert different <= 200 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 200))
    assert (different == 0) == (overlap > 0)  # too wide for models that are alike


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[1, 2]], [[1, 2]], "both must be square and of one size"),
        ([1], [1], "both must be square and of one size"),
        ([[1]], [[1, 0], [0, 1]], "both must be square and of one size"),
        ([[2, 0], [0, 1]], [[1, 0], [0, 1]], r"not \[2.0, 1.0\] and \[1.0, 1.0\]"),
        ([[-1, 2], [0, 1]], [[1, 0], [0, 1]], "must hold counts"),
        ([[math.nan]], [[math.nan]], "must hold counts"),
    ],
)
def test_matrices_that_are_not_of_one_test_set_are_refused(a, b, message):
    """Other shapes, other numbers of images for a class, and what is no count."""
    with pytest.raises(ResultsError, match=message):
        recall_differences(a, b)
