"""ASHA over single trials, across all packs: the rungs, and the referee.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", in its stopping form, as
Ray Tune's ASHAScheduler has it: a trial that comes to a rung goes on if it is within the best one
in eta of those that came before it. One referee hears every trial on every rung, whichever pack
it trains in; after a restart it hears the recorded values again and stands where it stood.

The rule is written out here, because Ray Tune's judges one trial at a time where its trials, our
packs, report, and does not stand where it stood after a restart.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from math import e, floor, inf, isfinite
from random import Random
from typing import TYPE_CHECKING

from tune_softmax.data.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tune_softmax.experiment.experiment import Asha

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
        return {n for n, v in sorted(values.items()) if self._ends(n, epoch, v, n in final)}

    def _ends(self, number: int, epoch: int, value: float, is_final: bool) -> bool:  # noqa: FBT001
        if epoch > self._heard.get(number, 0) and epoch in self._rungs.of(number):
            self._heard[number] = epoch
            reached = self._reached[self._rungs.bracket(number), epoch]
            if self._sign * value > self._cutoff(reached) and not is_final:
                self._stopped[number] = epoch
            insort(reached, self._sign * value)
        return self._stopped.get(number) == epoch

    def _cutoff(self, reached: Sequence[float]) -> float:
        """Return the 1/eta quantile, interpolated between two values; of none, infinity."""
        if not reached:
            return inf
        position = (len(reached) - 1) / self._rungs.reduction_factor
        below = floor(position)
        above = min(below + 1, len(reached) - 1)
        return reached[below] + (reached[above] - reached[below]) * (position - below)
