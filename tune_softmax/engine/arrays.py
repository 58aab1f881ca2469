"""A dataset as NumPy arrays, which the compiled kernels train on without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tune_softmax.data.dataset import Dataset, Split

__all__ = ["ArrayData", "ArrayImages", "TrainingData", "to_arrays"]


FLOAT32 = np.dtype(np.float32)
MAX_SAMPLE = 1000  # images

_Images = TypeVar("_Images")


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """One split.

    Attributes:
        pixels: uint8, (N, D), each row one image, row by row.
        labels: int64, (N,), in [0, C).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainingData(Generic[_Images]):
    """The training and validation splits; training never sees the test set.

    Attributes:
        train: Images to fit.
        validation: Images to choose by.
        image_shape: (H, W), with H * W = D.
        num_classes: C.
        pixel_max: The pixel value that becomes 1.0.
    """

    train: _Images
    validation: _Images
    image_shape: tuple[int, int]
    num_classes: int
    pixel_max: int

    @property
    def num_features(self) -> int:
        """D, the number of pixels of an image."""
        return prod(self.image_shape)


@dataclass(frozen=True)
class ArrayData(TrainingData[ArrayImages]):
    """Both splits as arrays.

    Attributes:
        real: The type of number to train in, float32 or float64.
    """

    real: np.dtype[Any] = FLOAT32

    @cached_property
    def nonzero_fraction(self) -> float:
        """The fraction of pixels that are not zero, in [0, 1], from a sample of the images."""
        pixels = self.train.pixels
        sample = pixels[:: -(-len(pixels) // MAX_SAMPLE)]
        return float(np.count_nonzero(sample) / sample.size)


def to_arrays(dataset: Dataset) -> ArrayData:
    """Return a dataset's training and validation splits.

    Training images are copied: an epoch reads them in random order, which takes up to a tenth less
    in the large pages that NumPy asks for than in Ray's shared memory.
    """
    train = _to_images(dataset.train)
    return ArrayData(
        train=replace(train, pixels=train.pixels.copy()),
        validation=_to_images(dataset.validation),
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        pixel_max=dataset.pixel_max,
    )


def _to_images(split: Split) -> ArrayImages:
    """Return images as rows of bytes; a view of the split's where that is contiguous."""
    pixels = np.ascontiguousarray(split.images).reshape(len(split), -1)
    return ArrayImages(pixels, np.ascontiguousarray(split.labels, dtype=np.int64))
