"""What a sampler sees: trials that have come as far as enough others, and not too many."""

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tune_softmax.config import Config
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import State
from tune_softmax.scheduler.sampler_view import MAX_SEEN, MIN_SEEN, sampler_view
from tune_softmax.scheduler.study import Study
from tune_softmax.scheduler.warm_start import Past

RUNGS = [1, 4, 16]
DOMAIN = {"x": FloatDistribution(0, 1000)}


def trial(number, num_epochs, state=TrialState.COMPLETE, value=None):
    """Return a trial that is known by its hyperparameter x."""
    value = 1 / (1 + num_epochs) if value is None else value
    curve = dict.fromkeys(range(1, num_epochs + 1), value)
    return create_trial(
        state=state,
        value=value if state in {TrialState.COMPLETE, TrialState.PRUNED} else None,
        params={"x": float(number)},
        distributions=DOMAIN,
        intermediate_values=curve,
    )


def numbers(view):
    """Return which trials are in a view."""
    return [int(trial.params["x"]) for trial in view]


def test_without_rungs_every_trial_counts_but_the_failed():
    """A search that stops nothing has values that all compare."""
    trials = [
        trial(0, 3),
        trial(1, 2, TrialState.FAIL),
        trial(2, 0, TrialState.RUNNING),
        trial(3, 9),
    ]
    assert numbers(sampler_view(trials, [], minimize=True)) == [0, 2, 3]


def test_before_enough_have_reached_a_rung_every_trial_counts():
    """Nine trials say too little of a rung to look at them alone."""
    trials = [trial(n, 0, TrialState.RUNNING) for n in range(3)]
    trials += [trial(n, 1, TrialState.PRUNED) for n in range(3, 3 + MIN_SEEN - 1)]
    assert sampler_view(trials, RUNGS, minimize=True) == trials


@pytest.mark.parametrize(("num_far", "level"), [(0, 1), (MIN_SEEN - 1, 1), (MIN_SEEN, 4)])
def test_the_highest_rung_counts_that_enough_have_reached(num_far, level):
    """Short trials, however good, are left out once ten have come to the next rung."""
    short = [trial(n, 2, value=0.1) for n in range(20)]
    far = [trial(20 + n, 4 + n % 2, TrialState.PRUNED, value=0.5) for n in range(num_far)]
    view = sampler_view([*short, *far], RUNGS, minimize=True)
    assert numbers(view) == numbers(far if level == 4 else [*short, *far])


def test_trials_count_by_what_they_were_at_the_rung():
    """Stopped, complete or going on: the mean of epochs 3 and 4; who is below still runs."""
    reached = [trial(n, 4, TrialState.PRUNED) for n in range(MIN_SEEN)]
    curve = {1: 9.0, 2: 9.0, 3: 0.25, 4: 0.75, 5: 0.1, 6: 0.1}
    past = trial(50, 6, TrialState.RUNNING)
    whole = trial(51, 6, value=0.1)
    for one in (past, whole):
        one.intermediate_values = curve
    below = trial(52, 2, TrialState.RUNNING)
    view = sampler_view([*reached, past, whole, below], RUNGS, minimize=True)
    assert numbers(view) == [*range(MIN_SEEN), 50, 51, 52]
    assert [one.state for one in view[-3:]] == [
        *(TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING)
    ]
    assert [one.value for one in view[-3:]] == [0.5, 0.5, None]


@pytest.mark.parametrize("minimize", [True, False])
def test_of_very_many_the_best_are_kept_and_the_rest_thinned(minimize):
    """TPE's good ones are the same as of all; the rest are spread from good to bad."""
    ordered = [number * 7 % 1000 for number in range(1000)]
    trials = [trial(n, 3, value=float(n if minimize else -n)) for n in ordered]
    trials.append(trial(1000, 0, TrialState.RUNNING))
    view = sampler_view(trials, [], minimize=minimize)
    kept = numbers(view)
    assert len(kept) == MAX_SEEN + 1
    assert kept == [n for n in [*ordered, 1000] if n in set(kept)]  # in their order
    assert set(range(64)) <= set(kept)
    gaps = sorted(set(kept) - {1000})
    assert max(b - a for a, b in itertools.pairwise(gaps)) <= 1000 // (MAX_SEEN - 64) + 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.sampled_from(list(TrialState)[:4]),
            st.floats(-1e6, 1e6),
        ),
        max_size=400,
    ),
    st.sampled_from([[], [1], RUNGS]),
    st.booleans(),
)
def test_a_view_is_bounded_and_one_that_optuna_can_rank(made, rungs, minimize):
    """Whatever became of the trials: no failed one, in order, few enough, and TPE asks."""
    trials = [
        trial(number, epochs if state is TrialState.RUNNING else max(epochs, 1), state, value)
        for number, (epochs, state, value) in enumerate(made)
    ]
    view = sampler_view(trials, rungs, minimize=minimize)
    assert numbers(view) == sorted(numbers(view))
    states = [trial.state for trial in view]
    assert TrialState.FAIL not in states
    assert len(view) - states.count(TrialState.RUNNING) <= MAX_SEEN
    study = optuna.create_study(
        direction="minimize" if minimize else "maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=0),
    )
    study.add_trials(view)
    assert 0 <= study.ask(DOMAIN).params["x"] <= 1000


def test_a_study_asks_from_its_view():
    """The sampler sees no more of a long history than the view holds, and the trials in flight."""
    asked = parse(
        "dataset: {name: digits}\nspace: {batch_size: 64, num_epochs: 4, "
        "learning_rate: {log_uniform: [1e-3, 1]}}\nsearch: {num_trials: 5000}\n",
        "x.yaml",
    )
    history = [
        Past(State.COMPLETE, Config(batch_size=64, num_epochs=4, learning_rate=n / 1000), (0.5,))
        for n in range(1, 500)
    ]
    study = Study(asked.space, asked.search, history)
    assert len(study.ask(3, {})) == 3
    assert len(study._view({}).get_trials(deepcopy=False)) == MAX_SEEN + 3
