"""The file `run.db-commits`: how many transactions a ledger that is being written holds.

SQLite ignores, without an error, whatever follows the first damaged place in its write-ahead log.
A ledger that holds fewer transactions than this file counts has lost its end.
"""

from __future__ import annotations

import os
import time
import zlib
from typing import TYPE_CHECKING

from tune_softmax import files

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CommitCount", "DamagedCount"]

_NUM_TRIES = 3  # to read the file while its writer may be in the middle of the line
_WAIT_S = 0.01  # between them


class DamagedCount:
    """What a file holds that is no count."""


class CommitCount:
    """The count in one file.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether this process counts."""
        return self._descriptor is not None

    def read(self) -> int | DamagedCount | None:
        """Return the count; None where there is no file.

        Raises:
            OSError: The file cannot be read.
        """
        for attempt in range(_NUM_TRIES):
            if attempt:
                time.sleep(_WAIT_S)
            try:
                content = files.read_bytes(self.path)
            except FileNotFoundError:
                return None
            except ValueError:
                break
            number = content[:20]
            if number.isdigit() and _line(int(number)) == content:
                return int(number)
        return DamagedCount()

    def begin(self, commits: int) -> None:
        """Make the file anew, on the disk, and keep it open; no reader meets it empty.

        Raises:
            OSError: It cannot be written.
        """
        with files.replacing(self.path) as draft:
            self._descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
            self.set(commits)

    def present_path(self) -> Path | None:
        """Return where the open file is now; None where it was deleted or nothing tells."""
        return None if self._descriptor is None else files.present_path(self._descriptor)

    def set(self, commits: int) -> None:
        """Write the count.

        The system brings it to the disk when it likes. That is enough where a process dies; after
        a power cut the count may be too low, but never too high.

        Raises:
            OSError: It cannot be written.
        """
        assert self._descriptor is not None, "the count has not begun"
        os.pwrite(self._descriptor, _line(commits), 0)

    def close(self) -> None:
        """Close the file; it stays where it is."""
        assert self._descriptor is not None, "the count has not begun"
        os.close(self._descriptor)
        self._descriptor = None


def _line(commits: int) -> bytes:
    """Return the file's content: always of one length, with a checksum."""
    number = f"{commits:020d}"
    return f"{number} {zlib.crc32(number.encode()):08x}\n".encode()
