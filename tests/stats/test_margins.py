"""The smallest difference that matters."""

import math

import pytest

from tune_softmax.errors import ExperimentError
from tune_softmax.stats.margins import default_margin, margin_or_default


def test_the_default_margin_is_a_part_of_a_loss():
    """1 % of it and at least 0.001 nats; of an accuracy 20 images in 10,000."""
    assert default_margin("test_loss", 0.45) == pytest.approx(0.0045)
    assert default_margin("test_loss", 0.01) == 0.001
    assert default_margin("gap", -0.5) == 0.001
    assert default_margin("validation_loss", math.inf) == 0.001
    assert default_margin("test_accuracy", 0.45) == 0.002


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan])
def test_an_odd_margin_is_refused(margin):
    """Below 0, and what no difference can reach."""
    with pytest.raises(ExperimentError, match="margin: must be a number >= 0, not"):
        margin_or_default(margin, "test_loss", 0.5)


def test_a_margin_that_is_given_counts():
    """Without one it is the default."""
    assert margin_or_default(0, "test_loss", 0.5) == 0
    assert margin_or_default(0.02, "test_loss", 0.5) == 0.02
    assert margin_or_default(None, "test_loss", 0.5) == 0.005
