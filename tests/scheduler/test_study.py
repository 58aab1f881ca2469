"""The study: what Optuna is asked and told, and that a replay stands where the study stood."""

import json
import math
import random
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from tune_softmax.config import Config
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import State
from tune_softmax.run.records import TrialRecord
from tune_softmax.scheduler.study import Study, distribution, recorded_value

EXPERIMENT = """
dataset: {{name: digits}}
space:
  batch_size: {{choice: [16, 32, 64]}}
  num_epochs: {{int: [2, 8]}}
  learning_rate: {{log_uniform: [1e-3, 1]}}
  learning_rate_schedule: {{choice: [constant, linear, cosine]}}
  hidden_units: {{int: {{low: 8, high: 64, step: 8}}}}
  momentum: {{uniform: [0, 0.9]}}
  weight_decay: 1e-4
search: {{num_trials: {num_trials}, sampler: {sampler}, seed: {seed}{more}}}
"""
GRID = """
dataset: {{name: digits}}
space:
  batch_size: {{choice: [16, 32]}}
  num_epochs: {{int: [1, 3]}}
  learning_rate: 0.1
search: {{num_trials: {num_trials}, sampler: grid, asha: none, seed: {seed}{more}}}
"""


def experiment(sampler="tpe", *, num_trials=64, seed=0, more="", text=EXPERIMENT):
    """Return an experiment, with `more` keys in its search section."""
    return parse(
        text.format(sampler=sampler, num_trials=num_trials, seed=seed, more=more), "x.yaml"
    )


def study_of(asked):
    """Return an experiment's empty study."""
    return Study(asked.space, asked.search)


def ask(study, count, curves=None):
    """Ask a study, and return configurations by trial number."""
    return {number: task.config for number, task in study.ask(count, curves or {}).items()}


def outcome(number, config):
    """Return what becomes of a trial: mostly good, one in five stopped, one in seven failed."""
    curve = [1 + abs(math.log10(config.learning_rate) + 1) + 1 / e for e in range(1, 4)]
    if number % 7 == 6:
        return State.FAIL, [*curve, math.nan]
    return (State.PRUNED, curve[:2]) if number % 5 == 4 else (State.COMPLETE, curve)


def drive(study, records, curves, num_asks, count):
    """Ask and tell, and note it all as the ledger would."""
    for pack in range(num_asks):
        configs = ask(study, count, curves)
        for number, config in configs.items():
            state, curves[number] = outcome(number, config)
            study.tell(number, state, curves[number])
            records.append(TrialRecord(number, state, config, pack, 1, None, None))


@pytest.mark.parametrize(
    ("sampler", "num_asks", "count"),
    [("tpe", 5, 6), ("random", 5, 6), ("cmaes", 5, 6), ("gp", 2, 6)],
)
def test_every_configuration_is_in_the_space(sampler, num_asks, count):
    """Numbers ascend without a gap, values have their types, and the constants are there."""
    asked = experiment(sampler)
    study = study_of(asked)
    records = []
    drive(study, records, {}, num_asks, count)
    assert [record.number for record in records] == list(range(num_asks * count))
    for record in records:
        config = record.config
        for name in asked.space.searched:
            assert asked.space.contains(name, getattr(config, name)), (name, config)
        assert config.weight_decay == 1e-4
        assert (type(config.batch_size), type(config.learning_rate)) == (int, float)
    assert len({record.config for record in records}) == len(records)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_is_told_what_became_of_each_trial(sampler):
    """COMPLETE with the last value, PRUNED with the values so far, FAIL; none is left running."""
    asked = experiment(sampler, num_trials=15)
    study = study_of(asked)
    records, curves = [], {}
    drive(study, records, curves, 3, 5)
    assert ask(study, 5) == {}
    trials = study.trials
    assert len(trials) == study.num_asked == study.num_trials == 15
    for trial, record in zip(trials, records, strict=True):
        curve = curves[record.number]
        assert trial.state.name == record.state
        told = list(trial.intermediate_values.values())
        assert told == pytest.approx(curve, rel=0, abs=0, nan_ok=True)
        assert list(trial.intermediate_values) == list(range(1, len(curve) + 1))
        expected = None if record.state is State.FAIL else curve[-1]
        assert trial.value == expected
    assert {trial.state for trial in trials} == {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }


