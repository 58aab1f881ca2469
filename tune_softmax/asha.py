"""The referee: ASHA over single trials, across all packs.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", in its stopping form, as
Ray Tune's ASHAScheduler has it: a trial that comes to a rung goes on if it is within the best one
in eta of those that came before it. One referee hears every trial at every epoch, whichever pack
it trains in; after a restart it hears the recorded values again and stands where it stood.

The rule is written out here, because Ray Tune takes longer to import than a search of small
trials to train, and this runs in a process of its own.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import dataclass
from math import e, floor, inf, isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from tune_softmax.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tune_softmax.experiment import Asha

__all__ = ["Referee", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ASHA says of one trial at one epoch.

    Attributes:
        stop: Whether the trial ends here.
        rung: The highest rung it has reached, in epochs; None below the lowest.
    """

    stop: bool
    rung: int | None


class Referee:
    """ASHA over the trials of one search.

    Every bracket has rungs of its own, and a trial's bracket is drawn from (seed, trial number)
    with the probabilities that Ray Tune's ASHAScheduler uses, so that it is the same on every
    retry.

    Args:
        asha: Grace period, reduction factor and brackets.
        mode: "min" or "max": which values are better.
        max_epochs: The most epochs that any trial of the search may train.
        seed: The experiment's seed.
    """

    def __init__(self, asha: Asha, mode: str, max_epochs: int, seed: int) -> None:
        self._seed = seed
        self._sign = 1 if mode == "min" else -1
        self._factor = asha.reduction_factor
        self._rungs = [asha.rungs(max_epochs, bracket) for bracket in range(asha.brackets)]
        # Values of those that came to each rung, by (bracket, epoch), the best one first.
        self._reached: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._brackets: dict[int, int] = {}
        self._heard: dict[int, int] = {}  # last epoch heard, by trial
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
        """Hear recorded epochs again: they fill the rungs, and their verdicts stand.

        Args:
            values: The metric by trial number and epoch; `judge` never heard the infinite ones
                and NaN, so they are left out here too.
        """
        for number, curve in sorted(values.items()):
            for epoch, value in sorted(curve.items()):
                if isfinite(value):
                    self.judge(epoch, {number: value}, final=())
        self._stopped.clear()

    def judge(
        self, epoch: int, values: Mapping[int, float], final: Collection[int]
    ) -> dict[int, Verdict]:
        """Hear one epoch of some trials.

        Args:
            epoch: From 1.
            values: The metric by trial number, finite.
            final: The trials whose own last epoch this is; they count, and are not stopped.

        Returns:
            A verdict for each trial; an epoch heard before gets the same one again, because a
            pack that lost its worker trains its epochs a second time.
        """
        return {n: self._verdict(n, epoch, v, n in final) for n, v in sorted(values.items())}

    def _verdict(self, number: int, epoch: int, value: float, is_final: bool) -> Verdict:  # noqa: FBT001
        bracket = self._bracket(number)
        rungs = [rung for rung in self._rungs[bracket] if rung <= epoch]
        if epoch > self._heard.get(number, 0):
            self._heard[number] = epoch
            if epoch in rungs:
                reached = self._reached[bracket, epoch]
                if self._sign * value > self._cutoff(reached) and not is_final:
                    self._stopped[number] = epoch
                insort(reached, self._sign * value)
        return Verdict(self._stopped.get(number) == epoch, rungs[-1] if rungs else None)

    def _cutoff(self, reached: Sequence[float]) -> float:
        """Return the 1/eta quantile, interpolated between two values; of none, infinity."""
        if not reached:
            return inf
        position = (len(reached) - 1) / self._factor
        below = floor(position)
        above = min(below + 1, len(reached) - 1)
        return reached[below] + (reached[above] - reached[below]) * (position - below)

    def _bracket(self, number: int) -> int:
        if number not in self._brackets:
            largest = max(map(len, self._rungs))
            weights = [e ** (len(rungs) - largest) for rungs in self._rungs]
            draw = Random(derive_seed(self._seed, "bracket", number))  # noqa: S311
            (self._brackets[number],) = draw.choices(range(len(weights)), weights)
        return self._brackets[number]
