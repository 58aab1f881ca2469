"""Format measurements as text: an aligned table, a median with its range, a curve."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["aligned", "sparkline", "spread"]

_BARS = "▁▂▃▄▅▆▇█"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of one length, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [cells[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        )
        for cells in table
    ]
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> tuple[str, str]:
    """Return the median, and the least and largest value, as two cells of a table.

    Args:
        values: At least one.
        digits: Behind the decimal point.
    """
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}", "one run"
    extremes = f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"
    return f"{median(values):,.{digits}f}", extremes


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve in one line of text: bars from zero to the largest value.

    Args:
        values: At least one, none below zero.
        width: Characters at most; longer curves show the largest value of each part.
    """
    step = max(1.0, len(values) / width)
    parts = [
        max(values[int(i * step) : max(int(i * step) + 1, int((i + 1) * step))])
        for i in range(min(width, len(values)))
    ]
    top = max(parts) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in parts)
