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
    from torch import Tensor

__all__ = ["build_model", "initial_weights", "layer_widths"]


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
    layers: list[nn.Module] = [nn.Flatten()]
    for weight in initial_weights(seed, number, widths, initial_std):
        if len(layers) > 1:
            layers.append(nn.ReLU())
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.zero_()
        layers.append(linear)
    return nn.Sequential(*layers)
