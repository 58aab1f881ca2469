"""A data set on a device, and the order of its images."""

import numpy as np
import pytest
import torch
from packs import random_data

from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.tensors import scale, to_tensors


@pytest.fixture(scope="module")
def digits():
    """Return the embedded data set."""
    return load_dataset("digits")


def test_tensors_hold_what_the_data_set_holds(digits):
    """Every image is one row of bytes with its label, training and validation apart."""
    data = to_tensors(digits)
    for tensors, split in ((data.train, digits.train), (data.validation, digits.validation)):
        assert len(tensors) == len(split)
        assert tensors.pixels.dtype == torch.uint8
        assert tensors.labels.dtype == torch.int64
        np.testing.assert_array_equal(tensors.pixels, split.images.reshape(len(split), -1))
        np.testing.assert_array_equal(tensors.labels, split.labels)
    assert data.image_shape == (8, 8)
    assert data.num_features == 64
    assert data.num_classes == 10
    assert data.pixel_max == 16
    assert data.device == torch.device("cpu")


def test_tensors_are_copies(digits):
    """Writing to them leaves the data set alone, even where it may not be written to."""
    before = digits.train.images.copy()
    data = to_tensors(digits)
    data.train.pixels.zero_()
    data.train.labels.zero_()
    np.testing.assert_array_equal(digits.train.images, before)
    assert digits.train.labels.any()


def test_pixels_become_fractions():
    """The largest pixel value becomes 1, and zero stays zero."""
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    expected = torch.tensor([[0.0, 0.2, 1.0]])
    assert torch.equal(scale(pixels, 255), expected)
    out = torch.ones(1, 4)
    scale(pixels, 255, out=out[:, :-1])
    assert torch.equal(out, torch.cat([expected, torch.ones(1, 1)], dim=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_tensors_live_where_they_were_sent(digits):
    """A device may be named."""
    data = to_tensors(digits, "cuda")
    assert data.device.type == data.validation.labels.device.type == "cuda"
    assert random_data().device.type == "cpu"
