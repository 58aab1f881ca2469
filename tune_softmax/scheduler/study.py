"""The Optuna study over the ledger: ask for a pack's worth of trials, tell what became of each.

The study lives in memory and is a replay of the ledger. The sampler is made anew for each ask
from (seed, number of the first trial asked for), so a resumed search asks as an unbroken one. It
looks at a view of the study: the trials that tell most, and no more of them than it can bear. So
what stays is a list of trials, and an `optuna.Study` is made of it for every ask: one that stayed
would copy each trial whenever it is added or told of.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_softmax.data.seeding import derive_seed
from tune_softmax.experiment.space import Choice, IntRange, LogUniform, Uniform
from tune_softmax.metrics import State, trial_value
from tune_softmax.scheduler.agenda import Task, View
from tune_softmax.scheduler.sampler_view import sampler_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment.experiment import Search
    from tune_softmax.experiment.space import Domain, Space, Value
    from tune_softmax.run.records import TrialRecord
    from tune_softmax.scheduler.warm_start import Past

__all__ = ["Study", "distribution", "recorded_value"]

# A search of fewer rounds would leave the sampler little to learn from; with 16 it is sooner done,
# and misses the optimum more often, see docs/notes/search.md.
MIN_ROUNDS = 8
# CMA-ES takes its first mean and covariance from a search's trials once there are so many.
MIN_CMA_TRIALS = 16

_FINAL = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAIL: TrialState.FAIL,
}


class Study:
    """What Optuna knows of a search.

    Args:
        space: The experiment's search space.
        search: The experiment's sampler, metric, points and seed.
        history: Trials of another run to learn from; they have no numbers of this search.
    """

    def __init__(self, space: Space, search: Search, history: Sequence[Past] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._search = search
        self._distributions = {
            name: distribution(domain) for name, domain in space.searched.items()
        }
        max_epochs = int(space.largest("num_epochs"))
        self._rungs = search.asha.rungs(max_epochs) if search.asha else []
        self._grid = self._shuffled_grid() if search.sampler == "grid" else []
        self._num_past = len(history)
        self._trials = [self._known(past.config, past.state, past.curve) for past in history]

    def task(self, number: int, config: Config) -> Task:
        """Return a trial: it trains on all training images, and has its own initial weights."""
        return Task(config, View(self._search.seed), draw=number)

    @property
    def num_asked(self) -> int:
        """How many trials have been asked for; the next one's number."""
        return len(self._trials) - self._num_past

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """What became of each trial, by number, as Optuna has it."""
        return self._trials[self._num_past :]

    @property
    def num_trials(self) -> int:
        """How many trials the search has in all."""
        return self._search.count_trials(self._space)

    @property
    def num_rounds(self) -> int:
        """In how many rounds, at least, it wants to be asked: the sampler learns between them."""
        return MIN_ROUNDS

    def ask(self, count: int, curves: Mapping[int, Sequence[float]]) -> dict[int, Config]:
        """Ask for trials.

        Args:
            count: How many; fewer are given where the search ends first.
            curves: The metric after each epoch so far, by trial number.

        Returns:
            Hyperparameters by trial number, ascending.
        """
        first = self.num_asked
        view = self._view(curves)
        view.sampler = self._sampler(first, view)
        configs = {}
        for number in range(first, min(first + count, self.num_trials)):
            fixed = self._fixed(number)
            if fixed is not None:
                view.enqueue_trial(fixed)
            # In a range of 2**50 integers and more, TPE's densities of single ones vanish.
            with np.errstate(divide="ignore", invalid="ignore"):
                asked = view.ask(self._distributions)
            self._trials.append(self._running(asked.params))
            configs[number] = self._space.config(asked.params)
        return configs

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Tell what became of a trial.

        Args:
            number: The trial's number.
            state: COMPLETE, PRUNED or FAIL.
            curve: The metric after each epoch; for a complete trial's value see `trial_value`.
        """
        index = self._num_past + number
        config = self._space.config(self._trials[index].params)
        self._trials[index] = self._known(config, state, curve)

    def replay(self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]) -> None:
        """Bring an empty study to where the ledger is.

        Args:
            trials: Every trial of the ledger, by number; unfinished ones count as running.
            curves: The metric after each epoch, by trial number.
        """
        self._trials += [
            self._known(record.config, record.state, curves.get(record.number, ()))
            for record in trials
        ]

    def _known(self, config: Config, state: State, curve: Sequence[float]) -> FrozenTrial:
        return create_trial(
            state=_FINAL.get(state, TrialState.RUNNING),
            value=recorded_value(config, state, curve),
            params={name: getattr(config, name) for name in self._distributions},
            distributions=self._distributions,
            intermediate_values=dict(enumerate(curve, 1)) if state.is_final else None,
        )

    def _view(self, curves: Mapping[int, Sequence[float]]) -> optuna.Study:
        """Return a study of what the sampler is to learn from.

        It is made anew for every pack, without what a sampler has noted on trials: CMA-ES keeps
        its optimizer there, pickled, and a run folder holds no pickles, so that a resumed search
        would lack it. So every pack's begins anew, from the best of the trials so far: Nomura et
        al. 2021, "Warm Starting CMA-ES for Hyperparameter Optimization".
        """
        known = [
            self._running(trial.params, curves.get(index - self._num_past, ()))
            if trial.state is TrialState.RUNNING
            else trial
            for index, trial in enumerate(self._trials)
        ]
        minimizes = self._search.mode == "min"
        view = optuna.create_study(direction="minimize" if minimizes else "maximize")
        view.add_trials(sampler_view(known, self._rungs, minimize=minimizes))
        return view

    def _running(self, params: dict[str, Any], curve: Sequence[float] = ()) -> FrozenTrial:
        return create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=self._distributions,
            intermediate_values=dict(enumerate(curve, 1)),
        )

    def _numeric_trials(self, view: optuna.Study) -> list[FrozenTrial]:
        """Return complete trials as far as CMA-ES knows them: without choices."""
        numeric = {
            name: domain
            for name, domain in self._distributions.items()
            if not isinstance(domain, CategoricalDistribution)
        }
        return [
            create_trial(
                value=trial.value,
                params={name: trial.params[name] for name in numeric},
                distributions=numeric,
            )
            for trial in view.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]

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

    def _sampler(self, first: int, view: optuna.Study) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._search.seed, "sampler", first)
        match self._search.sampler:
            case "tpe":
                return _Tpe(self._distributions, seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                complete = self._numeric_trials(view)
                source = complete if len(complete) >= MIN_CMA_TRIALS else None
                with warnings.catch_warnings():
                    # Experimental is the argument's form, not what it does.
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    return optuna.samplers.CmaEsSampler(seed=seed, source_trials=source)
            case _:  # a grid's trials are fixed, so that nothing is left to sample
                return optuna.samplers.RandomSampler(seed=seed)


class _Tpe(optuna.samplers.TPESampler):
    """Optuna's TPE, told the space that it would look for in every trial at every ask.

    Args:
        distributions: Of all hyperparameters that are searched.
        seed: Of its draws.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(multivariate=True, constant_liar=True, seed=seed)
        # In the order in which Optuna finds them.
        self._known = {n: d for n, d in sorted(distributions.items()) if not d.single()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space: every trial of ours has it."""
        del study, trial
        return self._known


def recorded_value(config: Config, state: State, curve: Sequence[float]) -> float | None:
    """Return what Optuna holds as a trial's value: a stopped one's last, as it demands."""
    if not curve:
        return None
    match state:
        case State.COMPLETE:
            return trial_value(curve, config.learning_rate_schedule)
        case State.PRUNED:
            return curve[-1]
    return None


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
