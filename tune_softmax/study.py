"""The Optuna study over the ledger: ask for a pack's worth of trials, tell what became of each.

The study lives in memory and is a replay of the ledger. The sampler is made anew for each ask
from (seed, number of the first trial asked for), so a resumed search asks as an unbroken one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from tune_softmax.metrics import State
from tune_softmax.seeding import derive_seed
from tune_softmax.space import Choice, IntRange, LogUniform, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment import Search
    from tune_softmax.ledger import TrialRecord
    from tune_softmax.space import Domain, Space, Value

__all__ = ["Study", "distribution"]

_FINAL = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAIL: TrialState.FAIL,
}
_VALUED = {State.COMPLETE, State.PRUNED}  # those whose last epoch Optuna takes as their value


class Study:
    """What Optuna knows of a search.

    Args:
        space: The experiment's search space.
        search: The experiment's sampler, metric, points and seed.
    """

    def __init__(self, space: Space, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._search = search
        self._distributions = {
            name: distribution(domain) for name, domain in space.searched.items()
        }
        self._study = optuna.create_study(
            direction="minimize" if search.mode == "min" else "maximize",
            sampler=self._sampler(0),
        )
        self._grid = self._shuffled_grid() if search.sampler == "grid" else []

    @property
    def num_asked(self) -> int:
        """How many trials have been asked for; the next one's number."""
        return len(self._study.get_trials(deepcopy=False))

    @property
    def num_trials(self) -> int:
        """How many trials the search has in all."""
        return self._search.count_trials(self._space)

    def ask(self, count: int) -> dict[int, Config]:
        """Ask for trials.

        Args:
            count: How many; fewer are given where the search ends first.

        Returns:
            Hyperparameters by trial number, ascending.
        """
        first = self.num_asked
        self._study.sampler = self._sampler(first)
        configs = {}
        for number in range(first, min(first + count, self.num_trials)):
            fixed = self._fixed(number)
            if fixed is not None:
                self._study.enqueue_trial(fixed)
            trial = self._study.ask(self._distributions)
            configs[number] = self._space.config(trial.params)
        return configs

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Tell what became of a trial.

        Args:
            number: The trial's number.
            state: COMPLETE, PRUNED or FAIL.
            curve: The metric after each epoch; the last is the trial's value.
        """
        frozen = self._study.get_trials(deepcopy=False)[number]
        trial = optuna.Trial(self._study, frozen._trial_id)  # noqa: SLF001 - no public way back
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
        if state is State.COMPLETE:
            self._study.tell(trial, curve[-1])
        else:
            self._study.tell(trial, state=_FINAL[state])

    def replay(self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]) -> None:
        """Bring an empty study to where the ledger is.

        Args:
            trials: Every trial of the ledger, by number; unfinished ones count as running.
            curves: The metric after each epoch, by trial number.
        """
        for record in trials:
            curve = curves.get(record.number, ())
            self._study.add_trial(
                create_trial(
                    state=_FINAL.get(record.state, TrialState.RUNNING),
                    value=curve[-1] if curve and record.state in _VALUED else None,
                    params={name: getattr(record.config, name) for name in self._distributions},
                    distributions=self._distributions,
                    intermediate_values=dict(enumerate(curve, 1))
                    if record.state.is_final
                    else None,
                )
            )

    def _fixed(self, number: int) -> dict[str, Value] | None:
        """Return what a trial must try, in whole or in part: a given point, or the grid's."""
        points = self._search.points
        if number < len(points):
            return dict(points[number])
        return self._grid[number - len(points)] if self._grid else None

    def _shuffled_grid(self) -> list[dict[str, Value]]:
        grid = list(self._space.grid())
        random.Random(derive_seed(self._search.seed, "grid")).shuffle(grid)  # noqa: S311
        return grid

    def _sampler(self, first: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._search.seed, "sampler", first)
        match self._search.sampler:
            case "tpe":
                return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed)
            case _:  # a grid's trials are fixed, so that nothing is left to sample
                return optuna.samplers.RandomSampler(seed=seed)


def distribution(domain: Domain) -> BaseDistribution:
    """Return Optuna's word for a domain."""
    match domain:
        case Choice():
            return CategoricalDistribution(domain.choice)
        case IntRange():
            return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        case Uniform():
            return FloatDistribution(domain.low, domain.high)
        case LogUniform():
            return FloatDistribution(domain.low, domain.high, log=True)
