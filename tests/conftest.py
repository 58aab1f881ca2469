"""What several test modules share."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

_TYPE_BYTES = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}

# Continuous integration judges a change by the same examples each time; elsewhere they are new.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

IdxWriter = Callable[[Path, NDArray[np.generic]], None]


@pytest.fixture
def fashion_mnist_dir() -> Path:
    """Return the data folder that holds the real Fashion-MNIST, or skip the test."""
    variable = "TUNE_SOFTMAX_DATA_DIR"
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    if not (Path(folder) / "FashionMNIST/raw/train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"{variable} holds no Fashion-MNIST")
    return Path(folder)


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[NDArray[np.generic]], bytes]:
    """Return the function that gives an array the form of an unpacked IDX file."""

    def encode(array: NDArray[np.generic]) -> bytes:
        magic = bytes([0, 0, _TYPE_BYTES[array.dtype], array.ndim])
        sizes = struct.pack(f">{array.ndim}I", *array.shape)
        return magic + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()

    return encode


@pytest.fixture(scope="session")
def write_idx(idx_bytes: Callable[[NDArray[np.generic]], bytes]) -> IdxWriter:
    """Return the function that writes an array as an IDX file, packed if its name ends in .gz."""

    def write(path: Path, array: NDArray[np.generic]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = idx_bytes(array)
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

    return write
