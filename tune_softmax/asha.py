"""ASHA over single trials, across all packs: the rungs, and the referee.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", in its stopping form, as
Ray Tune's ASHAScheduler has it: a trial that comes to a rung goes on if it is within the best one
in eta of those that came before it. One referee hears every trial on every rung, whichever pack
it trains in; after a restart it hears the recorded values again and stands where it stood.

The trials of a pack come to a rung at once. On the first one they are heard one after another; on
later ones each is compared with its pack's others too, which is stricter: as trials get better
and better, far more than one in eta are better than what came before. On the first rung, where a
place says little of the end, that would miss the best; docs/search.md has both.

The rule is written out here, because Ray Tune takes longer to import than a search of small
trials to train, and the referee runs in a process of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from math import e, floor, inf, isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from tune_softmax.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tune_softmax.experiment import Asha

__all__ = ["Referee", "Rungs"]


class Rungs:
    """The epochs after which ASHA compares a search's trials.

    Every bracket has rungs of its own, and a trial's bracket is drawn from (seed, trial number)
    with the probabilities that Ray Tune's ASHAScheduler uses, so that it is the same on every
    retry, and wherever it is asked for.

    Args:
        asha: Grace period, reduction factor and brackets.
        max_epochs: The most epochs that any trial of the search may train.
        seed: The experiment's seed.

    Attributes:
        reduction_factor: Of the trials that come to a rung, one in so many goes on.
    """

    def __init__(self, asha: Asha, max_epochs: int, seed: int) -> None:
        self.reduction_factor = asha.reduction_factor
        self._seed = seed
        self._rungs = [asha.rungs(max_epochs, bracket) for bracket in range(asha.brackets)]
        self._brackets: dict[int, int] = {}

    def of(self, number: int) -> Sequence[int]:
        """Return a trial's rungs, in epochs, ascending."""
        return self._rungs[self.bracket(number)]

    def reached(self, number: int, epoch: int) -> int | None:
        """Return the highest rung that a trial has reached after an epoch; None below all."""
        return max((rung for rung in self.of(number) if rung <= epoch), default=None)

    def bracket(self, number: int) -> int:
        """Return a trial's bracket, from 0."""
        if number not in self._brackets:
            largest = max(map(len, self._rungs))
            weights = [e ** (len(rungs) - largest) for rungs in self._rungs]
            draw = Random(derive_seed(self._seed, "bracket", number))  # noqa: S311
            (self._brackets[number],) = draw.choices(range(len(weights)), weights)
        return self._brackets[number]


class Referee:
    """Says which trials of one search end on their rungs.

    Args:
        rungs: Where trials are compared.
        mode: "min" or "max": which values are better.
    """

    def __init__(self, rungs: Rungs, mode: str) -> None:
        self._rungs = rungs
        self._sign = 1 if mode == "min" else -1
        # Values of those that came to each rung, by (bracket, epoch), the best one first.
        self._reached: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._heard: dict[int, int] = {}  # the last rung, by trial
        self._stopped: dict[int, int] = {}  # epoch of the stop, by trial
        self._parked: dict[int, Any] = {}

    def park(self, states: Mapping[int, Any]) -> None:
        """Keep the states of trials that wait on a rung for a fuller pack.

        Args:
            states: By trial number; what they are is the packs' business.
        """
        self._parked |= states

    def fetch(self, numbers: Collection[int]) -> dict[int, Any]:
        """Give back, and forget, the states of parked trials, as far as they are here."""
        return {n: self._parked.pop(n) for n in numbers if n in self._parked}

    def replay(self, values: Mapping[int, Mapping[int, float]]) -> None:
        """Hear recorded epochs again: they fill the rungs, and nobody is stopped.

        Args:
            values: The metric by trial number and epoch; `judge` never heard the infinite ones
                and NaN, so they are left out here too.
        """
        for number, curve in sorted(values.items()):
            for epoch, value in sorted(curve.items()):
                if isfinite(value):
                    self.judge(epoch, {number: value}, final=())
        self._stopped.clear()

    def judge(self, epoch: int, values: Mapping[int, float], final: Collection[int]) -> set[int]:
        """Hear of trials after an epoch, and say which of them end there.

        Args:
            epoch: From 1.
            values: The metric by trial number, finite; those of trials that are on no rung change
                nothing.
            final: The trials whose own last epoch this is; they count, and are not stopped.

        Returns:
            The trials that end; an epoch heard before gets the same answer again, because a pack
            that lost its worker trains its epochs a second time.
        """
        fresh = [n for n in sorted(values) if self._is_new(n, epoch)]
        later = {n: self._sign * values[n] for n in fresh if epoch > self._rungs.of(n)[0]}
        for number in fresh:
            if number not in later:
                self._compare(epoch, {number: self._sign * values[number]}, final)
        self._compare(epoch, later, final)
        return {n for n in values if self._stopped.get(n) == epoch}

    def _is_new(self, number: int, epoch: int) -> bool:
        return epoch > self._heard.get(number, 0) and epoch in self._rungs.of(number)

    def _compare(self, epoch: int, values: Mapping[int, float], final: Collection[int]) -> None:
        """Let trials come to a rung at once, each compared with all others that are there."""
        reached = {n: self._reached[self._rungs.bracket(n), epoch] for n in values}
        for number, value in values.items():
            self._heard[number] = epoch
            insort(reached[number], value)
        for number, value in values.items():
            cutoff = _cutoff(reached[number], value, self._rungs.reduction_factor)
            if value > cutoff and number not in final:
                self._stopped[number] = epoch


def _cutoff(reached: Sequence[float], value: float, reduction_factor: float) -> float:
    """Return the 1/eta quantile, interpolated between two values, of all but one; of none, inf.

    Args:
        reached: Ascending.
        value: The one of these that is left out.
        reduction_factor: eta.
    """
    own = bisect_left(reached, value)
    last = len(reached) - 2  # the place of the greatest among the others
    if last < 0:
        return inf
    position = last / reduction_factor
    below = floor(position)
    low, high = (reached[i + (i >= own)] for i in (below, min(below + 1, last)))
    return low + (high - low) * (position - below)
