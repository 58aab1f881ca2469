"""The verdicts on a difference over seeds, and the smallest difference that matters."""

import math
from enum import StrEnum

from tune_softmax.errors import ExperimentError

__all__ = ["Verdict", "check_margin", "default_margin", "margin_or_default"]

_MARGIN_FRACTION = 0.01  # of a loss
_MARGIN_NATS = 0.001  # at least
_MARGIN_ACCURACY = 0.002


class Verdict(StrEnum):
    """How a remedy compares with the baseline, or a trial with the best one.

    BETTER, WORSE: the whole interval of the difference is beyond the margin. NO_DIFFERENCE: the
    whole interval is within it. UNSETTLED: neither; more seeds would tell.
    """

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference that matters"
    UNSETTLED = "not settled"


def default_margin(metric: str, level: float) -> float:
    """Return the smallest difference that matters, where none is given.

    Of a loss it is 1 % of the level and at least 0.001 nats; of an accuracy 0.002. More seeds make
    the smallest difference certain, but not one that another test set would show: over 10,000
    images the standard error of a mean loss of 0.45 is about 0.007 nats, and of an accuracy of
    0.85 it is 0.0036. The margins are near half of that.

    Args:
        metric: The name of a loss, an accuracy, or `gap`.
        level: Of the loss that the difference is held against, in nats.
    """
    if metric.endswith("accuracy"):
        return _MARGIN_ACCURACY
    return max(_MARGIN_FRACTION * level, _MARGIN_NATS) if math.isfinite(level) else _MARGIN_NATS


def check_margin(margin: float) -> None:
    """Refuse a margin that is no number >= 0.

    Raises:
        ExperimentError: It is not.
    """
    if not 0 <= margin < math.inf:
        raise ExperimentError(f"margin: must be a number >= 0, not {margin}; 0 takes none")


def margin_or_default(margin: float | None, metric: str, level: float) -> float:
    """Return a margin that was given, or else the default; see `default_margin`.

    Raises:
        ExperimentError: The margin is no number >= 0.
    """
    if margin is None:
        return default_margin(metric, level)
    check_margin(margin)
    return float(margin)
