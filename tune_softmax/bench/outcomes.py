"""What searches came to: one outcome a search, one row a way."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, nan
from statistics import fmean, median
from typing import TYPE_CHECKING

from tune_softmax.bench.anew import mean_and_error
from tune_softmax.bench.task import GRACE_PERIOD, NUM_EPOCHS, NUM_WORKERS, REDUCTION_FACTOR
from tune_softmax.bench.trace import Report, best_after, curves_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.bench.ways import Answer, Way
    from tune_softmax.config import Config

__all__ = ["TIME_POINTS_S", "Outcome", "Row"]

TIME_POINTS_S = (10, 30, 100, 300)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one search went.

    Attributes:
        wall_s: From typing to the end of the process, or to the time limit.
        is_whole: Whether it came to its own end.
        reports: Validation losses, in the order of time.
        error: Why there is no result.
        configs: What a trial is trained with, by its name in `reports`; none of trials that
            `Config` cannot describe.
    """

    wall_s: float
    is_whole: bool
    reports: tuple[Report, ...]
    error: str | None = None
    configs: Mapping[str, Config] = field(default_factory=dict)

    def is_known_after(self, seconds: float) -> bool:
        """Say whether what it had by then is what it would have had without a time limit."""
        return self.is_whole or seconds <= self.wall_s

    def winner_after(self, seconds: float, answer: Answer) -> Config | None:
        """Return the configuration of the best trial by then, where that is known."""
        trial = answer(curves_until(self.reports, seconds))
        return None if trial is None else self.configs.get(trial)


@dataclass(frozen=True, slots=True)
class Row:
    """One way, measured.

    Attributes:
        way: Which.
        num_trials: Asked for.
        outcomes: One a repeat; a failure ends the repeats.
        anew: Losses of winners that were trained anew, one a seed; see `anew.py`.
    """

    way: Way
    num_trials: int
    outcomes: tuple[Outcome, ...]
    anew: Mapping[Config, tuple[float, ...]] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """Why there is no result, if there is none."""
        return next((one.error for one in self.outcomes if one.error), None)

    @property
    def is_whole(self) -> bool:
        """Whether every search came to its own end."""
        return all(one.is_whole for one in self.outcomes)

    @property
    def trials_done(self) -> tuple[float, ...]:
        """How many trials each repeat did; those that a time limit cut off count half."""
        return tuple(self._trials_done(one) for one in self.outcomes)

    def _trials_done(self, outcome: Outcome) -> float:
        if outcome.is_whole:
            return self.num_trials
        if self.way.is_synchronous:
            trained = sum(one.num_epochs for one in outcome.reports)
            return self.num_trials * trained / _halving_epochs(self.num_trials)
        begun = len({one.trial for one in outcome.reports})
        return max(begun - NUM_WORKERS / 2, 0)

    @property
    def epochs_per_trial(self) -> float:
        """Epochs trained for each trial done, the median; what early stopping leaves of 20."""
        return median(
            sum(report.num_epochs for report in one.reports) / done if done else nan
            for one, done in zip(self.outcomes, self.trials_done, strict=True)
        )

    @property
    def seconds_per_trial(self) -> tuple[float, ...]:
        """Wall seconds over trials done, one value a repeat, start-up included."""
        return tuple(
            one.wall_s / done if done else inf
            for one, done in zip(self.outcomes, self.trials_done, strict=True)
        )

    def best_after(self, seconds: float) -> float | None:
        """Return the median of the best losses reported by then; None where one had none yet."""
        best = [
            best_after(one.reports, seconds) if one.is_known_after(seconds) else None
            for one in self.outcomes
        ]
        found = [value for value in best if value is not None]
        return median(found) if len(found) == len(best) else None

    @property
    def best(self) -> float | None:
        """The median over repeats of the best loss that each search reported."""
        best = [best_after(one.reports, inf) for one in self.outcomes]
        found = [value for value in best if value is not None]
        return median(found) if found else None

    def anew_after(self, seconds: float) -> tuple[float, float | None] | None:
        """Return what the winners by then give when they are trained anew.

        Args:
            seconds: Since typing; infinite for the winners in the end, however that came.

        Returns:
            The mean over repeats of the mean over seeds, and its standard error where there are
            several repeats; None where a repeat had no winner by then, or none is known.
        """
        means = []
        for one in self.outcomes:
            winner = one.winner_after(seconds, self.way.answer)
            is_known = seconds == inf or one.is_known_after(seconds)
            if winner is None or winner not in self.anew or not is_known:
                return None
            means.append(fmean(self.anew[winner]))
        return mean_and_error(means)


def _halving_epochs(num_trials: int) -> int:
    """Return the epochs that synchronous halving trains, each rung from the start."""
    total, left, epochs = 0, num_trials, GRACE_PERIOD
    while epochs <= min(NUM_EPOCHS, num_trials * GRACE_PERIOD):
        total += left * epochs
        left = -(-left // REDUCTION_FACTOR)
        epochs *= REDUCTION_FACTOR
    return total
