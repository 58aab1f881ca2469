"""What a trial draws: its initial weights and the order of its images, without torch.

Both come from the Mersenne Twister that numpy and torch share, whose stream numpy keeps for good
(NEP 19), and are what `torch.randn` and `torch.randperm` draw from the same seed: orders exactly,
weights within their rounding. Importing torch takes seconds that most workers do not need.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from tune_softmax.data.seeding import derive_seed
from tune_softmax.engine import cpu_kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["initial_weights", "layer_widths", "sample_order"]

# torch turns sixteen uniform numbers at a time into as many normal ones.
NORMALS_AT_ONCE = 16
UNIFORM_BITS = 24


def initial_weights(
    seed: int, number: int, widths: tuple[int, ...], initial_std: float
) -> list[NDArray[np.float32]]:
    """Draw the weight matrix of every layer; biases start at zero.

    Args:
        seed: The experiment's seed.
        number: The trial's number.
        widths: Units from input to output: (D, C), or (D, H, C) with a hidden layer.
        initial_std: Standard deviation of the normal distribution, mean zero.

    Returns:
        One float32 array a layer, (out, in) as `nn.Linear` holds it.
    """
    stream = np.random.RandomState(derive_seed(seed, "weights", number))
    shapes = [(outputs, inputs) for inputs, outputs in pairwise(widths)]
    return [
        (_normal(stream, prod(shape)).reshape(shape) * np.float32(initial_std)) for shape in shapes
    ]


def sample_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the training images.

    It depends on the seed and the epoch alone, so that every trial of a pack, and a trial run by
    itself, on any device, sees the same mini-batches.

    Args:
        seed: The experiment's seed.
        epoch: 1 for the first.
        num_samples: N.

    Returns:
        A permutation of 0..N-1, int64, (N,).
    """
    stream_seed = derive_seed(seed, "order", epoch)
    kernels = cpu_kernels.find()
    if kernels is None:  # then torch trains anyway, and Python's loop would take as long as that
        import torch

        generator = torch.Generator().manual_seed(stream_seed)
        order: NDArray[np.int64] = torch.randperm(num_samples, generator=generator).numpy()
        return order
    stream = np.random.RandomState(stream_seed)
    return kernels.shuffled(_bits(stream, num_samples))


def layer_widths(num_features: int, hidden_units: int, num_classes: int) -> tuple[int, ...]:
    """Return the units of each layer from input to output; 0 hidden units mean no such layer."""
    hidden = (hidden_units,) if hidden_units else ()
    return (num_features, *hidden, num_classes)


def _bits(stream: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    """Return the twister's next numbers as they are, 32 bits each."""
    return stream.randint(0, 2**32, size=count, dtype=np.uint32)


def _normal(stream: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """Draw standard normal numbers: Box and Muller 1958, by halves of sixteen.

    What is over sixteens is covered by a last sixteen that begins before it and is drawn anew.
    """
    num_whole = count // NORMALS_AT_ONCE * NORMALS_AT_ONCE
    whole = _box_muller(_uniform(stream, count)[:num_whole])
    if count == num_whole:
        return whole
    last = _box_muller(_uniform(stream, NORMALS_AT_ONCE))
    num_kept = max(0, count - NORMALS_AT_ONCE)
    return np.concatenate([whole[:num_kept], last[: count - num_kept]])


def _uniform(stream: np.random.RandomState, count: int) -> NDArray[np.float64]:
    digits = _bits(stream, count) & np.uint32(2**UNIFORM_BITS - 1)
    uniform: NDArray[np.float64] = digits.astype(np.float64) / 2**UNIFORM_BITS
    return uniform


def _box_muller(uniform: NDArray[np.float64]) -> NDArray[np.float32]:
    halves = uniform.reshape(-1, 2, NORMALS_AT_ONCE // 2)
    radius = np.sqrt(-2 * np.log(1 - halves[:, 0]))
    angle = 2 * np.pi * halves[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.astype(np.float32).ravel()
