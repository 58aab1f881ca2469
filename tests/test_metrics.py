"""What an epoch measured."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tune_softmax.config import SCHEDULES
from tune_softmax.metrics import CURVES, EpochMetrics, num_averaged, trial_value

METRICS = EpochMetrics(0.5, 0.8, 0.6, 0.7, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["train_loss", "validation_loss"])
def test_a_loss_that_is_not_finite_means_divergence(name, value):
    """NaN or infinity in either loss says that training has diverged."""
    assert METRICS.is_finite
    assert not replace(METRICS, **{name: value}).is_finite


def test_the_curves_are_the_four_measurements():
    """Seconds are a cost, not a curve."""
    assert CURVES == ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


@pytest.mark.parametrize(
    ("num_epochs", "expected"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (20, 5), (30, 8)]
)
def test_a_constant_rate_is_judged_by_the_last_quarter(num_epochs, expected):
    """Rounded up; a rate that falls by the last epoch alone."""
    assert num_averaged(num_epochs, "constant") == expected
    assert {num_averaged(num_epochs, name) for name in SCHEDULES if name != "constant"} == {1}


def test_a_value_is_the_mean_of_the_last_epochs():
    """Of as many as count; NaN and infinity stay what they are."""
    curve = [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.25, 0.75]
    assert trial_value(curve, "constant") == 0.5
    assert trial_value(curve, "cosine") == 0.75
    assert math.isnan(trial_value([0.5, math.nan], "constant"))
    assert trial_value([math.inf], "constant") == math.inf


def test_averaging_finds_the_better_of_two_that_wander():
    """Of losses with one mean lower, but a larger spread, the last one errs far more often."""
    draw = np.random.default_rng(0)
    calm, wild = (
        0.42 + 0.002 * draw.normal(size=(500, 20)),
        0.43 + 0.01 * draw.normal(size=(500, 20)),
    )
    errors = {
        schedule: sum(
            trial_value(two.tolist(), schedule) < trial_value(one.tolist(), schedule)
            for one, two in zip(calm, wild, strict=True)
        )
        for schedule in ("constant", "linear")
    }
    assert errors["linear"] > 50
    assert errors["constant"] < errors["linear"] / 3
