"""Read and write whole files: regular files alone, each written whole or not at all.

A run folder may come from a stranger. A pipe or a device in place of a file would hang whoever
opens it, and a file may be larger than memory or nested deeper than the parser's stack.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import BufferedReader

__all__ = [
    "is_at",
    "open_regular",
    "present_path",
    "read_bytes",
    "read_json",
    "read_text",
    "replacing",
    "sync_folder",
    "write_atomically",
]

MAX_BYTES = 1 << 26  # of a file that is read whole; what we write ourselves is far smaller


class _NotRegularError(OSError):
    """What is at a path is no regular file, so that opening it might hang."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "is not a regular file", str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, and refuse pipes, sockets, devices and folders without waiting.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise _NotRegularError(path)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole regular file.

    Args:
        path: The file.
        max_bytes: The most that it may hold.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is longer.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"is longer than {max_bytes:,} bytes")
    return data


def read_text(path: Path) -> str:
    """Read a whole regular file of UTF-8, at most `MAX_BYTES` of it.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is longer, or not UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever a file holds
    """Read a whole regular file of JSON, at most `MAX_BYTES` of it.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is longer, no JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file that readers find whole or not at all, also after a power cut.

    Args:
        path: The file; one that is there is replaced, a link too, and not what it leads to.
        content: Text (as UTF-8), bytes, or chunks of bytes in order.

    Raises:
        OSError: It cannot be written, or something other than a file is there.
    """
    if isinstance(content, str):
        content = content.encode("utf-8")
    with replacing(path) as draft, draft.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let the body write a draft; then bring it to the disk and to its place in one move.

    Args:
        path: The file; one that is there is replaced, a link too, and not what it leads to.

    Yields:
        A new, empty file beside it, which is removed if the body raises.

    Raises:
        OSError: It cannot be written, or something other than a file is there.
    """
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
        raise _NotRegularError(path)
    # The file's own name may be as long as names can be.
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    draft.touch(exist_ok=False)
    try:
        yield draft
        _sync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_at(path: Path, descriptor: int) -> bool:
    """Say whether a path leads to the file that is open."""
    try:
        found = path.stat()
    except OSError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def present_path(descriptor: int) -> Path | None:
    """Return where a file that is open is now; None where it was deleted or nothing tells."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return path if is_at(path, descriptor) else None


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of files to the disk.

    Raises:
        OSError: It cannot be read.
    """
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
