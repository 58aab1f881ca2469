"""An experiment from what a caller has of it."""

from pathlib import Path

import numpy as np
import pytest

import tune_softmax
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment import as_experiment, parse

TEXT = "dataset: {name: digits}\nspace: {batch_size: 64, num_epochs: 2, learning_rate: 0.1}\n"
MAPPING = {
    "dataset": {"name": "digits"},
    "space": {"batch_size": np.int64(64), "num_epochs": 2, "learning_rate": 0.1},
}


def test_a_mapping_says_what_a_file_says(tmp_path):
    """So does its path, as text or as a path; an experiment is itself."""
    path = tmp_path / "experiment.yaml"
    path.write_text(TEXT, encoding="utf-8")
    expected = parse(TEXT)
    for source in (MAPPING, path, str(path), expected):
        assert as_experiment(source) == expected
    assert as_experiment(MAPPING | {"name": "mine"}).name == "mine"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "must be an Experiment, the path of an experiment file, or a mapping .*, got int"),
        ([MAPPING], "got list"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read: No such file"),
        (MAPPING | {"spase": 1}, "unknown key 'spase'; did you mean 'space'"),
        (MAPPING | {"name": object()}, "must hold numbers, text, lists and mappings alone"),
        ({}, "missing key 'dataset'"),
    ],
)
@pytest.mark.parametrize("verb", ["search", "remedies", "oracle", "train"])
def test_a_wrong_experiment_is_one_message(verb, source, message, tmp_path, monkeypatch):
    """Every verb says so before it does anything."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError, match=message):
        getattr(tune_softmax, verb)(source)
    assert list(Path().iterdir()) == []
