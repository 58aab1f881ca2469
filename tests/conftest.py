"""What several test modules share."""

from __future__ import annotations

import gzip
import os
import struct
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from postgresql_server import Server

_TYPE_BYTES = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}

# Continuous integration judges a change by the same examples each time; elsewhere they are new.
# No example has a deadline: a busy machine would miss it, whatever the example shows.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that start Ray, so that processes which share the files end together."""
    longest = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in longest)


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
def postgresql() -> Iterator[Server]:
    """Return a running PostgreSQL server, whose password is in the environment, or skip the test.

    A test that stops it starts it again.
    """
    pytest.importorskip("psycopg")
    from postgresql_server import PASSWORD, Server, programs

    if programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    server = Server()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PGPASSWORD", PASSWORD)
        try:
            server.start()
            yield server
        finally:
            server.remove()


@pytest.fixture
def in_child() -> Callable[..., int]:
    """Return the function that calls another in a child process, and returns how that ended.

    That is 0, 1 after an exception, or minus the signal that killed it.
    """

    def call(function: Callable[..., object], *arguments: object) -> int:
        child = os.fork()
        if child == 0:
            try:
                function(*arguments)
            except BaseException:  # noqa: BLE001 - nothing of the child may go on here
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    return call


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
