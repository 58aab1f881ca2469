"""Whether the SQLite file that a writer has open is still the one at its path.

A folder can be deleted, moved or overwritten while a search writes it. The system lets the writer
go on: what it writes then goes to a file that nobody can find, or that is no longer whole.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax import files

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OpenFile"]

# Of the header, https://www.sqlite.org/fileformat.html: its first words, the counter of changes,
# and the version that belongs to the user, which is random here and tells two ledgers apart.
_HEADER = struct.Struct(">16s8xI32xI")
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class _State:
    size_bytes: int
    modified_ns: int
    magic: bytes
    num_changes: int
    user_version: int

    def may_become(self, now: _State) -> bool:
        """Say whether SQLite alone can have made this state into another.

        Any process that has the file open may bring pages of the log into it.
        """
        is_ours = now.magic == _MAGIC and now.user_version == self.user_version
        return is_ours and now.num_changes >= self.num_changes


class OpenFile:
    """A file that this process writes through another descriptor.

    Args:
        path: The file, which exists.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        # Kept until the writer has closed its own: closing any descriptor of a file releases the
        # locks that the process holds on it.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._state = self._read_state()
        self.is_overwritten = False

    def is_at_path(self) -> bool:
        """Say whether the path leads to this file."""
        return files.is_at(self._path, self._descriptor)

    def is_in_place(self) -> bool:
        """Say whether the path leads to this file, and only SQLite has written it."""
        status = os.fstat(self._descriptor)
        if (status.st_size, status.st_mtime_ns) != (
            self._state.size_bytes,
            self._state.modified_ns,
        ):
            now = self._read_state()
            self.is_overwritten |= not self._state.may_become(now)
            self._state = now
        return not self.is_overwritten and self.is_at_path()

    def present_path(self) -> Path | None:
        """Return where the file is now; None where it was deleted or nothing tells."""
        return files.present_path(self._descriptor)

    def close(self) -> None:
        """Close it, after the writer has closed its own descriptor."""
        os.close(self._descriptor)

    def _read_state(self) -> _State:
        status = os.fstat(self._descriptor)
        header = os.pread(self._descriptor, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
        return _State(status.st_size, status.st_mtime_ns, *_HEADER.unpack(header))
