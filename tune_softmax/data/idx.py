"""Read IDX files strictly: the format that MNIST and its relatives are published in.

A file is read only if its header and its values agree to the byte; nothing is repaired. Memory
grows with what the file really holds, never with what its header claims.
`public.py` says where files come from, `dataset.py` what their values mean.
"""

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_softmax import files
from tune_softmax.errors import DataError

__all__ = [
    "IMAGES",
    "LABELS",
    "LONG_LABELS",
    "MAX_BYTES",
    "QMNIST_LABELS",
    "IdxKind",
    "find_idx",
    "read_idx",
    "read_pair",
    "read_shape",
]

MAX_BYTES = 4 * 2**30  # values of one file; MNIST's training images are 47 MB
_CHUNK_BYTES = 2**20
_TYPES = {  # by IDX's code
    0x08: "unsigned bytes",
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxKind:
    """What a file must hold.

    Attributes:
        meaning: What its values are, for messages.
        magic: Its first four bytes: 0, 0, type of a value, number of dimensions.
        dtype: numpy's name of the type; IDX is big-endian.
    """

    meaning: str
    magic: bytes
    dtype: str


IMAGES = IdxKind("images", b"\x00\x00\x08\x03", "u1")  # (N, H, W)
LABELS = IdxKind("labels", b"\x00\x00\x08\x01", "u1")  # (N,)
LONG_LABELS = IdxKind("32-bit labels", b"\x00\x00\x0c\x01", ">i4")  # (N,)
QMNIST_LABELS = IdxKind("QMNIST labels", b"\x00\x00\x0c\x02", ">i4")  # (N, 8)


class _FaultError(Exception):
    """What is wrong with the file; `_opened` adds which file."""


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file `name`.gz or else `name` in `folder`, or None if neither is there.

    The compressed one comes first because published checksums are of it.

    Raises:
        DataError: The folder may not be looked into.
    """
    for path in (folder / f"{name}.gz", folder / name):
        try:
            if path.exists():
                return path
        except OSError as error:
            raise DataError(
                f"{path}: cannot be found: {_reason(error)}; check the path and its permissions"
            ) from error
    return None


def read_idx(path: Path, *kinds: IdxKind) -> NDArray[Any]:
    """Return the values of one IDX file.

    Args:
        path: The file; gzip is undone if the name ends in .gz.
        kinds: What it may hold.

    Returns:
        An array of the kind's `dtype` in the file's shape, at least one value in each dimension.

    Raises:
        DataError: The file cannot be read, or is not exactly one such file.
    """
    with _opened(path) as file:
        kind, shape = _read_header(file, kinds)
        dtype = np.dtype(kind.dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        values = _read(file, num_bytes)
        if len(values) < num_bytes:
            raise _FaultError(
                f"its header says {_product(shape)} values, {num_bytes:,} bytes, but only "
                f"{len(values):,} follow; get the file again"
            )
        if file.read(1):  # at its end gzip compares the checksum
            raise _FaultError("holds more bytes than its header says; get the file again")
    return np.frombuffer(values, dtype).reshape(shape)


def read_shape(path: Path, kind: IdxKind) -> tuple[int, ...]:
    """Return the shape that the file's header states, without reading its values.

    Raises:
        DataError: As for `read_idx`, as far as the header shows it.
    """
    with _opened(path) as file:
        return _read_header(file, [kind])[1]


def read_pair(
    images_path: Path, labels_path: Path, *label_kinds: IdxKind
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images and their labels.

    Args:
        images_path: The file of the images.
        labels_path: The file of their labels.
        label_kinds: The forms it may have, `LABELS` by default; of QMNIST's columns the first is
            the class.

    Returns:
        Images, uint8, (N, H, W), and labels, int64, (N,).

    Raises:
        DataError: As for `read_idx`; or the two files differ in number.
    """
    images = read_idx(images_path, IMAGES)
    labels = read_idx(labels_path, *(label_kinds or [LABELS]))
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: must hold a label for each of the {len(images):,} images in "
            f"{images_path.name}, but holds {len(labels):,}; get both files again"
        )
    return images, labels.reshape(len(labels), -1)[:, 0].astype(np.int64)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open the file, unpacked, and give every fault found while it is open its path."""
    try:
        with files.open_regular(path) as packed:  # opening a pipe would wait for ever
            start = packed.read(len(_GZIP_MAGIC))
            packed.seek(0)
            _check_suffix(path, start)
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=packed) as file:
                    yield file
            else:
                yield packed
    except EOFError as error:
        raise DataError(
            f"{path}: the gzip file is cut short: its end is missing; get the file again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip data are damaged ({_reason(error)}); get the file again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {_reason(error)}; check the path and its permissions"
        ) from error
    except _FaultError as fault:
        raise DataError(f"{path}: {fault}") from fault


def _check_suffix(path: Path, start: bytes) -> None:
    """Refuse an empty file, and one whose name and first bytes disagree on being packed."""
    if not start:
        raise _FaultError("is empty (0 bytes); get the file again")
    if path.suffix == ".gz" and start != _GZIP_MAGIC:
        raise _FaultError(
            f"must be a gzip file, which begins with {_hex(_GZIP_MAGIC)}, but begins with "
            f"{_hex(start)}; get the file again, or drop .gz from its name if it is not packed"
        )
    if path.suffix != ".gz" and start == _GZIP_MAGIC:
        raise _FaultError("is a gzip file whose name lacks .gz; rename it")


def _read(file: BufferedIOBase, size: int) -> bytearray:
    """Return the next `size` bytes; fewer only where the data end."""
    values = bytearray()
    # In parts, since one reading would take the memory that a false header asks for.
    while chunk := file.read(min(size - len(values), _CHUNK_BYTES)):
        values += chunk
    return values


def _read_header(
    file: BufferedIOBase, kinds: Sequence[IdxKind]
) -> tuple[IdxKind, tuple[int, ...]]:
    magic = file.read(len(kinds[0].magic))
    kind = next((kind for kind in kinds if kind.magic == magic), None)
    if kind is None:
        allowed = " or ".join(f"{_hex(kind.magic)} ({kind.meaning})" for kind in kinds)
        raise _FaultError(f"must begin with {allowed}, but {_description(magic, kinds[0])}")
    num_dimensions = magic[-1]
    sizes = file.read(4 * num_dimensions)
    if len(sizes) < 4 * num_dimensions:
        raise _FaultError("is cut short within its header; get the file again")
    shape = struct.unpack(f">{num_dimensions}I", sizes)
    num_bytes = math.prod(shape) * np.dtype(kind.dtype).itemsize
    if num_bytes == 0:
        raise _FaultError(f"its header says {_product(shape)} values: none; get the file again")
    if num_bytes > MAX_BYTES:
        raise _FaultError(
            f"its header says {_product(shape)} values, {num_bytes:,} bytes; at most "
            f"{MAX_BYTES:,} are read; get the file again"
        )
    return kind, shape


def _description(magic: bytes, wanted: IdxKind) -> str:
    """Say what a file holds that does not hold what it must, and what to do."""
    for kind in (IMAGES, LABELS, LONG_LABELS, QMNIST_LABELS):
        if magic == kind.magic:
            return f"begins with {_hex(magic)} ({kind.meaning}); were images and labels exchanged?"
    if not magic:
        return "decompresses to nothing; get the file again"
    if len(magic) < len(wanted.magic) or magic[:2] != wanted.magic[:2] or magic[2] not in _TYPES:
        return f"begins with {_hex(magic)}; get the file again"
    what = f"begins with {_hex(magic)} ({_TYPES[magic[2]]} in {magic[3]} dimensions)"
    advice = "convert the pixels to unsigned bytes, 0 to 255"
    if wanted is not IMAGES:
        advice = "write the labels as one whole number an image"
    elif magic[3] > IMAGES.magic[3]:
        advice = "colour is not supported: make the images grey, (N, H, W)"
    elif magic[3] < IMAGES.magic[3]:
        advice = "give every image its rows and columns, (N, H, W)"
    return f"{what}; {advice}"


def _hex(data: bytes) -> str:
    return data.hex(" ")


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
