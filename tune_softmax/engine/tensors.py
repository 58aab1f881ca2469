"""A dataset as tensors resident on one device.

Inputs are scaled once and stay resident, with the column of ones that a bias meets.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tune_softmax.engine.arrays import ArrayData, ArrayImages, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from tune_softmax.data.dataset import Dataset, Split

__all__ = ["Images", "TensorData", "from_arrays", "scale", "to_images", "to_tensors"]


@dataclass(frozen=True, slots=True)
class Images:
    """One split on a device.

    Attributes:
        pixels: uint8, (N, D), each row one image, row by row.
        labels: int64, (N,), in [0, C).
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class TensorData(TrainingData[Images]):
    """Both splits as tensors, and what is made of them once."""

    @cached_property
    def train_inputs(self) -> Tensor:
        """The training images in [0, 1] with a last column of ones, float32, (N, D + 1)."""
        return self._inputs(self.train)

    @cached_property
    def validation_inputs(self) -> Tensor:
        """The validation images likewise."""
        return self._inputs(self.validation)

    @cached_property
    def train_integers(self) -> Tensor:
        """`train_inputs` times `pixel_max`: pixels as they are, and that in the last column."""
        return self._integers(self.train)

    @cached_property
    def validation_integers(self) -> Tensor:
        """The validation images likewise."""
        return self._integers(self.validation)

    def _inputs(self, images: Images) -> Tensor:
        inputs = torch.ones(len(images), self.num_features + 1, device=self.device)
        scale(images.pixels, self.pixel_max, out=inputs[:, :-1])
        return inputs

    def _integers(self, images: Images) -> Tensor:
        size = (len(images), self.num_features + 1)
        integers = torch.full(size, float(self.pixel_max), device=self.device)
        integers[:, :-1] = images.pixels
        return integers

    @cached_property
    def arrays(self) -> ArrayData:
        """The same memory as arrays for the compiled kernels; only on the CPU."""
        train, validation = (
            ArrayImages(split.pixels.numpy(), split.labels.numpy())
            for split in (self.train, self.validation)
        )
        shape, classes = self.image_shape, self.num_classes
        return ArrayData(train, validation, shape, classes, self.pixel_max, self.real)

    @property
    def real(self) -> np.dtype[Any]:
        """The type of number to train in: torch's default."""
        return np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train.pixels.device


def to_images(split: Split, device: torch.device | str = "cpu") -> Images:
    """Copy one split of a dataset to a device."""
    pixels = torch.tensor(split.images, dtype=torch.uint8).flatten(1)
    return Images(pixels.to(device), torch.tensor(split.labels, dtype=torch.int64).to(device))


def to_tensors(dataset: Dataset, device: torch.device | str = "cpu") -> TensorData:
    """Copy a dataset's training and validation splits to a device."""
    return TensorData(
        train=to_images(dataset.train, device),
        validation=to_images(dataset.validation, device),
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        pixel_max=dataset.pixel_max,
    )


def from_arrays(data: ArrayData) -> TensorData:
    """Return the same images as tensors, in the same memory; nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        train, validation = (
            Images(torch.from_numpy(split.pixels), torch.from_numpy(split.labels))
            for split in (data.train, data.validation)
        )
    return TensorData(train, validation, data.image_shape, data.num_classes, data.pixel_max)


def scale(pixels: Tensor, pixel_max: int, out: Tensor | None = None) -> Tensor:
    """Return pixels as float32 in [0, 1].

    Args:
        pixels: uint8, any shape.
        pixel_max: The value that becomes 1.0.
        out: Where to write, float32, the same shape; a new tensor by default.
    """
    return torch.div(pixels, float(pixel_max), out=out)
