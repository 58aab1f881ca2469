"""The two products that all trials of a group share, in the precision asked for.

Pixels are integers up to 255, which bfloat16 (8 significant bits) and TF32 (11) hold exactly; so
below float32 images stay integers, and results are divided by the pixel that becomes 1. What is
no integer, weights, residuals and augmented images, becomes a sum of bfloat16 terms. A product of
two terms is exact in float32, in which they are added up: nothing else is rounded.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from tune_softmax.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from tune_softmax.config import Precision
    from tune_softmax.engine.tensors import TensorData

__all__ = [
    "AMPERE",
    "NUM_TERMS",
    "Products",
    "Terms",
    "bfloat16_terms",
    "check_precision",
    "has_fast_bfloat16",
    "remark_on",
]

Terms: TypeAlias = "tuple[Tensor, ...]"
"""Matrices of one shape whose sum stands for one matrix, the largest first."""

NUM_TERMS: dict[Precision, int] = {"bfloat16": 1, "bfloat16x2": 2, "float32": 3}
"""How many bfloat16 terms stand for a float32; three hold all its digits."""
# Tensor cores from this compute capability on multiply bfloat16 and TF32.
AMPERE = (8, 0)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise PackError where a device cannot compute in a precision."""
    if precision == "tf32" and device.type != "cuda":
        raise PackError(
            "model.precision: tf32 is for GPUs alone, and this pack trains on the "
            f"{device.type}; set resources.gpus_per_pack, or take float32 or bfloat16x2"
        )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether a device's products of bfloat16 are faster than those of float32.

    Of processors only those with AMX's tiles count: oneDNN, through which torch multiplies,
    computes float32 matrices in bfloat16 on no others.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def remark_on(precision: Precision, device: torch.device) -> str | None:
    """Return what to tell who asked for a precision that gains nothing on a device."""
    if precision == "float32" or has_fast_bfloat16(device):
        return None
    lacking = "a GPU of compute capability below 8.0" if device.type == "cuda" else "no AMX"
    return (
        f"model.precision: {precision} will not be faster here, with {lacking}, but slower than "
        "float32; losses are what they would be where it is faster"
    )


def bfloat16_terms(matrix: Tensor, out: Terms) -> Terms:
    """Split a matrix into terms whose values bfloat16 holds, kept in the matrix's own type.

    Every term is what the ones before it leave, rounded to the nearest. Two terms are within
    2**-16 of every value, relative to it, as long as the second is no denormal number.

    Args:
        matrix: Of any shape.
        out: Where to write, one tensor of this shape a term.
    """
    rest = matrix
    for i, term in enumerate(out):
        term.copy_(rest.bfloat16())
        if i + 1 < len(out):
            rest = rest - term  # exact: the term holds the leading digits
    return out


class Products:
    """Multiplies images by weights and by residuals; all of a group's images by all its columns.

    Attributes:
        scale: What images are multiplied by, as integers; 1 where they are in [0, 1].
    """

    def __init__(self, precision: Precision, data: TensorData) -> None:
        """Choose how to multiply.

        Raises:
            PackError: The device cannot compute so.
        """
        check_precision(precision, data.device)
        self._data = data
        self._is_reduced = precision != "float32"
        self._num_terms = NUM_TERMS.get(precision, 0) if self._is_reduced else 0
        self._buffers: dict[str, Terms] = {}
        self._backend: Any = None
        if self._is_reduced and has_fast_bfloat16(data.device):
            self._backend = (
                torch.backends.cuda if data.device.type == "cuda" else torch.backends.mkldnn
            ).matmul
        self.scale = data.pixel_max if self._is_reduced else 1

    @property
    def train_inputs(self) -> Tensor:
        """The training images with a last column for the bias, times `scale`, (N, D + 1)."""
        return self._data.train_integers if self._is_reduced else self._data.train_inputs

    @property
    def validation_inputs(self) -> Tensor:
        """The validation images likewise."""
        return self._data.validation_integers if self._is_reduced else self._data.validation_inputs

    def moved(self, inputs: Tensor) -> Terms:
        """Return images that are no integers, (B, D + 1), in [0, 1], as terms; overwrite them."""
        return self._split("inputs", inputs.mul_(self.scale) if self._is_reduced else inputs)

    def weights(self, weights: Tensor) -> Terms:
        """Return weights, (D + 1, N), as terms, which hold until these change."""
        return self._split("weights", weights)

    def logits(self, inputs: Terms, weights: Terms, out: Tensor) -> Tensor:
        """Return images times weights, (B, N).

        Args:
            inputs: Times `scale`, (B, D + 1).
            weights: (D + 1, N).
            out: Where to write.
        """
        with self._precision():
            torch.mm(inputs[0], weights[0], out=out)
            for x, w in self._pairs(inputs, weights)[1:]:
                out.addmm_(x, w)
        return out.div_(self.scale) if self._is_reduced else out

    def add_gradient(self, inputs: Terms, residual: Tensor, out: Tensor) -> None:
        """Add images, transposed, times residuals to `out`.

        Args:
            inputs: Times `scale`, (B, D + 1).
            residual: (B, N), overwritten.
            out: (D + 1, N).
        """
        if self._is_reduced:
            residual.div_(self.scale)
        residuals = self._split("residual", residual)
        with self._precision():
            for x, r in self._pairs(inputs, residuals):
                out.addmm_(x.T, r)

    def _pairs(self, left: Terms, right: Terms) -> list[tuple[Tensor, Tensor]]:
        """Return the terms to multiply; a product of two second ones is below all rounding."""
        most = max(self._num_terms, 1)
        return [(a, b) for i, a in enumerate(left) for b in right[: most - i]]

    def _split(self, name: str, matrix: Tensor) -> Terms:
        if not self._num_terms:
            return (matrix,)
        buffers = self._buffers.get(name, ())
        if not buffers or len(buffers[0]) < len(matrix):
            buffers = tuple(torch.empty_like(matrix) for _ in range(self._num_terms))
            self._buffers[name] = buffers
        return bfloat16_terms(matrix, tuple(buffer[: len(matrix)] for buffer in buffers))

    def _precision(self) -> AbstractContextManager[None]:
        """Let float32 products be computed in less, where that is faster.

        oneDNN rounds each value to bfloat16, and a GPU to TF32. Both hold every term of ours, so
        that what they round is nothing; elsewhere float32's own products give the same.
        """
        return nullcontext() if self._backend is None else _reduced(self._backend)


@contextmanager
def _reduced(backend: Any) -> Iterator[None]:  # noqa: ANN401 - torch does not name its type
    before = backend.fp32_precision
    backend.fp32_precision = "tf32" if backend is torch.backends.cuda.matmul else "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before
