"""What a trial draws: what torch draws too, whatever was drawn before."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.data.seeding import derive_seed
from tune_softmax.engine import cpu_kernels
from tune_softmax.engine.draws import initial_weights, sample_order


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(0, 10**6),
    rows=st.integers(1, 12),
    columns=st.integers(16, 90),
)
def test_weights_are_torchs_within_their_rounding(seed, number, rows, columns):
    """Of sixteen weights and more each is what `torch.randn` gives for the same seed."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights", number))
    expected = torch.randn(rows, columns, generator=generator).numpy()
    (found,) = initial_weights(seed, number, (columns, rows), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), epoch=st.integers(1, 100), num=st.integers(1, 3000))
def test_orders_are_torchs(seed, epoch, num):
    """With kernels an order is, image for image, what `torch.randperm` gives for the same seed."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    expected = torch.randperm(num, generator=generator).tolist()
    assert sample_order(seed, epoch, num).tolist() == expected


def test_orders_are_the_same_without_kernels(monkeypatch):
    """Where none are built torch draws them."""
    assert cpu_kernels.find() is not None
    found = sample_order(3, 2, 1000)
    monkeypatch.setattr(cpu_kernels, "find", lambda: None)
    np.testing.assert_array_equal(sample_order(3, 2, 1000), found)


@pytest.mark.parametrize("widths", [(1, 1), (3, 5), (5, 3, 1), (16, 1), (17, 1), (1, 31)])
def test_a_few_weights_are_drawn_too(widths):
    """However few there are, all are drawn, and differ."""
    weights = initial_weights(0, 0, widths, 1.0)
    assert [layer.shape for layer in weights] == [
        (outputs, inputs) for inputs, outputs in itertools.pairwise(widths)
    ]
    for layer in weights:
        assert layer.dtype == np.float32
        assert len(np.unique(layer)) == layer.size
        assert np.isfinite(layer).all()


def test_weights_depend_on_seed_and_number_alone():
    """The same pair draws the same bits whatever was drawn before; another pair draws others."""
    first = initial_weights(1, 2, (20, 3), 0.01)[0]
    np.random.rand(10)  # noqa: NPY002 - the global one is meant
    np.testing.assert_array_equal(initial_weights(1, 2, (20, 3), 0.01)[0], first)
    for other in ((1, 3), (2, 2), (2, 1)):
        assert (initial_weights(*other, (20, 3), 0.01)[0] != first).any()


def test_weights_are_normal_with_the_given_deviation():
    """Their mean is zero, their standard deviation as asked, and doubling it doubles them."""
    weights = initial_weights(0, 0, (784, 100), 0.01)[0]
    assert weights.mean() == pytest.approx(0, abs=2e-4)
    assert weights.std() == pytest.approx(0.01, rel=0.02)
    np.testing.assert_allclose(initial_weights(0, 0, (784, 100), 0.02)[0], 2 * weights)
    assert not initial_weights(0, 0, (784, 100), 0.0)[0].any()


def test_an_order_visits_every_image_once():
    """It is a permutation, another one in every epoch and for every seed."""
    orders = [sample_order(seed, epoch, 100) for seed in (0, 1) for epoch in (1, 2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_the_same_seed_gives_the_same_order():
    """What was drawn before does not matter."""
    first = sample_order(5, 3, 50)
    np.random.rand(10)  # noqa: NPY002 - the global one is meant
    sample_order(5, 2, 50)
    np.testing.assert_array_equal(sample_order(5, 3, 50), first)


def _global_numpy_state():
    return np.random.get_state()  # noqa: NPY002 - the global one is meant


def test_drawing_leaves_the_global_generators_alone():
    """It neither reads nor moves torch's and numpy's own."""
    state, (_, keys, *rest) = torch.get_rng_state(), _global_numpy_state()
    sample_order(0, 1, 10)
    initial_weights(0, 0, (20, 3), 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    _, keys_after, *rest_after = _global_numpy_state()
    assert (keys_after == keys).all()
    assert rest_after == rest
