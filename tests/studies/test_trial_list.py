"""Lists of trials in a folder of their own; the studies' tests train them on a real Ray."""

from contextlib import closing

import pytest
from run_folders import begin

from tune_softmax.experiment.experiment import load
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.agenda import FixedList
from tune_softmax.studies.trial_list import TrialList


def test_a_list_is_begun_once_it_has_a_ledger(tmp_path):
    """A folder without one, or none at all, is new."""
    folder, ledger = begin(tmp_path / "run")
    ledger.close()
    experiment = load(folder.experiment)
    new = TrialList(RunFolder(tmp_path / "new"), "kind", experiment, FixedList([]))
    assert not new.is_begun
    assert TrialList(folder, "kind", experiment, FixedList([])).is_begun


@pytest.mark.parametrize(
    ("events", "count"),
    [([], 1), (["test_opened"], 1), (["test_opened", "extended"], 2)],
)
def test_an_opening_is_recorded_once_for_each_list(tmp_path, events, count):
    """To go on records none; a list that has grown opens the test set again."""
    from tune_softmax.studies.trial_list import _record_opening

    with closing(Ledger.create(tmp_path / "run.db", {})) as ledger:
        for kind in events:
            ledger.event(kind)
        for _ in range(2):
            _record_opening(ledger, "remedies")
        kinds = [kind for _, kind, _ in ledger.events()]
    assert kinds.count("test_opened") == count
