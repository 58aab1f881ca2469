"""What must hold: of one run over its deaths, and between a run and its unbroken twin."""

from contextlib import closing
from dataclasses import astuple

import pandas as pd

from tune_softmax.metrics import State
from tune_softmax.run import check, results
from tune_softmax.run.ledger import Ledger

__all__ = ["Oracle", "compare", "events", "read", "trained_after_final"]


def read(run):
    """Return a run's ledger as {number: (record, {epoch: metrics})}."""
    with closing(Ledger.open(run.path / "run.db")) as ledger, ledger.snapshot():
        trials = {trial.number: (trial, {}) for trial in ledger.trials()}
        for number, epoch, metrics in ledger.epochs():
            trials[number][1][epoch] = astuple(metrics)
    return trials


def events(run, kind):
    """Return the details of a run's events of one kind."""
    with closing(Ledger.open(run.path / "run.db")) as ledger:
        return [detail for _, name, detail in ledger.events() if name == kind]


class Oracle:
    """Follows one run from death to death.

    Args:
        run: The run.
    """

    def __init__(self, run):
        self._run = run
        self._finals = {}

    @property
    def num_final(self):
        """How many trials were final when last looked at."""
        return len(self._finals)

    def look(self):
        """Hold the ledger after a death against what it was after the one before.

        Raises:
            AssertionError: A finished trial is gone or changed.
        """
        now = read(self._run)
        for number, (record, epochs) in self._finals.items():
            assert number in now, f"trial {number} was final and is gone"
            found, found_epochs = now[number]
            assert (found.state, found.config) == (record.state, record.config), number
            assert found_epochs == epochs, f"trial {number} was final and its values changed"
        finals = {n: trial for n, trial in now.items() if trial[0].state.is_final}
        fresh = sorted(finals.keys() - self._finals.keys())
        if fresh:  # the driver may have died before it could tell the witness itself
            with self._run.witness.open("a") as witness:
                witness.write("final " + ",".join(map(str, fresh)) + "\n")
        self._finals = finals

    def complete(self, num_trials, besides=()):
        """Hold a finished run against every rule.

        Args:
            num_trials: How many it must have.
            besides: Processes that were frozen and may train what others have long finished.

        Raises:
            AssertionError: A trial is missing, double, unfinished, or was trained once more.
        """
        self.look()
        found = results.load(self._run.path)
        assert list(found.trials["number"]) == list(range(num_trials)), "numbers"
        states = set(found.trials["state"])
        assert states <= {State.COMPLETE, State.PRUNED, State.FAIL}, f"left in {states}"
        assert not found.epochs.duplicated(["trial", "epoch"]).any(), "an epoch is there twice"
        check.check(self._run.path)
        again = trained_after_final(self._run, besides)
        assert not again, f"trials {sorted(again)} were trained after they were final"


def trained_after_final(run, besides=()):
    """Return the trials of which the witness saw an epoch after their final commit.

    Args:
        run: The run.
        besides: Processes whose epochs do not count.
    """
    finals, again = set(), set()
    for line in run.witness.read_text().splitlines():
        kind, *words = line.split()
        trials = set(map(int, words[-1].split(",")))
        if kind == "final":
            finals |= trials
        elif int(words[0]) not in besides:
            again |= trials & finals
    return again


def compare(run, twin):
    """Compare a run with its unbroken twin.

    Returns:
        The largest difference of two values of one trial and epoch; NaN and NaN differ by 0.

    Raises:
        AssertionError: Trials, hyperparameters, states or numbers of epochs differ.
    """
    ours, theirs = results.load(run.path), results.load(twin.path)
    names = ["number", "state", *ours.experiment.space.searched, "epochs_trained", "rung"]
    pd.testing.assert_frame_equal(ours.trials[names], theirs.trials[names])
    mine = ours.epochs.drop(columns="seconds").set_index(["trial", "epoch"])
    other = theirs.epochs.drop(columns="seconds").set_index(["trial", "epoch"])
    assert mine.index.equals(other.index), "epochs"
    return float((mine - other).abs().fillna(0.0).to_numpy().max())
