"""Intervals and lists in words, the same on the terminal, in the report and in messages."""

import math
from collections.abc import Iterable

__all__ = ["and_list", "interval_text"]


def interval_text(low: float, high: float, form: str = ".4f") -> str:
    """Return an interval as "LOW to HIGH", or "no interval" where an end is not finite.

    Args:
        low: Its lower end; -inf where there is no interval.
        high: Its upper end; inf where there is no interval.
        form: How each end is written, a format specification.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"{low:{form}} to {high:{form}}"


def and_list(items: Iterable[object]) -> str:
    """Return "a", "a and b" or "a, b and c"; empty for nothing."""
    *others, last = [*map(str, items)] or [""]
    return f"{', '.join(others)} and {last}" if others else last
