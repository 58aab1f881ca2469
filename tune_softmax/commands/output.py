"""Print to a terminal, a pipe, a file or a closed stream, in any encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console

__all__ = ["console", "prepare_streams", "say", "warn"]

_WIDE = 1_000  # columns where no terminal limits them


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables and live displays.

    Brackets are printed as they are, for folder names and errors may hold some. Where there is
    no terminal, tables are as wide as they are.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, width=None if stream.isatty() else _WIDE, markup=False, highlight=False
    )


def say(*lines: str) -> None:
    """Print lines as they are; a terminal wraps them, nothing else does."""
    for line in lines:
        print(line, flush=True)


def warn(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Make stdin, stdout and stderr safe to use; call it first of all.

    A stream that the caller closed is opened on the null device, or the next file that is opened
    would take its number and be written to. A character that the encoding lacks is replaced. A
    reader that has seen enough (`| head -1`) does not end a search.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; the lowest free number is the one that is missing
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for ever
    sys.stdout = _stream(1, sys.stdout, "replace")
    sys.stderr = _stream(2, sys.stderr, "backslashreplace")


def _stream(number: int, before: TextIO | None, errors: str) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    raw = _Raw(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=errors,
        line_buffering=raw.isatty() or number == 2,  # noqa: PLR2004 - stderr
    )


class _Raw(io.FileIO):
    """A stream whose reader may go."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        """Write, or drop what nobody reads any more."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
