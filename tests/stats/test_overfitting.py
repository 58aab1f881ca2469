"""Overfitting: found where a loss rises again, and not in noise, over many simulated studies."""

import math

import numpy as np
import pandas as pd
import pytest

from tune_softmax.errors import ResultsError
from tune_softmax.stats.intervals import mean_interval, paired_intervals
from tune_softmax.stats.overfitting import _from_best_to_last, overfitting


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
