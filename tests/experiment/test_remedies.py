"""The section `remedies` of an experiment file: its defaults, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.experiment import load, parse
from tune_softmax.experiment.remedies import REMEDIES, RemedyOptions

BASE = """name: small
dataset: {name: digits, train_fraction: 0.1}
space: {batch_size: 16, num_epochs: 40, learning_rate: 0.1, hidden_units: 32}
"""


def options(section, base=BASE):
    """Return the section of an experiment that has it."""
    return parse(f"{base}remedies: {section}\n", "small.yaml").remedies


def test_a_mapping_without_keys_takes_the_defaults():
    """Every remedy has the same number of strengths, those that follow from the base too."""
    found = options("{}")
    assert found == RemedyOptions()
    assert found.seeds == 10
    assert found.widths(32) == (16, 8, 4, 0)
    assert found.fractions(0.1) == (0.178, 0.316, 0.562, 1.0)
    listed = {name: getattr(found, name) for name in REMEDIES}
    listed |= {"smaller_model": found.widths(32), "more_data": found.fractions(0.1)}
    assert {len(strengths) for strengths in listed.values()} == {found.num_strengths}


def test_an_experiment_without_the_section_has_no_study():
    """Remedies are asked for; a file without the section says how."""
    experiment = parse(BASE, "small.yaml")
    assert experiment.remedies is None
    with pytest.raises(ExperimentError, match=r"`remedies: \{\}` takes the defaults"):
        experiment.check_remedies()


def test_what_does_not_apply_has_no_strengths():
    """Softmax regression has no smaller model, and all images are not fewer than all."""
    assert options("{}").widths(0) == ()
    assert options("{}").fractions(1.0) == ()


@given(st.integers(8, 4096), st.floats(0.001, 0.99))
def test_automatic_strengths_lie_on_the_right_side_of_the_base(hidden_units, fraction):
    """Widths fall below the base's, fractions rise above it up to 1; none is there twice."""
    found = RemedyOptions()
    widths, fractions = found.widths(hidden_units), found.fractions(fraction)
    assert sorted(set(widths), reverse=True) == list(widths)
    assert widths[0] < hidden_units
    assert widths[-1] == 0
    assert fractions[-1] == 1
    assert list(fractions) == sorted(fractions)


def test_a_section_survives_being_written_and_read():
    """The resolved experiment means the same."""
    experiment = parse(f"{BASE}remedies: {{seeds: 3, less_data: [0.05]}}\n", "small.yaml")
    assert parse(experiment.to_yaml(), "small.yaml") == experiment


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("{seeds: 1}", "remedies.seeds: must be an integer >= 2 and <= 1000, got 1"),
        ("{seeds: 1000000000}", "must be an integer >= 2 and <= 1000, got 1000000000"),
        ("{margin: -1}", "remedies.margin: must be auto or a number >= 0, got -1"),
        ("{margin: small}", "must be auto or a number >= 0, got the text 'small'"),
        ("{weight_decay: [1e-3, 0]}", "remedies.weight_decay[1]: must be a number > 0, got 0"),
        ("{l1: [1e-3, 1e-3]}", "remedies.l1[1]: must not repeat, got 0.001 again"),
        ("{l1: 3}", "remedies.l1: must be a list of strengths"),
        ("{augmentation: [2]}", "remedies.augmentation[0]: must be a number > 0 and <= 1, got 2"),
        ("{early_stoping: [1]}", "unknown key 'early_stoping'; did you mean 'early_stopping'?"),
        (
            "{l1: [1e-3]}",
            "remedies.l1: must have 4 strengths, as many as early_stopping, for an equal tuning",
        ),
        (
            "{early_stopping: [1, 2, 3, 40]}",
            "remedies.early_stopping[3]: must be below space.num_epochs, 40, got 40",
        ),
        (
            "{smaller_model: [16, 8, 64, 0]}",
            "remedies.smaller_model[2]: must be below the base's hidden_units, 32, got 64",
        ),
        (
            "{more_data: [0.2, 0.3, 0.5, 0.1]}",
            "remedies.more_data[3]: must be above dataset.train_fraction, 0.1, got 0.1",
        ),
        (
            "{less_data: [0.2]}",
            "remedies.less_data[0]: must be below dataset.train_fraction, 0.1, got 0.2",
        ),
        (
            f"{{{', '.join(f'{name}: []' for name in REMEDIES)}}}",
            "remedies: must leave a remedy in, got empty lists only",
        ),
    ],
)
def test_a_wrong_section_is_refused_in_these_words(section, text):
    """Each message names the key, the rule and the value."""
    with pytest.raises(ExperimentError) as caught:
        options(section)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (
            "learning_rate: 0.1",
            "learning_rate: {choice: [0.1, 1]}",
            "space.learning_rate: must be one value",
        ),
        (
            "hidden_units: 32",
            "weight_decay: 0.1",
            "space.weight_decay: must be 0, since the baseline of remedies has no remedy, got 0.1",
        ),
        (
            "hidden_units: 32",
            "hidden_units: 4",
            "remedies.smaller_model: must be a list where the base has fewer than 8 hidden units",
        ),
    ],
)
def test_a_base_that_is_no_baseline_is_refused(before, after, text):
    """The space holds one configuration without a remedy."""
    with pytest.raises(ExperimentError) as caught:
        options("{}", BASE.replace(before, after))
    assert text in str(caught.value)


def test_another_metric_is_refused():
    """Strengths are chosen by the validation loss."""
    with pytest.raises(ExperimentError, match=r"search\.metric: must be validation_loss"):
        options("{}", f"{BASE}search: {{metric: validation_accuracy}}\n")


def test_several_mistakes_are_named_at_once():
    """All that is wrong with a section is in one message."""
    with pytest.raises(ExperimentError) as caught:
        options("{l1: [0], weight_decay: [x], seeds: 0}")
    assert len(str(caught.value).splitlines()) == 3


def test_an_option_replaces_the_number_of_seeds(tmp_path):
    """A wrong value given on the command line is told by the option's name."""
    path = tmp_path / "small.yaml"
    path.write_text(f"{BASE}remedies: {{}}\n")
    assert load(path, {"remedies.seeds": 3}).remedies.seeds == 3
    with pytest.raises(
        ExperimentError, match="option --seeds: must be an integer >= 2 and <= 1000, got 1"
    ):
        load(path, {"remedies.seeds": 1})