def test_optuna_ranks_complete_trials_as_we_do():
    """By the mean of the last epochs, told at once or replayed; a stopped one by its last."""
    asked = experiment("random", num_trials=3)
    study = study_of(asked)
    configs = ask(study, 3)
    curves = {0: [0.9, 0.9, 0.9, 0.4, 0.6], 1: [0.9, 0.9, 0.9, 0.9, 0.1], 2: [0.9, 0.2]}
    states = {0: State.COMPLETE, 1: State.COMPLETE, 2: State.PRUNED}
    for number, state in states.items():
        study.tell(number, state, curves[number])
        told = study.trials[number].value
        assert told == recorded_value(configs[number], state, curves[number])
    for schedule, expected in (("constant", [0.5, 0.5, 0.2]), ("linear", [0.6, 0.1, 0.2])):
        values = [
            recorded_value(
                replace(configs[number], learning_rate_schedule=schedule), state, curves[number]
            )
            for number, state in states.items()
        ]
        assert values == pytest.approx(expected)
    assert recorded_value(configs[0], State.FAIL, [0.5]) is None
    assert recorded_value(configs[0], State.PRUNED, []) is None


def test_a_trial_may_fail_before_its_first_epoch():
    """A lost trial without a value is told as failed."""
    study = study_of(experiment())
    ask(study, 1)
    study.tell(0, State.FAIL, [])
    (trial,) = study.trials
    assert (trial.state, trial.intermediate_values) == (TrialState.FAIL, {})


@pytest.mark.parametrize(
    ("metric", "best"), [("validation_loss", 0.2), ("validation_accuracy", 0.9)]
)
def test_less_loss_or_more_accuracy_is_better(metric, best):
    """The study's direction follows the metric."""
    study = study_of(experiment(more=f", metric: {metric}"))
    ask(study, 3)
    for number, value in enumerate([0.5, 0.9, 0.2]):
        study.tell(number, State.COMPLETE, [value])
    assert study._view({}).best_value == best


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("num_unfinished", [0, 3])
def test_a_replayed_study_asks_as_the_unbroken_one(sampler, num_unfinished):
    """Resuming proposes what would have come, whatever still runs."""
    asked = experiment(sampler, more=", points: [{learning_rate: 0.5}]")
    unbroken = study_of(asked)
    records, curves = [], {}
    drive(unbroken, records, curves, 4, 5)
    for number, config in (ask(unbroken, num_unfinished) if num_unfinished else {}).items():
        records.append(TrialRecord(number, State.RUNNING, config, 4, 1, None, None))
    replayed = study_of(asked)
    replayed.replay(records, curves)
    assert replayed.num_asked == unbroken.num_asked
    for _ in range(2):
        expected = ask(unbroken, 5)
        assert ask(replayed, 5) == expected
        for number, config in expected.items():
            for study in (unbroken, replayed):
                study.tell(number, *outcome(number, config))


def test_a_replay_tells_optuna_what_the_ledger_says():
    """States, values and intermediate values agree; unfinished trials run and can be told."""
    asked = experiment(num_trials=20)
    study, records, curves = study_of(asked), [], {}
    drive(study, records, curves, 2, 5)
    (config,) = ask(study, 1).values()
    records.append(TrialRecord(10, State.WAITING, config, 2, 1, None, None))
    curves[10] = [3.0]
    replayed = study_of(asked)
    replayed.replay(records, curves)
    pairs = zip(study.trials, replayed.trials, strict=True)
    for old, new in pairs:
        assert (old.number, old.state, old.value, old.params, old.distributions) == (
            new.number,
            new.state,
            new.value,
            new.params,
            new.distributions,
        )
        assert str(old.intermediate_values) == str(new.intermediate_values)  # NaN is itself here
    replayed.tell(10, State.COMPLETE, [3.0, 2.0])
    assert replayed.trials[10].value == 2.0


