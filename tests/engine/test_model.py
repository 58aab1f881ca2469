"""The model: its layers and its initial weights."""

import pytest
import torch
from torch import nn

from tune_softmax.engine.draws import initial_weights, layer_widths
from tune_softmax.engine.model import build_model


def _build(hidden_units=0, *, seed=0, number=0, initial_std=0.01):
    return build_model((4, 5), 3, hidden_units, seed=seed, number=number, initial_std=initial_std)


def test_softmax_regression_is_flatten_and_linear():
    """Without a hidden layer the model is one matrix and one bias."""
    model = _build()
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear]
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == {
        "1.weight": (3, 20),
        "1.bias": (3,),
    }
    assert model(torch.rand(7, 4, 5)).shape == (7, 3)


def test_a_hidden_layer_has_a_relu_after_it():
    """With one there is a second matrix, and ReLU between."""
    model = _build(6)
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(value.shape) for value in model.parameters()] == [(6, 20), (6,), (3, 6), (3,)]


def test_widths_leave_out_a_hidden_layer_of_no_units():
    """0 hidden units mean no such layer."""
    assert layer_widths(20, 0, 3) == (20, 3)
    assert layer_widths(20, 6, 3) == (20, 6, 3)


@pytest.mark.parametrize("hidden_units", [0, 6])
def test_the_model_starts_from_the_drawn_weights(hidden_units):
    """Its matrices are those of `initial_weights`, bit for bit, and its biases zero."""
    model = _build(hidden_units, seed=3, number=9, initial_std=0.5)
    weights = initial_weights(3, 9, layer_widths(20, hidden_units, 3), 0.5)
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer, weight in zip(linears, weights, strict=True):
        assert torch.equal(layer.weight, torch.from_numpy(weight))
        assert not layer.bias.any()
        assert layer.weight.requires_grad


def test_building_leaves_no_trace_of_its_own_initialization():
    """Two models of one seed are equal although `nn.Linear` draws weights of its own."""
    first, second = _build(6, seed=1), _build(6, seed=1)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
