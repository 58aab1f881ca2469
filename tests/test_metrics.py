"""What an epoch measured."""

from dataclasses import replace

import pytest

from tune_softmax.metrics import CURVES, EpochMetrics

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
