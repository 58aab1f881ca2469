"""IDX files: read exactly, or refused with the reason."""

import gzip
import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from tune_softmax.data.idx import (
    IMAGES,
    LABELS,
    LONG_LABELS,
    MAX_BYTES,
    QMNIST_LABELS,
    find_idx,
    read_idx,
    read_pair,
    read_shape,
)
from tune_softmax.errors import DataError

VALUES = bytes(range(24))
FILE = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 3, 4) + VALUES
LABEL_FILE = b"\x00\x00\x08\x01" + struct.pack(">I", 3) + b"\x01\x00\x02"
PACKED = gzip.compress(FILE, mtime=0)
MEMBERS = gzip.compress(FILE[:20], mtime=0) + gzip.compress(FILE[20:], mtime=0)


def _header(*sizes: int) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *sizes)


def _with_wrong_checksum(data: bytes) -> bytes:
    return data[:-8] + struct.pack("<I", zlib.crc32(FILE) ^ 1) + data[-4:]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_sound_file_is_read_whole(tmp_path, write_idx, suffix):
    """Images and both forms of labels come back as they were written."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 3, 4), dtype=np.uint8)
    details = rng.integers(-(2**31), 2**31, (5, 8), dtype=np.int32)
    for kind, array in [(IMAGES, images), (LABELS, images[:, 0, 0]), (QMNIST_LABELS, details)]:
        path = tmp_path / f"file{suffix}"
        write_idx(path, array)
        read = read_idx(path, kind)
        np.testing.assert_array_equal(read, array)
        assert read.flags.writeable
        assert read_shape(path, kind) == array.shape


def test_a_file_larger_than_one_chunk_is_read_whole(tmp_path, write_idx):
    """Neither the packed nor the unpacked data must fit one reading."""
    images = np.random.default_rng(0).integers(0, 256, (3000, 30, 30), dtype=np.uint8)
    for name in ("file", "file.gz"):
        write_idx(tmp_path / name, images)
        np.testing.assert_array_equal(read_idx(tmp_path / name, IMAGES), images)


PLAIN_FAULTS = {
    "empty": (b"", "is empty (0 bytes)"),
    "web page": (b"<!DOCTYPE html>", "must begin with 00 00 08 03 (images), but begins with 3c"),
    "magic cut": (FILE[:3], "must begin with 00 00 08 03 (images), but begins with 00 00 08;"),
    "header cut": (FILE[:9], "is cut short within its header"),
    "labels": (LABEL_FILE, "begins with 00 00 08 01 (labels); were images and labels exchanged?"),
    "colour": (
        b"\x00\x00\x08\x04" + FILE[4:],
        "begins with 00 00 08 04 (unsigned bytes in 4 dimensions); colour is not supported: make",
    ),
    "floats": (b"\x00\x00\x0d\x03" + FILE[4:], "(32-bit floats in 3 dimensions); convert the pix"),
    "flat": (b"\x00\x00\x08\x02" + FILE[4:], "in 2 dimensions); give every image its rows and"),
    "values cut": (FILE[:-1], "says 2 x 3 x 4 values, 24 bytes, but only 23 follow"),
    "no values": (FILE[:16], "says 2 x 3 x 4 values, 24 bytes, but only 0 follow"),
    "trailing": (FILE + b"ab", "holds more bytes than its header says"),
    "no images": (_header(0, 28, 28), "its header says 0 x 28 x 28 values: none"),
    "no pixels": (_header(9, 0, 28), "its header says 9 x 0 x 28 values: none"),
    "too many": (
        _header(2**31, 28, 28),
        f"says 2,147,483,648 x 28 x 28 values, 1,683,627,180,032 bytes; at most {MAX_BYTES:,}",
    ),
    "too many by one": (_header(65536, 65537, 1), "at most 4,294,967,296 are read"),
    "4 GiB claimed": (_header(65536, 65536, 1) + VALUES, "4,294,967,296 bytes, but only 24"),
    "packed without .gz": (PACKED, "is a gzip file whose name lacks .gz"),
}

PACKED_FAULTS = {
    "empty": (b"", "is empty (0 bytes)"),
    "web page": (b"<html>", "must be a gzip file, which begins with 1f 8b, but begins with 3c 68"),
    "unpacked": (FILE, "drop .gz from its name"),
    "one byte": (b"\x1f", "begins with 1f 8b, but begins with 1f;"),
    "start only": (PACKED[:2], "the gzip file is cut short"),
    "cut": (PACKED[:-12], "the gzip file is cut short"),
    "checksum cut": (PACKED[:-5], "the gzip file is cut short"),
    "nothing inside": (gzip.compress(b""), "decompresses to nothing"),
    "wrong checksum": (_with_wrong_checksum(PACKED), "damaged (CRC check failed"),
    "wrong length": (PACKED[:-4] + b"\x01\x00\x00\x00", "Incorrect length of data produced"),
    "damaged body": (PACKED[:10] + b"\xff" * 9 + PACKED[19:], "the gzip data are damaged"),
    "trailing bytes": (PACKED + b"ab", "the gzip data are damaged (Not a gzipped file (b'ab'))"),
    "the file twice": (PACKED + PACKED, "holds more bytes than its header says"),
    "second member cut": (MEMBERS[:-9], "the gzip file is cut short"),
    "second member damaged": (_with_wrong_checksum(MEMBERS), "damaged (CRC check failed"),
    "longer inside": (gzip.compress(FILE + b"a"), "holds more bytes than its header says"),
    "shorter inside": (gzip.compress(FILE[:-9]), "24 bytes, but only 15 follow"),
    "labels": (gzip.compress(LABEL_FILE), "were images and labels exchanged?"),
    "too many": (gzip.compress(_header(2**31, 1, 3)), "at most 4,294,967,296 are read"),
}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param(name, *case, id=f"{name}: {fault}")
        for name, faults in (("images", PLAIN_FAULTS), ("images.gz", PACKED_FAULTS))
        for fault, case in faults.items()
    ],
)
def test_an_unsound_file_is_refused(tmp_path, name, data, message):
    """The one-line message begins with the path and states the fault."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_idx(path, IMAGES)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [MEMBERS, gzip.compress(b"") + PACKED, PACKED + gzip.compress(b""), PACKED + bytes(512)],
    ids=["cat a.gz b.gz", "empty first", "empty last, as bgzip ends", "padded with zeros"],
)
def test_a_gzip_file_may_have_several_members(tmp_path, data):
    """RFC 1952, section 2.2; zeros after the last member are what gzip itself passes over."""
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    assert read_idx(path, IMAGES).tobytes() == VALUES
    assert read_shape(path, IMAGES) == (2, 3, 4)


