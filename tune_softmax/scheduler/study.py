"""The Optuna study of a search: it proposes trials, and learns from their results.

The study is in memory; a resume replays the ledger into it. Each ask makes a new sampler, seeded
by (seed, number of the first trial asked for), so that a resumed search asks for the same trials
as an uninterrupted one. The sampler sees a selection of the trials (`sampler_view`). Only a list
of trials is kept, and each ask makes an `optuna.Study` of it, because a kept study would copy
every trial whenever one is added or its result is told.
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
from tune_softmax.scheduler.agenda import DataView, Task
from tune_softmax.scheduler.sampler_view import sampler_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment.sections import Search
    from tune_softmax.experiment.space import Domain, Space, Value
    from tune_softmax.run.records import TrialRecord
    from tune_softmax.scheduler.warm_start import Past

__all__ = ["Study", "distribution", "recorded_value"]

# In fewer rounds the sampler would learn little. 16 rounds end sooner and miss the optimum more
# often, see docs/notes/search.md.
MIN_ROUNDS = 8
# Of so many configurations at most the untried ones are listed; in larger spaces samplers seldom
# repeat themselves.
MAX_LISTED = 10_000
# With so many complete trials CMA-ES takes its first mean and covariance from them.
MIN_CMA_TRIALS = 16

_FINAL = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAIL: TrialState.FAIL,
}


class Study:
    """The agenda of a search: trials that an Optuna sampler proposes.

    Args:
        space: The experiment's search space.
        search: The experiment's sampler, metric, points and seed.
        history: Trials of another run to learn from; they have no numbers in this search.
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
        self._all = self._small_space()
        self._tried: set[tuple[object, ...]] = set()
        self._num_past = len(history)
        self._trials = [self._known(past.config, past.state, past.curve) for past in history]

    @property
    def num_asked(self) -> int:
        """How many trials have been asked for; the next one's number."""
        return len(self._trials) - self._num_past

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """All trials by number, as Optuna knows them."""
        return self._trials[self._num_past :]

    @property
    def num_trials(self) -> int:
        """How many trials the search has in all."""
        return self._search.count_trials(self._space)

    @property
    def num_rounds(self) -> int:
        """In how many rounds, at least, to ask for trials: the sampler learns between them."""
        return MIN_ROUNDS

    def ask(self, count: int, curves: Mapping[int, Sequence[float]]) -> dict[int, Task]:
        """Propose trials.

        Args:
            count: How many; fewer are returned where the search ends first.
            curves: The metric after each epoch so far, by trial number.

        Returns:
            Trials by number, ascending. Each trains on all training images, and has its own
            initial weights.
        """
        first = self.num_asked
        view = self._view(curves)
        view.sampler = self._sampler(first, view)
        tasks = {}
        for number in range(first, min(first + count, self.num_trials)):
            fixed = self._fixed(number)
            if fixed is not None:
                view.enqueue_trial(fixed)
            # In a range of 2**50 integers and more, TPE's densities of single ones vanish.
            with np.errstate(divide="ignore", invalid="ignore"):
                asked = view.ask(self._distributions)
            if fixed is None and (untried := self._untried(number, asked.params)) is not None:
                view.tell(asked, state=TrialState.FAIL)
                view.enqueue_trial(untried)
                asked = view.ask(self._distributions)
            self._trials.append(self._running(asked.params))
            self._tried.add(self._key(asked.params))
            tasks[number] = self._task(number, self._space.config(asked.params))
        return tasks

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Take a trial's result.

        Args:
            number: The trial's number.
            state: COMPLETE, PRUNED or FAIL.
            curve: The metric after each epoch; for a complete trial's value see `trial_value`.
        """
        index = self._num_past + number
        config = self._space.config(self._trials[index].params)
        self._trials[index] = self._known(config, state, curve)

    def replay(
        self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]
    ) -> dict[int, Task]:
        """Take the trials of a ledger into an empty study; return them by number.

        Args:
            trials: Every trial of the ledger, by number; unfinished ones count as running.
            curves: The metric after each epoch, by trial number.
        """
        tasks = {}
        for record in trials:
            curve = curves.get(record.number, ())
            self._trials.append(self._known(record.config, record.state, curve))
            self._tried.add(self._key(self._trials[-1].params))
            tasks[record.number] = self._task(record.number, record.config)
        return tasks

    def _task(self, number: int, config: Config) -> Task:
        return Task(config, DataView(self._search.seed), draw=number)

    def _known(self, config: Config, state: State, curve: Sequence[float]) -> FrozenTrial:
        return create_trial(
            state=_FINAL.get(state, TrialState.RUNNING),
            value=recorded_value(config, state, curve),
            params={name: getattr(config, name) for name in self._distributions},
            distributions=self._distributions,
            intermediate_values=dict(enumerate(curve, 1)) if state.is_final else None,
        )

    def _view(self, curves: Mapping[int, Sequence[float]]) -> optuna.Study:
        """Return a new study of what the sampler learns from.

        It lacks what samplers store on trials. CMA-ES stores its pickled optimizer there; a run
        folder holds no pickles, so a resumed search could not restore it. Instead CMA-ES starts
        anew for every pack, from the best trials so far: Nomura et al. 2021, "Warm Starting
        CMA-ES for Hyperparameter Optimization".
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
        """Return complete trials without their choices, which CMA-ES does not model."""
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
        """Return the values that a trial must have: a point's or the grid's; None: none."""
        points = self._search.points
        if number < len(points):
            return dict(points[number])
        return self._grid[number - len(points)] if self._grid else None

    def _small_space(self) -> list[dict[str, Value]]:
        """Return all configurations of a space that is finite and small; else none."""
        domains = self._space.searched.values()
        if not all(isinstance(domain, Choice | IntRange) for domain in domains):
            return []
        return list(self._space.grid()) if self._space.grid_size <= MAX_LISTED else []

    def _key(self, params: Mapping[str, object]) -> tuple[object, ...]:
        return tuple(params[name] for name in self._distributions)

    def _untried(self, number: int, params: Mapping[str, object]) -> dict[str, Value] | None:
        """Return what to try in place of a proposal that was tried before.

        It is one of the untried configurations that differ from the proposal in the fewest
        hyperparameters. None keeps the proposal: it is new, all have been tried, or the space is
        too large to list.
        """
        if self._key(params) not in self._tried:
            return None
        left = [point for point in self._all if self._key(point) not in self._tried]
        if not left:
            return None
        differing = [sum(point[name] != params[name] for name in point) for point in left]
        nearest = [p for p, d in zip(left, differing, strict=True) if d == min(differing)]
        seed = derive_seed(self._search.seed, "untried", number)
        return random.Random(seed).choice(nearest)  # noqa: S311

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
                    # The argument `source_trials` may change its form in another release.
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    return optuna.samplers.CmaEsSampler(seed=seed, source_trials=source)
            case _:  # "random", and "grid", whose trials are fixed
                return optuna.samplers.RandomSampler(seed=seed)


class _Tpe(optuna.samplers.TPESampler):
    """Optuna's TPE with a given space, which it else derives from all trials at every ask."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(multivariate=True, constant_liar=True, seed=seed)
        # In the order in which Optuna finds them.
        self._known = {n: d for n, d in sorted(distributions.items()) if not d.single()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space, which all trials of a search share."""
        del study, trial
        return self._known


def recorded_value(config: Config, state: State, curve: Sequence[float]) -> float | None:
    """Return a trial's value for Optuna, which demands a stopped trial's last one."""
    if not curve:
        return None
    match state:
        case State.COMPLETE:
            return trial_value(curve, config.learning_rate_schedule)
        case State.PRUNED:
            return curve[-1]
    return None


def distribution(domain: Domain) -> BaseDistribution:
    """Return the Optuna distribution of a domain."""
    match domain:
        case Choice():
            return CategoricalDistribution(domain.choice)
        case IntRange():
            return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
        case Uniform():
            return FloatDistribution(domain.low, domain.high)
        case LogUniform():
            return FloatDistribution(domain.low, domain.high, log=True)
