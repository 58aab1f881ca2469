"""Confidence intervals: of means and paired differences over seeds, and of shares of images.

Over seeds an interval says what another seed would change with the same images; over images,
what other images would change with the same model. Neither contains the other. An interval that
has no base (one seed, no spread, a value that is not finite) reaches from -inf to inf.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from tune_softmax.errors import ExperimentError, ResultsError

__all__ = [
    "BinomialInterval",
    "MeanInterval",
    "PairedIntervals",
    "binomial_interval",
    "check_confidence",
    "mean_interval",
    "paired_intervals",
    "recall_differences",
]

_Array = NDArray[np.float64]

_LEAST_CONFIDENCE = 0.5
_ROUNDING = 32 * np.finfo(np.float64).eps  # what a few sums and a mean can lose


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean over seeds, and how surely it is known.

    Attributes:
        mean: Of all values; not finite if one of them is not.
        low: Lower end; -inf where there is no interval.
        high: Upper end; inf where there is no interval.
        num_values: How many values.
        reason: Why there is no interval; empty where there is one.
    """

    mean: float
    low: float
    high: float
    num_values: int
    reason: str


@dataclass(frozen=True, slots=True)
class BinomialInterval:
    """Where the accuracy on all images of this kind may be, as seen from finitely many.

    Attributes:
        low: Lower end, from 0 to the accuracy.
        high: Upper end, from the accuracy to 1.
    """

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its length; its middle is a little nearer to 1/2 than the accuracy."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class PairedIntervals:
    """Mean differences over n seeds for k comparisons; arrays of shape (k,).

    Attributes:
        mean: Mean difference, float64; not finite if a value is not.
        low: Lower ends; -inf where there is no interval.
        high: Upper ends; inf where there is no interval.
        p_value: Of the two-sided paired t test, uncorrected; NaN where there is no interval.
        reasons: Why there is no interval; empty where there is one.
    """

    mean: _Array
    low: _Array
    high: _Array
    p_value: _Array
    reasons: list[str]


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> MeanInterval:
    """Return the mean over seeds with Student's t interval.

    The interval is mean ± t(n - 1) · s / √n. It is exact for normal values and close for others
    that are not far skewed. Values without spread give none: what makes them equal may be a
    metric too coarse to tell them apart (accuracy counts images), and then s = 0 claims too much.

    Args:
        values: (n,), one for each seed.
        confidence: In [0.5, 1).

    Raises:
        ExperimentError: `confidence` is out of range.
        ResultsError: There is no value.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908), 1-25; Rice,
    Mathematical Statistics and Data Analysis, 3rd ed., section 8.5.3.
    """
    check_confidence(confidence)
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not len(column):
        raise ResultsError(
            f"values: must be one or more numbers in a row, not an array of shape {column.shape}; "
            "give one number for each seed"
        )
    found = _t_tests(column[:, None], np.abs(column), (1 - confidence) / 2)
    ends = float(found.low[0]), float(found.high[0])
    return MeanInterval(float(found.mean[0]), *ends, len(column), found.reasons[0])


def paired_intervals(before: _Array, after: _Array, tail: float) -> PairedIntervals:
    """Return how much higher `after` is than `before`, paired over seeds: Student's paired t.

    What a seed does to both sides cancels in their difference: where they vary alike, the
    interval is about √(1 - correlation) times as wide as one that forgets the pairs.

    Args:
        before: (n, k), or (n, 1) where all are compared with one; a row for each seed.
        after: (n, k), or (n, 1).
        tail: Probability left out at either end, in (0, 0.5]; divide it by the number of
            comparisons to correct for them.

    Source: Rice, Mathematical Statistics and Data Analysis, 3rd ed., section 11.3.1.
    """
    with np.errstate(invalid="ignore"):  # inf - inf is the NaN that it should be
        differences = after - before
    return _t_tests(differences, np.maximum(np.abs(before), np.abs(after)), tail)


def binomial_interval(
    accuracy: float, num_images: int, confidence: float = 0.95
) -> BinomialInterval:
    """Return the part of an accuracy's uncertainty that is due to a finite test set.

    Wilson's score interval: every p that is within z of its *own* standard errors of the
    accuracy. Unlike accuracy ± z·√(accuracy · (1 - accuracy) / n) it keeps its coverage near 1,
    where good models are, and stays within [0, 1]. All seeds meet the same test images, so that
    more seeds do not shrink it, and n is the number of images for a mean over seeds too; for
    such a mean it is a little too wide.

    Args:
        accuracy: Fraction of the images, in [0, 1].
        num_images: In the test set, at least 1.
        confidence: In [0.5, 1).

    Raises:
        ExperimentError: An argument is out of range.

    Source: Wilson, JASA 22 (1927), 209-212; Brown, Cai and DasGupta, "Interval estimation for a
    binomial proportion", Statistical Science 16 (2001), 101-133, section 3.1.1.
    """
    check_confidence(confidence)
    if num_images < 1:
        raise ExperimentError(f"num_images: must be at least 1, not {num_images}")
    if not 0 <= accuracy <= 1:
        raise ExperimentError(
            f"accuracy: must be a fraction from 0 to 1, not {accuracy}; divide per cent by 100"
        )
    low, high = _wilson(np.array([accuracy]), np.array([float(num_images)]), (1 - confidence) / 2)
    return BinomialInterval(float(low[0]), float(high[0]))


