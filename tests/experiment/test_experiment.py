"""Experiment files: what is read, what is refused and in which words, and those we ship."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.config import Config
from tune_softmax.data.dataset import DATASETS
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment import (
    Asha,
    Choice,
    DatasetName,
    IntRange,
    LogUniform,
    Uniform,
    json_schema,
    load,
    parse,
    yaml_reader,
)

ROOT = Path(__file__).parents[2]
NAMES = get_args(DatasetName)
SHIPPED = sorted((ROOT / "experiments").rglob("*.yaml"))

BASE = {
    "dataset": {"name": "digits"},
    "space": {"batch_size": "64", "num_epochs": "{int: [1, 30]}", "learning_rate": "0.1"},
}


def render(changes):
    """Return the base experiment as YAML, one key a line, with dotted keys set to YAML text."""
    tree = {section: dict(keys) for section, keys in BASE.items()}
    for dotted, text in changes.items():
        *parents, key = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = text

    def lines(node, indent):
        for key, value in node.items():
            yield f"{indent}{key}:" + (f" {value}" if isinstance(value, str) else "")
            if isinstance(value, dict):
                yield from lines(value, indent + "  ")

    return "\n".join(lines(tree, "")) + "\n"


def read(**changes):
    """Return the base experiment with keys changed; `__` stands for the dot."""
    return parse(render({key.replace("__", "."): text for key, text in changes.items()}), "x.yaml")


def refusal(text):
    """Return the message with which the YAML text is refused."""
    with pytest.raises(ExperimentError) as caught:
        parse(text, "wrong.yaml")
    return str(caught.value)


POSITIVE = "must be an integer >= 1"
INT_BATCH = f"{POSITIVE}, got {{}}; allowed too, to search it: choice, int"

# Dotted key, its YAML text, and what the message says after the key.
WRONG_VALUES = [
    ("space.batch_size", "0", INT_BATCH.format("0")),
    ("space.batch_size", "-5", INT_BATCH.format("-5")),
    ("space.batch_size", "2.5", INT_BATCH.format("2.5")),
    ("space.batch_size", "64.0", INT_BATCH.format("64.0")),
    ("space.batch_size", "true", INT_BATCH.format("true")),
    ("space.batch_size", '"64"', INT_BATCH.format("the text '64'")),
    ("space.batch_size", "1_000", INT_BATCH.format("the text '1_000'")),
    ("space.batch_size", "12:30:00", INT_BATCH.format("the text '12:30:00'")),
    ("space.batch_size", "", INT_BATCH.format("nothing")),
    ("space.batch_size", "[64, 128]", INT_BATCH.format("a list")),
    ("space.batch_size", "99999999999999999999", "an integer must fit 64 bits, got '999999999"),
    ("space.batch_size", "{}", "must have exactly one key of choice, int, got none"),
    ("space.batch_size", "{choice: [1], int: [1, 2]}", "exactly one key of choice, int, got"),
    ("space.batch_size", "{chioce: [1, 2]}", "unknown domain 'chioce'; did you mean 'choice'?"),
    ("space.batch_size", "{randint: [1, 2]}", "unknown domain 'randint'; did you mean 'int'?"),
    ("space.batch_size", "{sample_from: f}", "domain 'sample_from'; allowed: choice, int"),
    ("space.batch_size", "{uniform: [1, 9]}", "uniform does not fit; allowed: choice, int"),
    (
        "space.batch_size",
        "{log_uniform: [1, 9]}",
        "log_uniform does not fit; allowed: choice, int",
    ),
    ("space.batch_size", "{choice: []}", "must be a list of one or more values, got an empty"),
    ("space.batch_size", "{choice: 64}", "choice must be a list of one or more values, got 64"),
    ("space.batch_size", "{choice: [64, 128, 64]}", "choice[2] must not repeat choice[0], got 64"),
    ("space.batch_size", "{choice: [64, 1.5]}", f"choice[1] {POSITIVE}, got 1.5"),
    ("space.batch_size", "{choice: [64, yes]}", f"choice[1] {POSITIVE}, got the text 'yes'"),
    ("space.batch_size", "{choice: [64, true]}", f"choice[1] {POSITIVE}, got true"),
    ("space.batch_size", "{choice: [[64], 8]}", f"choice[0] {POSITIVE}, got a list"),
    ("space.batch_size", "{choice: [0]}", f"choice[0] {POSITIVE}, got 0"),
    ("space.batch_size", "{int: [0, 5]}", f"int: low {POSITIVE}, got 0"),
    ("space.batch_size", "{int: [1, 5.0]}", f"int: high {POSITIVE}, got 5.0"),
    ("space.batch_size", "{int: [5, 5]}", "low must be < high, got 5 twice; write 5 alone"),
    ("space.batch_size", "{int: [9, 5]}", "int: low must be < high, got low 9 and high 5"),
    ("space.batch_size", "{int: [1, 5, 2]}", "int must be [low, high], got a list of 3"),
    ("space.batch_size", "{int: 5}", "int must be [low, high], got 5"),
    ("space.batch_size", "{int: {}}", "int must be [low, high], got an empty mapping"),
    ("space.batch_size", "{int: {low: 1}}", f"int: high {POSITIVE}, got nothing"),
    ("space.batch_size", "{int: {low: 1, high: 9, setp: 2}}", "'setp'; did you mean 'step'?"),
    ("space.batch_size", "{int: {low: 1, high: 9, step: 0}}", f"int: step {POSITIVE}, got 0"),
    ("space.batch_size", "{int: {low: 1, high: 9, step: 1.5}}", f"step {POSITIVE}, got 1.5"),
    (
        "space.batch_size",
        "{int: {low: 1, high: 9, step: 9}}",
        "step must be <= high - low, 8, got",
    ),
    (
        "space.batch_size",
        "{int: [1, 9007199254740993]}",
        "must be <= 9007199254740992 (2**53)",
    ),
    (
        "space.batch_size",
        "{int: {low: 9007199254740991, high: 9007199254740992, log: true}}",
        "int: low and high must differ by at least 1e-09 of high, got 9007199254740991 and",
    ),
    ("space.batch_size", "{int: {low: 1, high: 9, log: 1}}", "log must be true or false, got 1"),
    ("space.batch_size", "{int: {low: 1, high: 9, log: true, step: 2}}", "must be 1 where log is"),
    (
        "space.hidden_units",
        "{int: {low: 0, high: 9, log: true}}",
        "must be >= 1 where log is true",
    ),
    ("space.hidden_units", "-1", "must be an integer >= 0, got -1"),
    ("space.num_epochs", "0", f"{POSITIVE}, got 0"),
    ("space.num_epochs", ".inf", f"{POSITIVE}, got inf"),
    (
        "space.learning_rate",
        "0",
        "must be a number > 0, got 0; allowed too, to search it: choice,",
    ),
    ("space.learning_rate", "-1e-3", "must be a number > 0, got -0.001"),
    ("space.learning_rate", ".nan", "must be a number > 0, got nan"),
    ("space.learning_rate", "1e999", "must be a number > 0, got inf"),
    ("space.learning_rate", "fast", "must be a number > 0, got the text 'fast'"),
    ("space.learning_rate", "{int: [1, 2]}", "int does not fit; allowed: choice, uniform, log_"),
    ("space.learning_rate", "{uniform: [0, 1]}", "uniform: low must be a number > 0, got 0"),
    ("space.learning_rate", "{uniform: [.nan, 1]}", "low must be a number > 0, got nan"),
    ("space.learning_rate", "{log_uniform: [1e-3, .inf]}", "high must be a number > 0, got inf"),
    ("space.learning_rate", "{log_uniform: [1, 1e-3]}", "low must be < high, got low 1.0 and"),
    (
        "space.learning_rate",
        "{log_uniform: [0.1, 0.10000000000000002]}",
        "log_uniform: low and high must differ by at least 1e-09 of high, got 0.1 and 0.100000000",
    ),
    ("space.weight_decay", "{uniform: [0, 5e-324]}", "uniform: low and high must differ by at"),
    ("space.learning_rate", "{log_uniform: {low: 1}}", "must be [low, high], got a mapping"),
    ("space.learning_rate", "{choice: [1, 1.0]}", "choice[1] must not repeat choice[0], got 1.0"),
    ("space.learning_rate", "{choice: [.nan]}", "choice[0] must be a number > 0, got nan"),
    ("space.weight_decay", "-1", "must be a number >= 0, got -1"),
    ("space.weight_decay", "{log_uniform: [0, 1]}", "log_uniform: low must be > 0, got 0.0"),
    ("space.l1", "{uniform: [-1, 1]}", "uniform: low must be a number >= 0, got -1"),
    ("space.momentum", "1", "must be a number >= 0 and < 1, got 1"),
    ("space.momentum", "{uniform: [0, 1]}", "uniform: high must be a number >= 0 and < 1, got 1"),
    ("space.momentum", "{choice: [0.9, no]}", "must be a number >= 0 and < 1, got the text 'no'"),
    ("space.learning_rate_schedule", "cosin", "got 'cosin'; did you mean 'cosine'?"),
    ("space.learning_rate_schedule", "1", "must be one of constant, linear, cosine, got 1"),
    ("space.learning_rate_schedule", "{int: [1, 2]}", "int does not fit; allowed: choice"),
    ("space.learning_rate_schedule", "{choice: [linear, step]}", "choice[1] must be one of"),
    ("space", "3", "must be a mapping with batch_size, num_epochs, learning_rate, "),
    ("dataset", "digits", "must be a mapping with name, path, validation, "),
    ("dataset.name", "minst", "got 'minst'; did you mean 'mnist'?"),
    ("dataset.name", "7", "must be one of fashion-mnist, mnist, "),
    ("dataset.name", "idx", "must be the folder of IDX files, since the dataset is idx, got none"),
    ("dataset.path", "files", "must be left out, since the dataset is digits, got 'files'"),
    ("dataset.path", "3", "must be a folder's name, got 3"),
    ("dataset.path", '""', "must be a folder's name, got ''"),
    ("dataset.path", r'"a\0b"', r"must be a folder's name, got 'a\x00b'"),
    ("dataset.validation", "0", "must be an integer >= 1 or a number > 0 and < 1, got 0"),
    ("dataset.validation", "1.0", "must be an integer >= 1 or a number > 0 and < 1, got 1.0"),
    ("dataset.validation", "-0.1", "must be an integer >= 1 or a number > 0 and < 1, got -0.1"),
    ("dataset.validation", "true", "must be an integer >= 1 or a number > 0 and < 1, got true"),
    ("dataset.train_fraction", "0", "must be a number > 0 and <= 1, got 0"),
    ("dataset.train_fraction", "1.5", "must be a number > 0 and <= 1, got 1.5"),
    ("dataset.split_seed", "-1", "must be an integer >= 0 and < 4294967296, got -1"),
    ("model.reduction", "median", "must be one of mean, sum, got 'median'"),
    ("model.initial_std", "0", "must be a number > 0, got 0"),
    ("model.precision", "bf16", "must be one of float32, bfloat16x2, bfloat16, tf32, got 'bf16'"),
    ("model.precision", "tf32", "tf32 is for GPUs alone, and resources.gpus_per_pack is 0; make"),
    ("search", "", "must be a mapping with num_trials, time_budget_s, "),
    ("search.num_trials", "0", f"{POSITIVE}, got 0"),
    ("search.num_trials", "-1", f"{POSITIVE}, got -1"),
    ("search.num_trials", "2.5", f"{POSITIVE}, got 2.5"),
    ("search.num_trials", '"8"', f"{POSITIVE}, got the text '8'"),
    ("search.time_budget_s", "0", "must be a number > 0 or null, got 0"),
    ("search.time_budget_s", ".inf", "must be a number > 0 or null, got inf"),
    ("search.time_budget_s", "10m", "must be a number > 0 or null, got the text '10m'"),
    ("search.metric", "loss", "must be one of validation_loss, validation_accuracy, got 'loss'"),
    ("search.sampler", "tpee", "got 'tpee'; did you mean 'tpe'?"),
    (
        "search.pack_size",
        "Auto",
        "must be auto or an integer >= 1 and <= 10000, got the text 'Auto'",
    ),
    ("search.pack_size", "0", "must be auto or an integer >= 1 and <= 10000, got 0"),
    ("search.pack_size", "10001", "must be auto or an integer >= 1 and <= 10000, got 10001"),
    ("search.seed", "4294967296", "must be an integer >= 0 and < 4294967296, got 4294967296"),
    ("search.asha", "off", "none or a mapping with grace_period, reduction_factor, brackets, got"),
    ("search.asha", "", "must be none or a mapping with grace_period, reduction_factor, brackets"),
    ("search.asha.grace_period", "0", f"{POSITIVE}, got 0"),
    ("search.asha.grace_period", "31", "must be <= the most epochs of the space, 30, got 31"),
    ("search.asha.reduction_factor", "1", "must be a number > 1, got 1"),
    ("search.asha.reduction_factor", "1.0001", "must give at most 1,000 rungs, got 34,"),
    ("search.asha.brackets", "0", f"{POSITIVE}, got 0"),
    ("search.asha.brackets", "4", "must be <= 3, since a later bracket has no rung"),
    ("search.points", "3", "must be a list of mappings, got 3"),
    ("search.points", "{num_epochs: 3}", "must be a list of mappings, got a mapping"),
    ("resources.cpus_per_pack", "0", f"{POSITIVE}, got 0"),
    ("resources.gpus_per_pack", "-1", "must be a number >= 0 and <= 1, got -1"),
    ("resources.gpus_per_pack", "2", "must be <= 1, since a pack uses one GPU or a part of it,"),
    ("resources.max_concurrent_packs", "0", "must be an integer >= 1 or null, got 0"),
    ("name", "a/b", "must be 1 to 64 letters, digits, dots, _ and -"),
    ("name", "..", "must be 1 to 64 letters, digits, dots, _ and -"),
    ("name", "a..b", "no two dots together, got 'a..b'"),
    ("name", "-rf", "a letter or digit first"),
    ("name", "/x", "must be 1 to 64 letters, digits, dots, _ and -"),
    ("name", r'"a\nb"', r"got 'a\nb'"),
    ("name", r'"a\n"', r"got 'a\n'"),
    ("name", r'"\e[31mred"', r"got '\x1b[31mred'"),
    ("name", "a" * 65, "must be 1 to 64 letters"),
    ("name", "7", "must be text, got 7"),
]


@pytest.mark.parametrize(("key", "text", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_refused_with_its_line_its_key_and_the_rule(key, text, expected):
    """One wrong value gives one line of message that says where, the rule and the value."""
    document = render({key: text})
    leaf = key.rpartition(".")[2]
    line = 1 + next(
        index
        for index, content in enumerate(document.splitlines())
        if content.strip() == f"{leaf}: {text}".strip()
    )
    message = refusal(document)
    if text == "idx":
        key = "dataset.path"  # a missing key stands on its parent's line
        line -= 1
    assert message.startswith(f"wrong.yaml:{line}: {key}: ")
    assert expected in message
    assert "\n" not in message
    assert message.isprintable()


# Changes to the base experiment, and the whole message after the file's name.
WRONG_TOGETHER = [
    (
        {"search.points": "[{num_epochs: 31}]"},
        "8: search.points[0].num_epochs: must be in the space, int 1 to 30, got 31",
    ),
    (
        {"search.points": "[{num_epochs: 3}, {num_epochs: 3.0}]"},
        "8: search.points[1].num_epochs: must be an integer >= 1, got 3.0",
    ),
    (
        {"search.points": "[{batch_size: 64}]"},
        (
            "8: search.points[0].batch_size: must be left out, since it is a constant of "
            "the space, got 64"
        ),
    ),
    (
        {"search.points": "[{num_epoch: 3}]"},
        "8: search.points[0]: unknown hyperparameter 'num_epoch'; did you mean 'num_epochs'?",
    ),
    (
        {"search.points": "[{}]"},
        (
            "8: search.points[0]: must be a mapping from hyperparameter to value, got an "
            "empty mapping"
        ),
    ),
    (
        {"search.num_trials": "1", "search.points": "[{num_epochs: 1}, {num_epochs: 2}]"},
        "9: search.points: must be at most search.num_trials, got 2 for 1 trials",
    ),
    (
        {"search.sampler": "grid", "space.momentum": "{uniform: [0, 0.9]}"},
        (
            "9: search.sampler: grid needs choice or int for all that is searched, got "
            "momentum is uniform 0.0 to 0.9"
        ),
    ),
    (
        {"search.sampler": "grid", "space.hidden_units": "{int: [0, 9007199254740992]}"},
        (
            "9: search.sampler: grid must have at most 1,000,000 configurations, got "
            "270,215,977,642,229,790"
        ),
    ),
    (
        {
            "search.sampler": "gp",
            "space.hidden_units": "{int: {low: 1, high: 1000001}}",
        },
        (
            "9: search.sampler: gp lists every integer of a range: at most 1,000,000, got "
            "1,000,001 for hidden_units; take tpe, or a larger step"
        ),
    ),
    (
        {"search.sampler": "cmaes"},
        (
            "8: search.sampler: cmaes needs two or more of int, uniform and log_uniform, "
            "got num_epochs; take tpe"
        ),
    ),
    (
        {"search.asha.grace_period": "11", "space.num_epochs": "10"},
        "9: search.asha.grace_period: must be <= the most epochs of the space, 10, got 11",
    ),
    (
        {"serach.seed": "1"},
        "7: unknown key 'serach'; did you mean 'search'?",
    ),
    (
        {"seed": "1"},
        "7: unknown key 'seed'; it belongs in search",
    ),
    ({"lr": "1"}, "7: unknown key 'lr'; did you mean 'learning_rate'? it belongs in space"),
    ({"space.lr": "1"}, "7: space: unknown key 'lr'; did you mean 'learning_rate'?"),
    (
        {"dataset.name": "FashionMNIST"},
        (
            "2: dataset.name: must be one of fashion-mnist, mnist, kmnist, qmnist, "
            "emnist-balanced, emnist-letters, idx, digits, got 'FashionMNIST'; did you mean "
            "'fashion-mnist'?"
        ),
    ),
    (
        {"search.sampler": "TPE"},
        (
            "8: search.sampler: must be one of tpe, random, gp, cmaes, grid, got 'TPE'; did you "
            "mean 'tpe'?"
        ),
    ),
    (
        {"space.momentum": "{loguniform: [0.1, 0.9]}"},
        "7: space.momentum: unknown domain 'loguniform'; did you mean 'log_uniform'?",
    ),
    (
        {"wing": "2"},
        "7: unknown key 'wing'; allowed: name, dataset, model, space, search, resources, remedies",
    ),
    (
        {"space.learning_rat": "0.1"},
        "7: space: unknown key 'learning_rat'; did you mean 'learning_rate'?",
    ),
    (
        {"space.a/b": "0.1"},
        (
            "7: space: unknown key 'a/b'; allowed: batch_size, num_epochs, learning_rate, "
            "learning_rate_schedule, weight_decay, l1, momentum, hidden_units, augmentation"
        ),
    ),
    (
        {"search.asha.max_t": "9"},
        "9: search.asha: unknown key 'max_t'; allowed: grace_period, reduction_factor, brackets",
    ),
    (
        {"dataset": "{path: files}"},
        "1: dataset: missing key 'name', which has no default",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_TOGETHER)
def test_what_contradicts_another_key_is_refused_in_these_words(changes, expected):
    """A key that does not go with the others is refused with this whole message."""
    assert refusal(render(changes)) == f"wrong.yaml:{expected}"


# A whole text, and what the message holds.
WRONG_TEXTS = [
    ("", "wrong.yaml: must be a mapping of keys, got an empty file"),
    ("# nothing\n", "wrong.yaml: must be a mapping of keys, got an empty file"),
    ("---\n", "wrong.yaml:2: must be a mapping of keys, got nothing"),
    ("- 1\n", "wrong.yaml:1: must be a mapping of keys, got a list"),
    ("name: x\n", "wrong.yaml:1: missing key 'space', which has no default"),
    ("space: {}\n", "wrong.yaml:1: space: missing key 'batch_size', which has no default"),
    (render({}) + "---\nname: x\n", "wrong.yaml:7: must hold one document, got a second"),
    (render({}) + "space:\n  l1: 0\n", "wrong.yaml:7: space: duplicate key, first on line 3"),
    (render({"dataset.name": "&a digits"}), "wrong.yaml:2: dataset.name: an anchor (&a) is not"),
    (render({"model.reduction": "*a"}), "wrong.yaml:8: model.reduction: an alias (*a) is not"),
    (
        render({"name": "!!python/object/apply:os.system [id]"}),
        "wrong.yaml:7: name: a tag (tag:yaml.org,2002:python/object/apply:os.system) is not",
    ),
    (render({}) + "3: 4\n", "wrong.yaml:7: a key must be text, got 3"),
    (render({}) + "\tname: x\n", "wrong.yaml:7:1: not YAML: a tab indents the line; use spaces"),
    (render({}) + "  name: x\n name: y\n", "not YAML: "),
    ("a: [1, 2\n", "wrong.yaml:2:1: not YAML: while parsing a flow sequence"),
    ("a: " + "[" * 40 + "]" * 40, "wrong.yaml:1: must be nested at most 32 levels deep"),
    ("a: " + "x" * 1_000_000, "wrong.yaml: must hold at most 1,000,000 bytes"),
    ("name: \x07\n", "wrong.yaml:1: not YAML: the character U+0007 is not allowed"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_TEXTS)
def test_a_text_that_is_no_experiment_is_refused(text, expected):
    """Text that is not one strict YAML mapping is refused with file, line and reason."""
    assert expected in refusal(text)


def test_there_are_enough_wrong_files():
    """The tables hold many more than the sixty wrong files that were promised."""
    assert len(WRONG_VALUES) + len(WRONG_TOGETHER) + len(WRONG_TEXTS) > 120


def test_all_problems_are_reported_together_in_the_order_of_the_file():
    """Problems of every kind and section stand in one message, a line each."""
    message = refusal(
        "name: a b\n"
        "dataset: {name: digits, validation: 2.0}\n"
        "space:\n"
        "  batch_size: {choice: [64,\n"
        "    0, 64]}\n"
        "  num_epochs: {int: [1, 10]}\n"
        "  momentum: {uniform: [0, 0.9]}\n"
        "  l1: *x\n"
        "search:\n"
        "  seed: 1\n"
        "  seed: 2\n"
        "  sampler: grid\n"
        "  asha: {grace_period: 11}\n"
        "  points: [{momentum: 0.95, batch_size: 3}]\n"
    )
    places = [line.split(": ")[:2] for line in message.splitlines()]
    assert places == [
        ["wrong.yaml:1", "name"],
        ["wrong.yaml:2", "dataset.validation"],
        ["wrong.yaml:3", "space"],  # learning_rate is missing
        ["wrong.yaml:5", "space.batch_size"],
        ["wrong.yaml:5", "space.batch_size"],
        ["wrong.yaml:8", "space.l1"],
        ["wrong.yaml:11", "search.seed"],
        ["wrong.yaml:12", "search.sampler"],
        ["wrong.yaml:13", "search.asha.grace_period"],
        ["wrong.yaml:14", "search.points[0].momentum"],
    ]


def test_defaults_are_those_of_the_documentation():
    """An experiment that says only what it must gets the documented defaults."""
    experiment = parse(render({}), "folder/first.yaml")
    assert experiment.name == "first"
    assert round(60_000 * experiment.dataset.validation) == 10_000
    assert (experiment.dataset.train_fraction, experiment.dataset.split_seed) == (1.0, 0)
    assert (experiment.model.reduction, experiment.model.initial_std) == ("mean", 0.01)
    assert experiment.model.precision == "float32"
    search = experiment.search
    assert (search.num_trials, search.time_budget_s, search.sampler) == (64, None, "tpe")
    assert (search.metric, search.mode, search.pack_size) == ("validation_loss", "min", "auto")
    assert (search.points, search.seed) == ((), 0)
    assert search.asha == Asha(grace_period=1, reduction_factor=4.0, brackets=1)
    resources = experiment.resources
    assert (resources.cpus_per_pack, resources.gpus_per_pack) == (1, 0.0)
    assert resources.max_concurrent_packs is None
    assert experiment.space.config({"num_epochs": 3}) == Config(
        batch_size=64, num_epochs=3, learning_rate=0.1
    )


def test_the_datasets_are_those_that_can_be_had():
    """An experiment may name just the datasets that `data` knows."""
    assert set(NAMES) == set(DATASETS)


def test_every_form_of_a_hyperparameter_is_read():
    """Constants and the four domains become typed values; whole numbers become floats."""
    space = read(
        space__batch_size="{choice: [64, 010]}",
        space__num_epochs="{int: {low: 1, high: 10, step: 4}}",
        space__learning_rate="{log_uniform: [1e-3, 1]}",
        space__momentum="{uniform: [0, 0.9]}",
        space__weight_decay="1e-5",
        space__l1="{choice: [0, 1e-4]}",
    ).space
    assert space.batch_size == Choice(choice=(64, 10))
    assert space.num_epochs == IntRange(low=1, high=9, step=4, log=False)
    assert space.learning_rate == LogUniform(low=1e-3, high=1.0)
    assert space.momentum == Uniform(low=0.0, high=0.9)
    assert space.weight_decay == 1e-5
    assert space.l1 == Choice(choice=(0.0, 1e-4))
    assert all(type(value) is float for value in space.l1.choice)


def test_asha_none_is_no_asha():
    """`asha: none` switches early stopping off, and is written back as it was."""
    experiment = read(search__asha="none")
    assert experiment.search.asha is None
    assert "asha: none" in experiment.to_yaml()


def test_the_mode_follows_the_metric():
    """Loss is minimized and accuracy maximized."""
    assert read(search__metric="validation_accuracy").search.mode == "max"
    assert read(search__metric="validation_loss").search.mode == "min"


def test_each_bracket_keeps_a_rung():
    """Three brackets fit between 1 and 30 epochs at a factor of 4, as in Ray Tune."""
    assert read(search__asha="{brackets: 3}").search.asha.brackets == 3


@pytest.mark.parametrize("sampler", ["grid", "cmaes"])
def test_a_space_of_constants_suits_every_sampler(sampler):
    """A file for `train` may leave any sampler in place."""
    read(space__num_epochs="3", search__sampler=sampler)


def test_points_take_the_type_of_the_hyperparameter():
    """A whole number in a point becomes a float where the hyperparameter is one."""
    experiment = read(space__momentum="{choice: [0, 0.5]}", search__points="[{momentum: 0}]")
    assert repr(experiment.search.points) == "({'momentum': 0.0},)"


def test_only_a_space_of_constants_is_a_single_configuration():
    """`train` gets a configuration from constants, and hears what is searched otherwise."""
    assert read(space__num_epochs="3").single_config() == Config(
        batch_size=64, num_epochs=3, learning_rate=0.1
    )
    with pytest.raises(ExperimentError, match=r"got num_epochs \(int 1 to 30\)"):
        read().single_config()


def test_only_a_space_with_a_domain_can_be_searched():
    """`search` refuses a space of constants and names `train`."""
    read().check_searchable()
    with pytest.raises(ExperimentError, match=r"experiment x: .*got constants only; .*train"):
        read(space__num_epochs="3").check_searchable()
    studied = read(space__num_epochs="40", remedies="{smaller_model: []}")
    with pytest.raises(ExperimentError, match=r"section remedies; `tune-softmax remedies`"):
        studied.check_searchable()


def test_a_relative_folder_is_relative_to_the_file(tmp_path):
    """The folder of IDX files is made absolute when the file is read."""
    file = tmp_path / "experiments" / "own.yaml"
    file.parent.mkdir()
    file.write_text(render({"dataset.name": "idx", "dataset.path": "../my files/ü"}))
    experiment = load(file)
    assert experiment.dataset.path == tmp_path / "my files" / "ü"
    assert parse(experiment.to_yaml(), "elsewhere/x.yaml") == experiment


def test_an_option_replaces_what_the_file_says(tmp_path):
    """Options win over the file, also in a section that the file leaves out."""
    file = tmp_path / "x.yaml"
    file.write_text(render({"model.reduction": "sum"}))
    experiment = load(file, {"search.num_trials": 8, "search.seed": 1, "model.reduction": "mean"})
    assert (experiment.search.num_trials, experiment.search.seed) == (8, 1)
    assert experiment.model.reduction == "mean"
    assert load(file) != experiment


def test_a_wrong_option_is_named_as_the_user_wrote_it(tmp_path):
    """A message about an option names the option, not a line of the file."""
    file = tmp_path / "x.yaml"
    file.write_text(render({"search.seed": "-1", "search.asha": "none"}))
    with pytest.raises(ExperimentError) as caught:
        load(file, {"search.num_trials": 0, "search.asha.grace_period": 2})
    assert str(caught.value).splitlines() == [
        f"option --grace-period: needs search.asha to be a mapping in {file}",
        "option --num-trials: must be an integer >= 1, got 0",
        f"{file}:8: search.seed: must be an integer >= 0 and < 4294967296, got -1",
    ]


def test_a_file_name_that_is_no_name_asks_for_one(tmp_path):
    """The default name is checked too, and the message says which key helps."""
    file = tmp_path / "my file.yaml"
    file.write_text(render({}))
    with pytest.raises(ExperimentError, match="missing key 'name', and the file's own name"):
        load(file)
    assert load(file, {"name": "mine"}).name == "mine"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: \xff\n", "bad.yaml:1: must be UTF-8 text, got the byte 0xff"),
        (render({}).encode("utf-16"), "bad.yaml:1: must be UTF-8 text, got the byte 0xff"),
        (b"", "bad.yaml: must be a mapping of keys, got an empty file"),
        (b"#" * 1_000_001, "bad.yaml: must hold at most 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, expected):
    """Bytes that are not UTF-8, nothing at all, and too much are refused."""
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        load(file)
    assert expected in str(caught.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    """A missing file, a folder, a device, a pipe and an impossible name; none is waited for."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, reason in [
        (tmp_path / "missing.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (pipe, "is not a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "embedded null byte"),
    ]:
        with pytest.raises(ExperimentError, match=f"cannot be read: {reason}"):
            load(path)