def test_any_cut_of_a_packed_file_is_refused(tmp_path):
    """No beginning of a file passes for the file."""
    path = tmp_path / "images.gz"
    for size in range(len(PACKED)):
        path.write_bytes(PACKED[:size])
        with pytest.raises(DataError):
            read_idx(path, IMAGES)


def test_no_changed_byte_changes_a_value(tmp_path):
    """A changed byte is found, or is one that only describes the file or fills a byte up."""
    path = tmp_path / "images.gz"
    num_refused = 0
    for position in range(len(PACKED)):
        damaged = bytearray(PACKED)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert read_idx(path, IMAGES).tobytes() == VALUES
        except DataError:
            num_refused += 1
    assert num_refused > 0.8 * len(PACKED)


def test_a_bomb_is_not_unpacked(tmp_path):
    """A small file of many zeros, far more than its header says, takes little memory."""
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(_header(2, 3, 4) + bytes(64 * 2**20), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more bytes than its header says"):
            read_idx(path, IMAGES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_false_header_takes_no_memory(tmp_path):
    """A header that claims 4 GiB is not believed before the values are there."""
    tracemalloc.start()
    try:
        for name, data in (("file", FILE), ("file.gz", PACKED)):
            claim = _header(65536, 65536, 1) + data[16:]
            path = tmp_path / name
            path.write_bytes(gzip.compress(claim) if name.endswith(".gz") else claim)
            with pytest.raises(DataError, match="values, 4,294,967,296 bytes, but only"):
                read_idx(path, IMAGES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_only_a_readable_regular_file_is_opened(tmp_path):
    """A missing file, a folder and a pipe are refused; none is waited for."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in [
        ("missing", "cannot be read: No such file or directory; check the path"),
        ("folder", "Is a directory"),
        ("pipe", "is not a regular file"),
        ("x" * 300, "cannot be read: File name too long"),
    ]:
        with pytest.raises(DataError, match=message):
            read_idx(tmp_path / name, IMAGES)


def test_the_packed_file_is_preferred(tmp_path):
    """Published checksums are of packed files."""
    assert find_idx(tmp_path, "file") is None
    (tmp_path / "file").touch()
    assert find_idx(tmp_path, "file") == tmp_path / "file"
    (tmp_path / "file.gz").touch()
    assert find_idx(tmp_path, "file") == tmp_path / "file.gz"
    with pytest.raises(DataError, match="cannot be found: File name too long"):
        find_idx(tmp_path, "x" * 300)


def test_a_pair_has_one_label_for_each_image(tmp_path, write_idx):
    """Labels become int64; of several columns the first counts; numbers must agree."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_idx(images, np.zeros((3, 2, 2), np.uint8))
    write_idx(labels, np.array([2, 0, 1], np.uint8))
    _, read = read_pair(images, labels)
    assert read.dtype == np.int64
    assert read.tolist() == [2, 0, 1]

    write_idx(labels, np.arange(24, dtype=np.int32).reshape(3, 8))
    assert read_pair(images, labels, QMNIST_LABELS)[1].tolist() == [0, 8, 16]

    write_idx(labels, np.array([2, 300, 1], np.int32))
    assert read_pair(images, labels, LABELS, LONG_LABELS)[1].tolist() == [2, 300, 1]
    allowed = "must begin with 00 00 08 01 (labels) or 00 00 0c 01 (32-bit labels), but begins"
    labels.write_bytes(b"\x00\x00\x0d\x01" + bytes(16))
    with pytest.raises(DataError, match=re.escape(allowed)) as caught:
        read_pair(images, labels, LABELS, LONG_LABELS)
    assert str(caught.value).endswith("write the labels as one whole number an image")

    write_idx(labels, np.array([2, 0], np.uint8))
    message = f"{labels}: must hold a label for each of the 3 images in images, but holds 2"
    with pytest.raises(DataError, match=re.escape(message)):
        read_pair(images, labels)
