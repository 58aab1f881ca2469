"""The referee: Ray Tune's own ASHA over single trials, across all packs.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2 in its
stopping form. One referee hears every trial at every epoch, whichever pack it trains in; after
a restart it hears the recorded values again and stands where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, isfinite
from random import Random
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune_softmax.seeding import derive_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

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


@dataclass(frozen=True, slots=True)
class _Entrant:
    """As much of a Ray Tune trial as the scheduler looks at."""

    trial_id: str


class Referee:
    """ASHA over the trials of one search.

    Brackets are schedulers of their own, and a trial's is drawn from (seed, trial number) with
    the probabilities that Ray Tune uses, so that it is the same on every retry.

    Args:
        asha: Grace period, reduction factor and brackets.
        mode: "min" or "max": which values are better.
        max_epochs: The most epochs that any trial of the search may train.
        seed: The experiment's seed.
    """

    def __init__(self, asha: Asha, mode: str, max_epochs: int, seed: int) -> None:
        self._seed = seed
        self._schedulers: list[ASHAScheduler] = []
        self._rungs: list[list[int]] = []
        factor = asha.reduction_factor
        for s in range(asha.brackets):
            lowest = asha.grace_period * factor**s
            self._schedulers.append(
                ASHAScheduler(
                    time_attr="epoch",
                    metric="value",
                    mode=mode,
                    max_t=max_epochs,
                    grace_period=lowest,
                    reduction_factor=factor,
                )
            )
            self._rungs.append(asha.rungs(max_epochs, s))
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
        if epoch > self._heard.get(number, 0):
            self._heard[number] = epoch
            result = {"epoch": epoch, "value": value}
            action = self._schedulers[bracket].on_trial_result(None, _Entrant(str(number)), result)
            if action == TrialScheduler.STOP and not is_final:
                self._stopped[number] = epoch
        reached = [rung for rung in self._rungs[bracket] if rung <= epoch]
        return Verdict(self._stopped.get(number) == epoch, reached[-1] if reached else None)

    def _bracket(self, number: int) -> int:
        if number not in self._brackets:
            largest = max(map(len, self._rungs))
            weights = [e ** (len(rungs) - largest) for rungs in self._rungs]
            draw = Random(derive_seed(self._seed, "bracket", number))  # noqa: S311
            (bracket,) = draw.choices(range(len(weights)), weights)
            self._schedulers[bracket].on_trial_add(None, _Entrant(str(number)))
            self._brackets[number] = bracket
        return self._brackets[number]
