"""Softmax regression and its one-hidden-layer variant as the plain module."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tune_softmax.engine.draws import initial_weights, layer_widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["build_model", "from_layers"]


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
    return _sequential(
        [(torch.from_numpy(weight), torch.zeros(len(weight))) for weight in weights]
    )


def from_layers(layers: Sequence[NDArray[Any]]) -> nn.Sequential:
    """Build the same module around trained weights.

    Args:
        layers: What `pack.Pack.weights` returns: (in + 1, out) each, the last row the bias.
    """
    tensors = [torch.from_numpy(layer) for layer in layers]
    return _sequential([(layer[:-1].T, layer[-1]) for layer in tensors])


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