def test_being_told_the_space_changes_nothing(monkeypatch):
    """TPE asks as Optuna's own does, which looks for the space in all trials."""
    choices = EXPERIMENT.replace("[16, 32, 64]", "[16]")
    asked = experiment(text=choices)
    found = []
    for _ in range(2):
        study, records, curves = study_of(asked), [], {}
        drive(study, records, curves, 3, 8)
        ask(study, 5, curves)  # in flight from now on
        drive(study, records, curves, 3, 8)
        found.append([record.config for record in records])
        monkeypatch.setattr(
            "tune_softmax.scheduler.study._Tpe",
            lambda _space, seed: optuna.samplers.TPESampler(
                multivariate=True, constant_liar=True, seed=seed
            ),
        )
    assert len(found[0]) == 48
    assert found[0] == found[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides(sampler):
    """The same seed asks for the same trials, another for others."""
    first, again, other = (ask(study_of(experiment(sampler, seed=s)), 6) for s in (1, 1, 2))
    assert first == again
    assert set(first.values()).isdisjoint(other.values())


def test_points_come_first_and_the_sampler_fills_in_the_rest():
    """A whole point is tried as it is, a partial one keeps what it gives."""
    whole = (
        "{batch_size: 32, num_epochs: 2, learning_rate: 0.5, learning_rate_schedule: cosine, "
        "hidden_units: 16, momentum: 0.5}"
    )
    asked = experiment(more=f", points: [{whole}, {{learning_rate: 1, momentum: 0}}]")
    configs = ask(study_of(asked), 4)
    assert configs[0] == Config(
        batch_size=32,
        num_epochs=2,
        learning_rate=0.5,
        learning_rate_schedule="cosine",
        hidden_units=16,
        momentum=0.5,
        weight_decay=1e-4,
    )
    assert (configs[1].learning_rate, configs[1].momentum) == (1.0, 0.0)
    assert all(asked.space.contains("batch_size", c.batch_size) for c in configs.values())
    assert all(configs[n].learning_rate not in {0.5, 1.0} for n in (2, 3))


def test_a_search_asks_for_no_more_than_it_has():
    """The last pack is smaller, then there is nothing."""
    study = study_of(experiment("random", num_trials=5))
    assert [sorted(ask(study, 3)) for _ in range(3)] == [[0, 1, 2], [3, 4], []]


@pytest.mark.parametrize("num_trials", [6, 100])
def test_a_grid_tries_each_combination_once_and_ends(num_trials):
    """All six, in an order that the seed decides."""
    study = study_of(experiment(num_trials=num_trials, text=GRID))
    assert study.num_trials == 6
    configs = ask(study, 4) | ask(study, 4)
    assert ask(study, 4) == {}
    pairs = [(config.batch_size, config.num_epochs) for config in configs.values()]
    assert sorted(pairs) == [(b, e) for b in (16, 32) for e in (1, 2, 3)]
    other = ask(study_of(experiment(num_trials=num_trials, seed=1, text=GRID)), 6)
    assert pairs != [(config.batch_size, config.num_epochs) for config in other.values()]


def test_a_small_search_tries_part_of_the_grid():
    """num_trials is kept; no combination comes twice."""
    configs = ask(study_of(experiment(num_trials=4, text=GRID)), 10)
    assert len(configs) == len(set(configs.values())) == 4


def test_a_grid_comes_after_the_points_and_goes_on_after_a_replay():
    """Points are extra trials; a resumed grid leaves nothing out and repeats nothing."""
    asked = experiment(num_trials=100, text=GRID, more=", points: [{batch_size: 16}]")
    unbroken = study_of(asked)
    assert unbroken.num_trials == 7
    configs = ask(unbroken, 3)
    records = [TrialRecord(n, State.RUNNING, c, 0, 1, None, None) for n, c in configs.items()]
    replayed = study_of(asked)
    replayed.replay(records, {})
    rest = ask(replayed, 10)
    assert rest == ask(unbroken, 10)
    assert configs[0].batch_size == 16
    grid = [configs[1], configs[2], *rest.values()]
    assert len(grid) == len(set(grid)) == 6


DISCRETE = """
dataset: {{name: digits}}
space:
  batch_size: {{choice: [16, 32, 64]}}
  num_epochs: {{int: [1, 4]}}
  learning_rate: 0.1
  hidden_units: {{int: {{low: 8, high: 16, step: 8}}}}
search: {{num_trials: {num_trials}, sampler: {sampler}, asha: none, seed: {seed}{more}}}
"""


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes"])
def test_no_configuration_is_tried_twice_before_all_have_been_tried(sampler):
    """Of 24 configurations each is tried once, over a resume too; then they may repeat."""
    asked = experiment(sampler, num_trials=30, text=DISCRETE)
    study, records, curves = study_of(asked), [], {}
    for pack in range(5):
        for number, config in ask(study, 6, curves).items():
            curves[number] = [0.01 * config.batch_size + 0.1 * config.num_epochs]
            study.tell(number, State.COMPLETE, curves[number])
            records.append(TrialRecord(number, State.COMPLETE, config, pack, 1, None, None))
        resumed = study_of(asked)
        resumed.replay(records, curves)
        study = resumed if pack == 1 else study
    configs = [record.config for record in records]
    assert len(configs) == 30
    assert len(set(configs[:24])) == len(set(configs)) == 24


def test_a_point_that_is_given_twice_is_tried_twice():
    """Points are tried as they are given, and then no proposal repeats one."""
    point = "{batch_size: 16, num_epochs: 1, hidden_units: 8}"
    text = experiment("random", num_trials=25, text=DISCRETE, more=f", points: [{point}, {point}]")
    configs = list(ask(study_of(text), 25).values())
    assert configs[0] == configs[1]
    assert len(set(configs)) == 24


def test_domains_in_optunas_words():
    """Choice, step and log arrive as Optuna knows them."""
    space = experiment().space.searched
    assert distribution(space["batch_size"]) == optuna.distributions.CategoricalDistribution(
        (16, 32, 64)
    )
    assert distribution(space["hidden_units"]) == optuna.distributions.IntDistribution(
        8, 64, step=8
    )
    assert distribution(space["learning_rate"]) == optuna.distributions.FloatDistribution(
        1e-3, 1, log=True
    )
    assert distribution(space["momentum"]) == optuna.distributions.FloatDistribution(0, 0.9)


def test_a_good_sampler_learns():
    """After 40 trials tpe proposes learning rates near the best one, random ones do not."""
    distances = {}
    for sampler in ("tpe", "random"):
        study = study_of(experiment(sampler, num_trials=60))
        draw = random.Random(0)  # noqa: S311 - noise
        for _ in range(5):
            for number, config in ask(study, 8).items():
                value = abs(math.log10(config.learning_rate) + 1) + 0.01 * draw.random()
                study.tell(number, State.COMPLETE, [value])
        last = ask(study, 20).values()
        distances[sampler] = sum(abs(math.log10(c.learning_rate) + 1) for c in last) / 20
    assert distances["tpe"] < 0.6 * distances["random"]


EXTREMES = {
    "uniform": [
        [0, 1e-307],
        [0.3, 0.3000000004],
        [1e-300, 1e300],
        [1e38, 1e39],
        [5e-324, 1.7976931348623157e308],
    ],
    "log_uniform": [
        [0.3, 0.3000000004],
        [5e-324, 1e300],
        [1e-45, 1e-44],
        [0.5, 1.7976931348623157e308],
    ],
    "int": [
        [1, 2],
        [1, 2**53],
        [2**53 - 1, 2**53],
        {"low": 1, "high": 2**53, "log": True},
        {"low": 1, "high": 2**53, "step": 2**53 - 1},
        {"low": 0, "high": 2**53, "step": 3},
    ],
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
@pytest.mark.parametrize(
    ("kind", "ends"), [(kind, ends) for kind, listed in EXTREMES.items() for ends in listed]
)
def test_extreme_domains_are_searched(sampler, kind, ends):
    """What the experiment allows, no sampler leaves, warns of or fails on."""
    name = "hidden_units" if kind == "int" else "weight_decay"
    space = {"batch_size": 16, "num_epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1]}}
    experiment = parse(
        json.dumps(
            {
                "dataset": {"name": "digits"},
                "space": {**space, name: {kind: ends}},
                "search": {"sampler": sampler, "num_trials": 40, "asha": "none"},
            }
        )
    )
    study = Study(experiment.space, experiment.search)
    for _ in range(5):
        for number, config in ask(study, 8).items():
            value = getattr(config, name)
            assert experiment.space.contains(name, value)
            study.tell(number, State.COMPLETE, [float(value)] * 2)
