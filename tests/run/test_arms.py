"""A study of remedies, read as dataframes: every trial says what it is an example of."""

from contextlib import closing

import pandas as pd
import pytest

from tune_softmax.commands.result_tables import export, trial_table
from tune_softmax.errors import DamagedRunError, ResultsError
from tune_softmax.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run import results
from tune_softmax.run.arms import BASELINE, ArmTrials
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies.train import train

EXPERIMENT = """
name: study
dataset: {name: digits, train_fraction: 0.5}
space: {batch_size: 16, num_epochs: 2, learning_rate: 0.1}
search: {seed: 3}
remedies:
  seeds: 3
  early_stopping: []
  weight_decay: [1e-3, 1e-2]
  l1: []
  augmentation: []
  more_data: [0.75, 1]
  less_data: [0.25]
"""


def write(path, planned, *, every=1):
    """Write a study's run in which every remedy helps; each trial's loss tells its arm."""
    folder = RunFolder(path)
    folder.create()
    folder.experiment.write_text(parse(EXPERIMENT, "study.yaml").to_yaml(), encoding="utf-8")
    with closing(Ledger.create(folder.ledger, {"kind": "remedies"})) as ledger:
        number = 0
        while number < len(planned.trials):
            arm, seed = planned.trials[number]
            loss = 1.0 - (0.5 if arm.remedy != BASELINE else 0) + 0.001 * seed
            ledger.hand_out(number, {number: arm.config})
            for epoch in range(1, arm.config.num_epochs + 1):
                state = State.COMPLETE if epoch == arm.config.num_epochs else State.RUNNING
                metrics = EpochMetrics(loss, 0.9, loss, 0.9, 0.1)
                ledger.record(number, [Report(number, epoch, metrics, state)])
            planned.tell(number, State.COMPLETE, [loss] * arm.config.num_epochs)
            number += every
    return folder.path


@pytest.fixture
def planned():
    """Return the study's trials by number."""
    return ArmTrials(parse(EXPERIMENT, "study.yaml"))


def test_every_trial_has_its_remedy_strength_seed_and_fraction(tmp_path, planned):
    """Those of the combination too, which only the results of the others lead to."""
    trials = results.load(write(tmp_path / "run", planned)).trials
    assert "combined" in set(trials["remedy"])
    assert len(trials) == len(planned.trials)
    for row in trials.to_dict("records"):
        arm, seed = planned.trials[row["number"]]
        assert (row["remedy"], row["strength"], row["strength_label"], row["seed"]) == (
            arm.remedy,
            arm.strength,
            arm.label,
            seed,
        )
        assert row["train_fraction"] == arm.train_fraction
    assert trials.columns.tolist()[:3] == ["number", "state", "remedy"]
    assert set(trials.loc[trials["remedy"] == "more_data", "train_fraction"]) == {0.75, 1.0}


def test_every_form_has_them(tmp_path, planned):
    """The table, CSV, JSON, and what a notebook shows."""
    found = results.load(write(tmp_path / "run", planned))
    names = ["remedy", "strength", "strength_label", "seed", "train_fraction"]
    for form in ("csv", "json"):
        assert all(f"{name}" in export(found.trials, form) for name in names)
    headings = [column.name for column in trial_table(found, found.ranked(), "all").columns]
    assert headings[:4] == ["trial", "remedy", "strength", "seed"]
    assert "<th>remedy</th>" in found._repr_html_()


def test_an_unfinished_study_can_be_read(tmp_path, planned):
    """Before phase two there is no combination."""
    folder = write(tmp_path / "run", planned, every=2)
    trials = results.load(folder).trials
    assert set(trials["number"] % 2) == {0}
    assert "combined" not in set(trials["remedy"])
    pd.testing.assert_index_equal(trials.index, pd.RangeIndex(len(trials)))


def test_a_trial_that_nothing_leads_to_is_damage(tmp_path, planned):
    """Here the ledger holds more than the experiment asks for."""
    path = write(tmp_path / "run", planned)
    with closing(Ledger.open(RunFolder(path).ledger, writable=True)) as ledger:
        number = len(planned.trials)
        ledger.hand_out(99, {number: planned.trials[0][0].config})
    with pytest.raises(DamagedRunError, match=rf"trial {number} is none of the"):
        results.load(path)


def test_a_study_is_not_trained(tmp_path, planned):
    """Its trials differ in more than a configuration; before, the baseline's was taken."""
    path = write(tmp_path / "run", planned)
    with pytest.raises(ResultsError, match="is a study of remedies"):
        train(path, trial=3)
