"""Problems of a document: their words, their places, and how many are listed."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.problems import Frozen, Problems, near, refusal
from tune_softmax.experiment.yaml_reader import read


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (Annotated[int, Field(ge=1)], 0, "must be an integer >= 1, got 0"),
        (
            Annotated[float, Field(gt=0, le=2)],
            "1",
            "must be a number > 0 and <= 2, got the text '1'",
        ),
        (Annotated[float, Field(lt=1)] | None, 2.0, "must be a number < 1 or null, got 2.0"),
        (
            Literal["mean", "sum"],
            "man",
            "must be one of mean, sum, got 'man'; did you mean 'mean'?",
        ),
        (Literal["mean", "sum"], True, "must be one of mean, sum, got true"),
        (Literal["auto"] | int, None, "must be auto or an integer, got nothing"),
    ],
)
def test_a_refusal_states_the_rule_and_the_value(rule, value, message):
    """The rule is read off the JSON schema, so that it is written only once."""
    assert refusal(TypeAdapter(rule).json_schema(), value) == message


@pytest.mark.parametrize(
    ("word", "allowed", "found"),
    [
        ("lr", ["batch_size", "learning_rate"], "learning_rate"),
        ("TPE", ["tpe", "random"], "tpe"),
        ("CMA-ES", ["tpe", "cmaes"], "cmaes"),
        ("FashionMNIST", ["mnist", "fashion-mnist"], "fashion-mnist"),
        ("loguniform", ["uniform", "log_uniform"], "log_uniform"),
        ("logUniform", ["uniform", "log_uniform"], "log_uniform"),
        ("float", ["uniform", "log_uniform"], "uniform"),
        ("epochs", ["batch_size", "num_epochs"], "num_epochs"),
        ("num_samples", ["num_trials", "seed"], "num_trials"),
        ("l2", ["l1", "weight_decay"], "weight_decay"),
    ],
)
def test_what_other_tools_call_it_gets_our_word(word, allowed, found):
    """Before a near spelling, which would make l1 of l2."""
    assert near(word, allowed) == f"; did you mean {found!r}?"


def test_an_unknown_word_gets_its_near_spelling_or_all_there_is():
    """A typing slip is corrected; anything else is answered with the known words."""
    assert near("sead", ["seed", "space"]) == "; did you mean 'seed'?"
    assert near("banana", ["seed", "space"]) == "; allowed: seed, space"


class _Part(Frozen):
    size: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 1


class _Whole(Frozen):
    part: _Part
    count: int = 0


def _messages(text, options=None):
    document = read(text, "x.yaml")
    problems = Problems(document, _Whole, options or {})
    try:
        _Whole.model_validate(document.value)
    except ValidationError as error:
        problems.add_errors(error)
    with pytest.raises(ExperimentError) as caught:
        problems.raise_if_any()
    return str(caught.value).splitlines()


def test_the_branches_of_a_union_give_one_message():
    """A value that fits no branch is refused once, with what every branch allows."""
    rule = "must be an integer >= 1 or a number > 0 and < 1"
    assert _messages("part: {size: 0}\n") == [f"x.yaml:1: part.size: {rule}, got 0"]


def test_problems_stand_in_the_order_of_the_file():
    """Lines sort the messages, whichever way a problem was found."""
    assert _messages("count: 1.5\npart: {}\npart: {}\nnumber: 2\nsize: 3\n") == [
        "x.yaml:1: count: must be an integer, got 1.5",
        "x.yaml:3: part: duplicate key, first on line 2; delete one",
        "x.yaml:4: unknown key 'number'; allowed: part, count",
        "x.yaml:5: unknown key 'size'; it belongs in part",
    ]


def test_a_section_that_is_no_mapping_says_which_keys_it_has():
    """An empty or plain section is refused with the keys it could hold."""
    assert _messages("part:\n") == ["x.yaml:1: part: must be a mapping with size, got nothing"]


def test_an_option_stands_for_what_it_set():
    """A problem at or below an option's key is the option's."""
    messages = _messages("part: {size: -1}\n", {("part",): "option --part"})
    assert messages == [
        "option --part: must be an integer >= 1 or a number > 0 and < 1, got -1",
    ]


def test_a_hidden_value_is_reported_once():
    """What is wrong with an alias's stand-in is nobody's concern."""
    assert _messages("part: {size: *a}\n") == [
        "x.yaml:1: part.size: an alias (*a) is not allowed; write it again"
    ]


def test_a_flood_of_problems_is_cut():
    """The first hundred problems are listed and the rest counted."""
    messages = _messages("part: {}\n" + "".join(f"k{n}: 1\n" for n in range(150)))
    assert len(messages) == 101
    assert messages[-1] == "x.yaml: and 50 more problems"


def test_no_problem_is_no_error():
    """Without problems nothing is raised."""
    Problems(read("part: {}\n", "x.yaml"), _Whole, {}).raise_if_any()
