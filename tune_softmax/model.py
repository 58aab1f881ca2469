"""Softmax regression and its one-hidden-layer variant: initial weights, and the plain module.

The initial weights are made here once for both ways to train, one trial alone and in a pack.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from tune_softmax.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["build_model", "from_layers", "initial_weights", "layer_widths"]


def initial_weights(
    seed: int, number: int, widths: tuple[int, ...], initial_std: float
) -> list[Tensor]:
    """Draw the weight matrix of every layer; biases start at zero.

    Args:
        seed: The experiment's seed.
        number: The trial's number.
        widths: Units from input to output: (D, C), or (D, H, C) with a hidden layer.
        initial_std: Standard deviation of the normal distribution, mean zero.

    Returns:
        One float32 tensor a layer, (out, in) as `nn.Linear` holds it, on the CPU.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "weights", number))
    return [
        torch.randn(outputs, inputs, generator=generator) * initial_std
        for inputs, outputs in pairwise(widths)
    ]


def layer_widths(num_features: int, hidden_units: int, num_classes: int) -> tuple[int, ...]:
    """Return the units of each layer from input to output; 0 hidden units mean no such layer."""
    hidden = (hidden_units,) if hidden_units else ()
    return (num_features, *hidden, num_classes)


def build_model(
    image_shape: tuple[int, int],
    num_classes: int,
    hidden_units: int,
    *,
    seed: int,
    number: int,
    initial_std: float,
) -> nn.Sequential:
    """Build `Flatten` + `Linear`, with `Linear` + `ReLU` between them for a hidden layer.

    Args:
        image_shape: (H, W).
        num_classes: C, the number of outputs.
        hidden_units: Width of the hidden layer; 0 for softmax regression.
        seed: The experiment's seed.
        number: The trial's number.
        initial_std: Standard deviation of the initial weights.
    """
    widths = layer_widths(prod(image_shape), hidden_units, num_classes)
    weights = initial_weights(seed, number, widths, initial_std)
    return _sequential([(weight, torch.zeros(weight.shape[0])) for weight in weights])


def from_layers(layers: Sequence[Tensor]) -> nn.Sequential:
    """Build the same module around trained weights.

    Args:
        layers: What `packed.Pack.weights` gives: (in + 1, out) each, the last row the bias.
    """
    return _sequential([(layer[:-1].T, layer[-1]) for layer in layers])


def _sequential(layers: Sequence[tuple[Tensor, Tensor]]) -> nn.Sequential:
    """Build the module from each layer's weights, (out, in), and bias, (out,)."""
    modules: list[nn.Module] = [nn.Flatten()]
    for weight, bias in layers:
        if len(modules) > 1:
            modules.append(nn.ReLU())
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        modules.append(linear)
    return nn.Sequential(*modules)
