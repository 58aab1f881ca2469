"""Configurations: what their numbers mean."""

import operator
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from tune_softmax.config import (
    BOUNDS,
    DEFAULTS,
    DESCRIPTIONS,
    HYPERPARAMETERS,
    SCHEDULES,
    Config,
)

PLAIN = Config(batch_size=64, num_epochs=3, learning_rate=0.1)


@pytest.mark.parametrize(
    ("batch_size", "num_samples", "per_epoch"),
    [(64, 128, 2), (64, 129, 3), (64, 1, 1), (64, 64, 1), (1000, 128, 1), (1, 5, 5)],
)
def test_steps_are_counted_with_the_last_shorter_batch(batch_size, num_samples, per_epoch):
    """An epoch makes one update a batch, and one for what is left over."""
    assert replace(PLAIN, batch_size=batch_size).num_steps(num_samples) == 3 * per_epoch


def test_the_constant_schedule_is_one():
    """A constant learning rate is used in full at every step."""
    assert {PLAIN.learning_rate_factor(step, 7) for step in range(7)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0]),
    ],
)
def test_schedules_fall_from_one_to_zero(schedule, factors):
    """The first step uses the whole learning rate; zero is reached after the last."""
    config = replace(PLAIN, learning_rate_schedule=schedule)
    actual = [config.learning_rate_factor(step, 4) for step in range(5)]
    assert actual == pytest.approx(factors, abs=1e-15)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_schedules_are_torch_s():
    """`linear` and `cosine` are LinearLR and CosineAnnealingLR down to zero."""
    theirs = {
        "linear": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 9),
        "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
    }
    for schedule, make in theirs.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make(optimizer)
        for step in range(9):
            factor = replace(PLAIN, learning_rate_schedule=schedule).learning_rate_factor(step, 9)
            assert factor == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
            scheduler.step()


def test_a_configuration_does_not_change():
    """A configuration is a value: frozen, comparable, hashable."""
    with pytest.raises(FrozenInstanceError):
        PLAIN.batch_size = 1
    assert replace(PLAIN) == PLAIN
    assert len({PLAIN, replace(PLAIN)}) == 1


def test_every_hyperparameter_says_what_it_is():
    """The description of a number names its bounds, and a default lies within them."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    holds = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    for name in HYPERPARAMETERS:
        for bound, value in BOUNDS[name].items():
            assert f"{signs[bound]} {value}" in DESCRIPTIONS[name]
            assert holds[bound](DEFAULTS.get(name, value + 0.5), value)
    assert {name for name in HYPERPARAMETERS if not BOUNDS[name]} == {"learning_rate_schedule"}


def test_what_is_not_given_is_plain_softmax_regression():
    """The defaults are plain SGD on a linear model."""
    given = {"batch_size", "num_epochs", "learning_rate"}
    rest = [getattr(PLAIN, name) for name in HYPERPARAMETERS if name not in given]
    assert rest == ["constant", 0.0, 0.0, 0.0, 0, 0.0]


def test_hyperparameters_are_the_fields():
    """`HYPERPARAMETERS` names every field in order, and every schedule is known."""
    assert tuple(field.name for field in fields(Config)) == HYPERPARAMETERS
    assert set(SCHEDULES) == {"constant", "linear", "cosine"}