def test_a_pipe_is_refused_but_from_a_shell(tmp_path):
    """A pipe in a run folder would hang every command; `<(command)` is meant to be read."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ExperimentError, match="cannot be read: is not a regular file"):
        load(tmp_path / "pipe.yaml")
    reading, writing = os.pipe()
    os.write(writing, render({"name": "piped"}).encode())
    os.close(writing)
    assert load(f"/dev/fd/{reading}").name == "piped"
    os.close(reading)


def test_a_run_where_an_experiment_is_meant_is_named(tmp_path):
    """`search RUN` is told of `resume`."""
    (tmp_path / "experiment.yaml").touch()
    with pytest.raises(ExperimentError, match=f"it is a run: go on .* resume {tmp_path}"):
        load(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path):
    """Editors that begin UTF-8 with a mark do no harm."""
    file = tmp_path / "x.yaml"
    file.write_bytes(render({}).encode("utf-8-sig"))
    assert load(file) == parse(render({}), "x.yaml")


def test_an_experiment_can_be_sent_and_not_changed():
    """Experiments pickle to an equal value and refuse assignment."""
    experiment = read(search__points="[{num_epochs: 3}]")
    assert pickle.loads(pickle.dumps(experiment)) == experiment  # noqa: S301 - our own
    with pytest.raises(ValueError, match="frozen"):
        experiment.name = "other"


# --- Properties ---------------------------------------------------------------------------------

FLOATS = st.floats(1e-6, 0.99)
PAIRS = st.tuples(FLOATS, FLOATS).filter(lambda pair: pair[0] < 0.999 * pair[1]).map(list)
NUMBERS = st.one_of(
    FLOATS,
    PAIRS.map(lambda pair: {"uniform": pair}),
    PAIRS.map(lambda pair: {"log_uniform": pair}),
    st.lists(FLOATS, min_size=1, unique=True).map(lambda values: {"choice": values}),
)
INTEGERS = st.one_of(
    st.integers(1, 2000),
    st.tuples(st.integers(1, 9), st.integers(10, 2**53)).map(lambda pair: {"int": list(pair)}),
    st.integers(1, 9).map(lambda step: {"int": {"low": 1, "high": 10, "step": step}}),
    st.just({"int": {"low": 2, "high": 1024, "log": True}}),
    st.lists(st.integers(1, 9), min_size=1, unique=True).map(lambda values: {"choice": values}),
)
SCHEDULES = st.sampled_from(["constant", "linear", {"choice": ["cosine", "linear"]}])
SPACES = st.fixed_dictionaries(
    {"batch_size": INTEGERS, "num_epochs": INTEGERS, "learning_rate": NUMBERS},
    optional={
        "learning_rate_schedule": SCHEDULES,
        "weight_decay": NUMBERS,
        "l1": NUMBERS,
        "momentum": NUMBERS,
        "hidden_units": INTEGERS,
        "augmentation": NUMBERS,
    },
)
SEEDS = st.integers(0, 2**32 - 1)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
EXPERIMENTS = st.fixed_dictionaries(
    {
        "dataset": st.one_of(
            st.fixed_dictionaries(
                {"name": st.sampled_from([name for name in NAMES if name != "idx"])},
                optional={"validation": st.integers(1, 50_000) | FLOATS, "split_seed": SEEDS},
            ),
            st.fixed_dictionaries({"name": st.just("idx"), "path": TEXTS}),
        ),
        "space": SPACES,
    },
    optional={
        "name": st.from_regex(r"[A-Za-z0-9]([._-]?[A-Za-z0-9]){0,20}", fullmatch=True),
        "search": st.fixed_dictionaries(
            {},
            optional={
                "num_trials": st.integers(1, 1000),
                "time_budget_s": st.none() | st.floats(1e-3, 1e9),
                "sampler": st.sampled_from(["tpe", "random"]),
                "metric": st.sampled_from(["validation_loss", "validation_accuracy"]),
                "asha": st.just("none") | st.builds(dict, reduction_factor=st.floats(1.1, 9)),
                "pack_size": st.just("auto") | st.integers(1, 999),
                "seed": SEEDS,
            },
        ),
        "resources": st.builds(dict, gpus_per_pack=st.floats(0, 1)),
    },
)


@settings(max_examples=60, deadline=None)
@given(EXPERIMENTS)
def test_a_resolved_experiment_reads_back_equal(values):
    """Whatever is valid comes back from `to_yaml` as it was, and the schema agrees."""
    experiment = parse(yaml_reader.dump(values), "stem.yaml")
    resolved = experiment.to_yaml()
    assert parse(resolved, "other.yaml") == experiment
    VALIDATOR.validate(yaml_reader.read(resolved, "x").value)


FRAGMENTS = st.sampled_from(
    [
        "space",
        "dataset",
        "search",
        "points",
        "choice",
        "int",
        ": ",
        "\n",
        "  ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "!!set ",
        "'",
        '"',
        "|",
        "1e-3",
        ".nan",
        "\t",
        "# ",
        "?",
        "\\x",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=30).map("".join))
def test_garbage_never_raises_anything_else(text):
    """Any text at all gives an experiment or an ExperimentError that a terminal can show."""
    for candidate in (text, render({}) + text, render({"space.momentum": text})):
        try:
            parse(candidate, "x.yaml")
        except ExperimentError as error:
            assert all(line.isprintable() for line in str(error).split("\n"))  # noqa: PT017


# --- The schema and the shipped experiments -----------------------------------------------------

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_written_schema_is_up_to_date():
    """`docs/experiment.schema.json` is what `tune-softmax validate --schema` writes."""
    jsonschema.Draft202012Validator.check_schema(json_schema())
    written = (ROOT / "docs" / "experiment.schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_describes_every_key():
    """An editor can show help on every key of every section and of a point."""
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    sections.append(schema["$defs"]["Search"]["properties"]["points"]["items"])
    for section in sections:
        for key, value in section["properties"].items():
            assert "description" in value or "$ref" in value, key


def test_five_experiments_are_shipped():
    """The search for shipped experiments finds those that there are."""
    assert {path.stem for path in SHIPPED} >= {
        "quickstart",
        "fashion_mnist",
        "concise",
        "exercise1",
        "mlp",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_experiment_loads_and_says_what_it_is(path):
    """Each shipped file names the schema, its question, roles, budget and command, and loads."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "docs" / "experiment.schema.json"
    header = "\n".join(lines[: lines.index("")])
    for word in ("Question: ", "scientific ", "nuisance ", "fixed ", "Budget:  ", "Command: "):
        assert word in header
    experiment = load(path)
    assert experiment.name == path.stem
    verb = "train" if experiment.space.is_constant else "search"
    verb = verb if experiment.remedies is None else "remedies"
    assert f"Command: tune-softmax {verb} experiments/{path.name}" in header
    VALIDATOR.validate(yaml_reader.read(path.read_bytes(), path.name).value)
    VALIDATOR.validate(yaml_reader.read(experiment.to_yaml(), path.name).value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("space.batch_size", "0"),
        ("space.batch_size", "{uniform: [1, 9]}"),
        ("space.batch_size", "{choice: []}"),
        ("space.batch_size", "{choice: [1], int: [1, 2]}"),
        ("space.momentum", "{uniform: [0, 1]}"),
        ("space.learning_rat", "1"),
        ("dataset.name", "idx"),
        ("dataset.path", "files"),
        ("search.asha", "off"),
        ("search.points", "[{momentum: 2}]"),
        ("resources.gpus_per_pack", "2"),
        ("name", "a/b"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(key, text):
    """An editor underlines wrong values before the loader sees them."""
    document = render({key: text})
    refusal(document)
    assert not VALIDATOR.is_valid(yaml.safe_load(document))


def test_reading_experiments_loads_no_heavy_library():
    """`validate` starts without torch, Ray, Optuna, pandas or numpy."""
    code = (
        "import sys; from tune_softmax.experiment.experiment import load; load(sys.argv[1]);"
        "heavy = {'torch', 'ray', 'optuna', 'pandas', 'numpy', 'sklearn'} & sys.modules.keys();"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(SHIPPED[0])], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("asha", "bracket", "rungs"),
    [
        (Asha(), 0, [1, 4, 16]),
        (Asha(), 1, [4, 16]),
        (Asha(grace_period=2, reduction_factor=3), 0, [2, 6, 18]),
        (Asha(grace_period=30), 0, [30]),
        (Asha(reduction_factor=1.5), 0, [1, 2, 3, 4, 6, 8, 12, 18, 26]),
        (
            Asha(grace_period=10, reduction_factor=1.1),
            0,
            [*range(10, 12), 13, 14, 15, 17, 18, 20, 22, 24, 26, 29],
        ),
    ],
)
def test_rungs_are_epochs_that_grow_by_the_reduction_factor(asha, bracket, rungs):
    """From the grace period to the most epochs, here 30; a bracket begins one rung later."""
    assert asha.rungs(30, bracket) == rungs


def test_a_rung_is_where_it_is_in_exact_numbers():
    """100 times 1.1 is 110, although floating point makes it a little more."""
    assert Asha(grace_period=100, reduction_factor=1.1).rungs(120) == [100, 110]


@pytest.mark.parametrize(
    ("factor", "most"), [(2, 52), (3, 33), (4, 26), (5, 22), (7, 18), (10, 15)]
)
def test_a_power_of_the_factor_is_a_rung_of_its_own(factor, most):
    """Trials of 1,000 epochs are compared after 1,000, though log(1000) / log(10) is below 3."""
    for power in range(most + 1):
        rungs = [factor**k for k in range(power + 1)]
        assert Asha(reduction_factor=factor).rungs(factor**power) == rungs
        assert Asha(reduction_factor=factor).rungs(factor**power, power) == rungs[-1:]
        if power > 1:
            assert Asha(reduction_factor=factor).rungs(factor**power - 1) == rungs[:-1]


def test_there_may_be_as_many_brackets_as_rungs():
    """Four brackets fit 1,000 epochs at a factor of 10, and a fifth does not."""
    asha = {"search.asha.reduction_factor": "10", "space.num_epochs": "1000"}
    parse(render(asha | {"search.asha.brackets": "4"}))
    assert "must be <= 4, since" in refusal(render(asha | {"search.asha.brackets": "5"}))


@pytest.mark.parametrize("factor", ["1e300", "1.7976931348623157e308"])
def test_a_huge_factor_leaves_one_rung(factor):
    """Powers beyond what a float holds are not computed."""
    asha = read(search__asha=f"{{reduction_factor: {factor}, grace_period: 9}}").search.asha
    assert asha.rungs(30) == [9]


@given(st.floats(1, 2, exclude_min=True))
def test_a_factor_near_one_is_judged_at_once(factor):
    """However many rungs it would give, the answer takes no time."""
    try:
        read(search__asha=f"{{reduction_factor: {factor!r}}}")
    except ExperimentError as error:
        assert "must give at most 1,000 rungs" in str(error)  # noqa: PT017
