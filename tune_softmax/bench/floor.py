"""The floor of packed training: its matrix products alone, at the speed torch does them here.

Of a GPU, where products so narrow would measure how fast they are launched, it is what the
products take at the rate of a large one, or the images at the rate of a large copy, whichever is
more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from tune_softmax.engine.torch_group import EVALUATION_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tune_softmax.engine.tensors import TensorData

__all__ = ["synchronize", "time_at_peak", "time_products"]

# Rows of the large product, bytes of the large copy, and how often each is timed, the best counts.
PEAK_ROWS = 8192
PEAK_BYTES = 2**30
PEAK_REPEATS = 5


def time_products(rows: int, num_trials: int, hidden_units: int, data: TensorData) -> float:
    """Return seconds of one group's products in one epoch: logits, gradients, validation logits.

    They run over the same buffers again and again, so that not even reading the data is counted.

    Args:
        rows: Images in a micro-batch.
        num_trials: P; the first products have C * P columns, or H * P.
        hidden_units: H, or 0; with a hidden layer each trial has a second layer of its own.
        data: Where the sizes and the device come from.
    """
    products = _Products(max(rows, EVALUATION_ROWS), num_trials, hidden_units, data)
    train_lengths = _split(len(data.train), rows)
    validation_lengths = _split(len(data.validation), EVALUATION_ROWS)
    synchronize(data.device)
    started = time.perf_counter()
    for length in train_lengths:
        products.forward(length)
        products.backward(length)
    for length in validation_lengths:
        products.forward(length)
    synchronize(data.device)
    return time.perf_counter() - started


def time_at_peak(
    num_trials: int,
    num_terms: int,
    data: TensorData,
    *,
    rows: int = PEAK_ROWS,
    num_bytes: int = PEAK_BYTES,
) -> float:
    """Return seconds of an epoch of P trials at the device's measured peak.

    Args:
        num_trials: P.
        num_terms: bfloat16 terms of weights and residuals; each product is computed for each.
        data: Where the sizes and the device come from; its images are read once forward and once
            backward, by all trials together.
        rows: Of the square matrices of bfloat16 that are multiplied.
        num_bytes: What is copied: read once and written once.
    """
    features, classes = data.num_features + 1, data.num_classes
    num_images = 2 * len(data.train) + len(data.validation)  # forward, backward; forward
    num_operations = 2 * num_terms * features * classes * num_images * num_trials
    num_read = data.num_features * num_images
    matrix = torch.ones(rows, rows, dtype=torch.bfloat16, device=data.device)
    memory = torch.empty(num_bytes, dtype=torch.uint8, device=data.device)
    other = torch.empty_like(memory)
    product = _best(lambda: torch.mm(matrix, matrix), data.device)
    copy = _best(lambda: other.copy_(memory), data.device)
    return max(num_operations / (2 * rows**3 / product), num_read / (2 * num_bytes / copy))


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Return the fewest seconds that something took, once it had been done before."""
    work()
    seconds = []
    for _ in range(PEAK_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class _Products:
    """The matrix products of one group and nothing else.

    Args:
        rows: Images at most.
        num_trials: P.
        hidden_units: H, or 0.
        data: Where D, C and the device come from.
    """

    def __init__(self, rows: int, num_trials: int, hidden_units: int, data: TensorData) -> None:
        features, classes = data.num_features + 1, data.num_classes
        columns = (hidden_units or classes) * num_trials
        self._inputs = torch.rand(rows, features, device=data.device)
        self._weights = torch.rand(features, columns, device=data.device)
        self._outputs = torch.empty(rows, columns, device=data.device)
        self._gradient = torch.empty(features, columns, device=data.device)
        self._second: tuple[Tensor, Tensor, Tensor] | None = None
        if hidden_units:
            shape = (num_trials, hidden_units)
            self._second = (
                torch.rand(*shape, classes, device=data.device),
                torch.rand(num_trials, rows, hidden_units, device=data.device),
                torch.rand(num_trials, rows, classes, device=data.device),
            )

    def forward(self, length: int) -> None:
        """Multiply for the logits of so many images."""
        torch.mm(self._inputs[:length], self._weights, out=self._outputs[:length])
        if self._second is not None:
            weights, hidden, _ = self._second
            torch.bmm(hidden[:, :length], weights)  # (P, B, C)

    def backward(self, length: int) -> None:
        """Multiply for the gradients from so many images."""
        if self._second is not None:
            weights, hidden, residual = self._second
            torch.bmm(hidden[:, :length].mT, residual[:, :length])  # (P, H, C)
            torch.bmm(residual[:, :length], weights.mT)  # (P, B, H)
        torch.mm(self._inputs[:length].T, self._outputs[:length], out=self._gradient)


def _split(total: int, length: int) -> list[int]:
    """Return the lengths of a walk over `total` rows, the last one shorter where it must be."""
    return [min(length, total - start) for start in range(0, total, length)]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all it was asked; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
