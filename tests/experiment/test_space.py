"""The search space: what it holds, and which configurations it gives."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_softmax.config import HYPERPARAMETERS, Config
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.space import READERS, Choice, IntRange, LogUniform, Space, Uniform

SPACE = Space.model_validate(
    {
        "momentum": {"choice": [0.5, 0.9]},
        "batch_size": {"choice": [128, 64]},
        "num_epochs": {"int": {"low": 1, "high": 8, "step": 3}},
        "learning_rate": 0.1,
        "learning_rate_schedule": {"choice": ["linear", "cosine"]},
    }
)
SEARCHED = ("batch_size", "num_epochs", "learning_rate_schedule", "momentum")


def test_a_space_has_just_the_hyperparameters_of_a_configuration():
    """Names, order and defaults are those of `Config`."""
    assert tuple(Space.model_fields) == HYPERPARAMETERS == tuple(READERS)
    space = Space(batch_size=64, num_epochs=3, learning_rate=0.1)
    assert space.config({}) == Config(batch_size=64, num_epochs=3, learning_rate=0.1)


def test_searched_and_constants_part_the_hyperparameters():
    """Every hyperparameter is searched or constant, in the order of `HYPERPARAMETERS`."""
    assert tuple(SPACE.searched) == SEARCHED
    assert tuple(SPACE.constants) == tuple(n for n in HYPERPARAMETERS if n not in SEARCHED)
    assert not SPACE.is_constant
    assert SPACE.constants == {"learning_rate": 0.1, "weight_decay": 0.0, "l1": 0.0} | {
        "hidden_units": 0,
        "augmentation": 0.0,
    }


def test_a_configuration_is_the_constants_and_the_values():
    """Values for all that is searched make a configuration of the right types."""
    config = SPACE.config(
        {"momentum": 0, "batch_size": 64, "num_epochs": 4, "learning_rate_schedule": "cosine"}
    )
    assert config == Config(
        batch_size=64,
        num_epochs=4,
        learning_rate=0.1,
        learning_rate_schedule="cosine",
        momentum=0.0,
    )
    assert type(config.momentum) is float


def test_values_that_make_no_configuration_are_all_named():
    """Missing, surplus and impossible values are reported together."""
    with pytest.raises(ExperimentError) as caught:
        SPACE.config({"batch_size": 0, "l1": 1, "num_epochs": 2.0, "momentum": 0.5})
    assert str(caught.value) == (
        "no configuration of this space: l1: is not searched; batch_size: must be an integer "
        ">= 1, got 0; num_epochs: must be an integer >= 1, got 2.0; learning_rate_schedule: is "
        "missing"
    )


def test_the_largest_value_is_the_domains_upper_end():
    """Constants, choices and ranges all have a greatest value."""
    assert SPACE.largest("batch_size") == 128
    assert SPACE.largest("num_epochs") == 7
    assert SPACE.largest("learning_rate") == 0.1
    assert SPACE.largest("momentum") == 0.9


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("batch_size", [64, 128], [65, 64.0, "64", True, None, [64]]),
        ("num_epochs", [1, 4, 7], [0, 2, 8, 10, 1.0, "1"]),
        ("learning_rate", [0.1], [0.2, "0.1", float("nan")]),
        ("momentum", [0.5, 0.9], [0, 1, 0.50001]),
        ("learning_rate_schedule", ["linear"], ["constant", "step", 1]),
        ("hidden_units", [0], [1, 0.0, False]),
    ],
)
def test_a_value_is_in_the_space_or_not(name, inside, outside):
    """A value belongs if it has the type and lies in the domain or is the constant."""
    assert all(SPACE.contains(name, value) for value in inside)
    assert not any(SPACE.contains(name, value) for value in outside)


def test_ranges_contain_their_ends():
    """The ends of uniform and log_uniform belong to them, and a whole number counts as float."""
    space = SPACE.model_copy(
        update={
            "weight_decay": Uniform(low=0.0, high=1.0),
            "learning_rate": LogUniform(low=1e-3, high=1.0),
        }
    )
    assert all(space.contains("weight_decay", value) for value in (0, 0.5, 1))
    assert all(space.contains("learning_rate", value) for value in (1e-3, 0.5, 1))
    assert not any(space.contains("learning_rate", value) for value in (0.00099, 1.1))


def test_the_grid_is_every_combination():
    """The grid holds each combination once, in the order of the file's values."""
    grid = SPACE.grid()
    expected = itertools.product([128, 64], [1, 4, 7], ["linear", "cosine"], [0.5, 0.9])
    assert [tuple(point.values()) for point in grid] == list(expected)
    assert all(tuple(point) == SEARCHED for point in grid)
    assert len({SPACE.config(point) for point in grid}) == len(grid)


def test_the_grid_of_constants_is_one_configuration():
    """Without a domain there is one combination, of nothing."""
    assert Space(batch_size=64, num_epochs=3, learning_rate=0.1).grid() == ({},)


def test_there_is_no_grid_over_numbers_that_have_no_steps():
    """Domains of numbers between others have no grid, and the message names them."""
    space = SPACE.model_copy(update={"learning_rate": LogUniform(low=1e-3, high=1.0)})
    with pytest.raises(ExperimentError, match=r"learning_rate is log_uniform 0.001 to 1.0"):
        space.grid()


def test_a_huge_grid_is_refused_before_it_is_built():
    """A grid that would not fit in memory is refused at once."""
    space = SPACE.model_copy(update={"hidden_units": IntRange(low=0, high=2**62)})
    with pytest.raises(ExperimentError, match="must have at most 1,000,000 configurations"):
        space.grid()


@given(
    low=st.integers(1, 50),
    distance=st.integers(1, 200),
    data=st.data(),
)
def test_an_integer_range_is_its_values(low, distance, data):
    """`values`, `size`, `contains` and `high` agree for every step."""
    step = data.draw(st.integers(1, distance))
    body = {"low": low, "high": low + distance, "step": step}
    domain = READERS["num_epochs"].read({"int": body})
    values = list(range(low, low + distance + 1, step))
    assert list(domain.values()) == values
    assert (domain.size, domain.high) == (len(values), values[-1])
    around = range(low - 2, low + distance + 2)
    assert [value for value in around if domain.contains(value)] == values


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        (Choice(choice=(64, 128)), "choice [64, 128]"),
        (IntRange(low=1, high=9, step=2), "int 1 to 9 by 2"),
        (Uniform(low=0.0, high=0.9), "uniform 0.0 to 0.9"),
        (LogUniform(low=1e-5, high=1.0), "log_uniform 1e-05 to 1.0"),
    ],
)
def test_a_domain_is_shown_as_in_the_file(domain, text):
    """Messages name a domain by its kind and its values."""
    assert str(domain) == text