def recall_differences(
    confusion_a: ArrayLike, confusion_b: ArrayLike, confidence: float = 0.95
) -> pd.DataFrame:
    """Return for every class how two models' recalls on one test set differ, and how surely.

    A class's recall is the share of its images that a model names rightly. The intervals are
    Newcombe's, from two Wilson intervals, as if each model had seen images of its own. Both saw
    the same and mostly fail at the same ones, so that their difference varies less: the
    intervals are too wide rather than too narrow. The sharper ones of McNemar's kind need the
    predictions for each image, which two confusion matrices no longer hold. Bonferroni's
    correction over the classes lets all intervals hold together. They are over images, for
    these two trained models; another seed is not in them.

    Args:
        confusion_a: Counts, (C, C): a row for each true class, a column for each predicted one.
        confusion_b: The same for the other model, every row with the same sum.
        confidence: That all C intervals hold together, in [0.5, 1).

    Returns:
        A row for each class in order: `class`, `num_images`, `recall_a`, `recall_b`,
        `difference` (b minus a), `low`, `high`, `is_different` (0 is outside). A class without
        images has NaN and the interval from -1 to 1.

    Raises:
        ExperimentError: `confidence` is out of range.
        ResultsError: They are not two confusion matrices of one test set.

    Source: Newcombe, "Interval estimation for the difference between independent proportions:
    comparison of eleven methods", Statistics in Medicine 17 (1998), 873-890, method 10.
    """
    check_confidence(confidence)
    a, b = (np.atleast_1d(np.asarray(c, np.float64)) for c in (confusion_a, confusion_b))
    num_images = _class_sizes(a, b)
    tail = (1 - confidence) / 2 / len(a)
    with np.errstate(invalid="ignore"):  # 0 / 0 for a class without images
        recall_a, recall_b = a.diagonal() / num_images, b.diagonal() / num_images
    there = num_images > 0
    difference = recall_b - recall_a
    low, high = np.full_like(difference, -1), np.full_like(difference, 1)
    p, q = recall_a[there], recall_b[there]
    (low_p, high_p), (low_q, high_q) = (_wilson(x, num_images[there], tail) for x in (p, q))
    low[there] = q - p - np.hypot(q - low_q, high_p - p)
    high[there] = q - p + np.hypot(high_q - q, p - low_p)
    columns = {
        "class": range(len(a)),
        "num_images": num_images.astype(np.int64),
        "recall_a": recall_a,
        "recall_b": recall_b,
        "difference": difference,
        "low": low,
        "high": high,
        "is_different": (low > 0) | (high < 0),
    }
    return pd.DataFrame(columns)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside [0.5, 1).

    Raises:
        ExperimentError: It is.
    """
    if not _LEAST_CONFIDENCE <= confidence < 1:
        raise ExperimentError(
            f"confidence: must be at least {_LEAST_CONFIDENCE} and below 1, not {confidence}; "
            "0.95 is usual"
        )


def _t_tests(values: _Array, sizes: _Array, tail: float) -> PairedIntervals:
    """Return Student's intervals of the means over n seeds, (n, k) to (k,), and tests against 0.

    `sizes` are those of the numbers that the values were computed from: a spread that their
    rounding can make is none.
    """
    with np.errstate(invalid="ignore"):  # infinities and NaN go through
        mean = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    is_known = spread > _ROUNDING * sizes.max(axis=0)  # NaN is not
    low, high = np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    p_value = np.full_like(mean, np.nan)
    if is_known.any():
        from scipy import stats  # which takes a second

        tests = stats.ttest_1samp(values[:, is_known], 0)
        low[is_known], high[is_known] = tests.confidence_interval(1 - 2 * tail)
        p_value[is_known] = tests.pvalue
    reasons = ["" if known else _why_none(values[:, i]) for i, known in enumerate(is_known)]
    return PairedIntervals(mean, low, high, p_value, reasons)


def _wilson(share: _Array, num: _Array, tail: float) -> tuple[_Array, _Array]:
    """Return Wilson's interval for shares of `num` images each."""
    z = -float(ndtri(tail))
    shrink = num / (num + z**2)
    middle = shrink * (share + z**2 / (2 * num))
    half_width = shrink * z * np.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    # The ends may touch 0, 1 and the share itself; rounding would pass them.
    return np.clip(middle - half_width, 0, share), np.clip(middle + half_width, share, 1)


def _class_sizes(a: _Array, b: _Array) -> _Array:
    if a.shape != b.shape or a.shape != 2 * a.shape[:1] or not a.size:
        raise ResultsError(
            f"confusion matrices: both must be square and of one size, not {a.shape} and "
            f"{b.shape}; compare two models on the same classes"
        )
    sizes: _Array = a.sum(axis=1)
    others: _Array = b.sum(axis=1)
    if min(a.min(), b.min()) < 0 or not np.array_equal(sizes, others):
        raise ResultsError(
            "confusion matrices: must hold counts, and for each true class as many images in "
            f"both, not {sizes.tolist()} and {others.tolist()}; evaluate both models on one test "
            "set, with a row for each true class"
        )
    return sizes


def _why_none(values: _Array) -> str:
    """Say why values over seeds, (n,), have no interval."""
    num = len(values)
    lost = num - int(np.isfinite(values).sum())
    if lost:
        return f"not finite at {lost} of {num} seeds"
    if num == 1:
        return "one seed shows no spread"
    return f"{'0' if not values.any() else 'the same'} at all {num} seeds: no spread to judge by"
