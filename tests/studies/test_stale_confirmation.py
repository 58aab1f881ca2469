"""A confirmation of a search that went on afterwards is out of date, and everything says so."""

import json
import logging
from contextlib import closing

import pytest
import report_runs
import run_folders

from tune_softmax.errors import DamagedRunError
from tune_softmax.metrics import EpochMetrics, FinalTest, Report, State
from tune_softmax.report.inputs import gather
from tune_softmax.report.sections import sections
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies import confirm
from tune_softmax.studies.predict import load_model

NUM_CLASSES = 10
SEEDS = 3


def confirm_by_hand(run, top=2):
    """Write the confirmation of a run's best trials as `confirm` does, without training."""
    found = results.load(run)
    best = found.ranked()["number"].head(top).tolist()
    pairs = [(int(trial), seed) for seed in range(SEEDS) for trial in best]
    plan = {"top": top, "num_seeds": SEEDS, "pairs": pairs}
    folder = found.folder.confirm
    folder.create()
    folder.experiment.write_text(found.experiment.to_yaml(), encoding="utf-8")
    confusion = tuple(
        tuple(30 if row == column else 1 for column in range(NUM_CLASSES))
        for row in range(NUM_CLASSES)
    )
    meta = {"kind": "confirm", "plan": json.dumps(plan), "dataset_checksum": "none"}
    with closing(Ledger.create(folder.ledger, meta)) as ledger:
        ledger.hand_out(0, {n: found.config(trial) for n, (trial, _) in enumerate(pairs)})
        for number, (trial, seed) in enumerate(pairs):
            last = found.config(trial).num_epochs
            for epoch in range(1, last + 1):
                state = State.COMPLETE if epoch == last else State.RUNNING
                test = FinalTest(0.3 + 0.01 * trial + 0.001 * seed, 0.9, confusion)
                report = Report(
                    number,
                    epoch,
                    run_folders.metrics(number, epoch),
                    state,
                    test=test if state is State.COMPLETE else None,
                )
                ledger.record(0, [report])
    found.folder.best.path.mkdir()
    evaluation = json.dumps(report_runs.evaluation())
    found.folder.best.evaluation.write_text(evaluation, encoding="utf-8")
    return best


@pytest.fixture
def run(tmp_path):
    """Return a run whose two best of eight trials were confirmed."""
    folder = run_folders.finished(tmp_path / "run", 8)
    confirm_by_hand(folder.path)
    return folder.path


def go_on(run, numbers):
    """Let the search go on with more trials."""
    with closing(Ledger.open(RunFolder(run).ledger, writable=True)) as ledger:
        run_folders.train(ledger, numbers, pack=1)


def test_a_confirmation_of_the_best_trials_is_not_stale(run):
    """Also after more trials, while none of them is among the best."""
    assert confirm.load(run).stale == ""
    go_on(run, [8])  # one epoch, a higher loss
    assert confirm.load(run).stale == confirm.stale_winner(run) == ""
    assert gather(run).evaluation is not None


def text_of(section):
    """Return all that a section says."""
    return " ".join(str(part) for part in section.parts)


def test_the_report_does_not_mix_old_winners_with_new_trials(run, monkeypatch):
    """Where the confirmed trials are not the best any more, only the way out is shown."""
    monkeypatch.setattr(run_folders, "metrics", better)
    go_on(run, [8, 9, 10, 11])
    stale = confirm.load(run).stale
    assert "since then the search has found trials 11 and 10" in stale
    assert f"tune-softmax confirm {run}" in stale
    inputs = gather(run)
    assert (inputs.confirmation, inputs.evaluation) == (None, None)
    made = {section.name: section for section in sections(inputs)}
    for name in ("summary", "best", "confusion"):
        assert stale in text_of(made[name])
    assert "Confirmed" not in text_of(made["best"])


def better(number, epoch):
    """Return metrics that no earlier trial has."""
    return EpochMetrics(0.01, 0.99, 0.05 / (epoch + number), 0.99, 0.1)


def test_a_stale_winner_is_loaded_with_a_warning(run, monkeypatch, caplog):
    """`predict` and `load_model` say it, for the weights are those of an older best."""
    monkeypatch.setattr(run_folders, "metrics", better)
    go_on(run, [8, 9, 10, 11])
    with (
        caplog.at_level(logging.WARNING, "tune_softmax"),
        pytest.raises(DamagedRunError, match=r"configuration\.json"),  # there is no model here
    ):
        load_model(run)
    assert "The confirmation is out of date" in caplog.text


def test_confirming_an_unfinished_search_warns(run, caplog):
    """What is confirmed may not be the best at the end."""
    with caplog.at_level(logging.WARNING, "tune_softmax"):
        assert confirm.confirm(run, top=2, seeds=SEEDS).stale == ""
    assert "the search is not finished, 92 of 100 trials left" in caplog.text
    assert "tune-softmax resume" in caplog.text
