"""Intervals, lists, counts and names in words, for the terminal, the report and messages."""

import math
from collections.abc import Iterable

__all__ = ["and_list", "count", "interval_text", "words"]

_NAMES = {"l1": "L1", "l2": "L2", "num_epochs": "epochs", "num_cpus": "CPUs"}


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


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 epoch" or "1,000 epochs"; the plural is the noun with an s by default."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def words(name: object) -> str:
    """Return the name of a column, hyperparameter or remedy as text: "weight decay", "L1"."""
    return _NAMES.get(str(name), str(name).replace("_", " "))
