"""The numbers of the report, each against a count of its own."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.metrics import State
from tune_softmax.report.measures import (
    baseline,
    comparable,
    completed,
    confusion_differences,
    gaps,
    history,
    regret,
    rungs,
    spending,
)
from tune_softmax.stats.intervals import recall_differences

ROW = st.tuples(
    st.sampled_from([State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING, State.WAITING]),
    st.integers(1, 9),  # epochs asked for
    st.integers(1, 9),  # epochs trained, if not complete
    st.one_of(st.floats(0.1, 9), st.just(math.nan), st.just(math.inf)),
    st.floats(0.1, 9),
)
LEVELS = [1, 3, 9]


def trials_of(rows):
    """Return a frame of trials, as far as the measures look at it."""
    made = []
    for number, (state, asked, trained, validation, train) in enumerate(rows):
        epochs = asked if state is State.COMPLETE else min(trained, asked)
        epochs = 0 if state is State.WAITING else epochs
        reached = [level for level in LEVELS if level <= epochs]
        if state is State.PRUNED and reached:
            epochs = reached[-1]  # ASHA stops on a rung
        made.append(
            {
                "number": number,
                "state": str(state),
                "num_epochs": asked,
                "epochs_trained": epochs,
                "rung": reached[-1] if reached else pd.NA,
                "last_validation_loss": validation if epochs else math.nan,
                "value": validation if epochs else math.nan,
                "last_train_loss": train if epochs else math.nan,
                "seconds": 0.5 * epochs,
                "l1": 0.0,
                "hidden_units": 0,
                "augmentation": 0.0,
            }
        )
    columns = ["number", "state", "num_epochs", "epochs_trained", "rung", "last_validation_loss"]
    columns += ["value", "last_train_loss", "seconds", "l1", "hidden_units", "augmentation"]
    losses = ["last_validation_loss", "value", "last_train_loss"]
    floats = dict.fromkeys([*losses, "seconds"], "float64")
    return pd.DataFrame(made, columns=columns).astype({"rung": "Int64", **floats})


TRIALS = st.lists(ROW, max_size=12).map(trials_of)


@settings(max_examples=40)
@given(TRIALS)
def test_rungs_count_what_became_of_each_trial(trials):
    """Whoever reaches a rung enters it, and is stopped there, ends there, or goes on."""
    for row in rungs(trials).to_dict("records"):
        entered = stopped = ended = epochs = 0
        for trial in trials.to_dict("records"):
            if trial["epochs_trained"] < row["rung"]:
                continue
            entered += 1
            if trial["epochs_trained"] == row["rung"]:
                stopped += trial["state"] == "PRUNED"
                ended += trial["state"] in {"COMPLETE", "FAIL"}
                if trial["state"] == "PRUNED":
                    epochs += trial["num_epochs"] - trial["epochs_trained"]
        expected = (entered, stopped, ended, epochs)
        assert (row["entered"], row["stopped"], row["ended"], row["epochs_saved"]) == expected
        assert row["went_on"] == entered - stopped - ended
        assert row["seconds_saved"] == pytest.approx(0.5 * epochs)


@settings(max_examples=40)
@given(TRIALS)
def test_nothing_stopped_is_lost_from_the_sum(trials):
    """Epochs trained and saved are those asked for, of the trials that are done or stopped."""
    done = trials[trials["state"].isin(["COMPLETE", "PRUNED"])]
    spent = spending(done)
    assert spent.epochs_trained + spent.epochs_saved == done["num_epochs"].sum()
    assert spent.seconds_trained == pytest.approx(0.5 * spent.epochs_trained)
    assert spent.seconds_saved == pytest.approx(0.5 * spent.epochs_saved)


@settings(max_examples=40)
@given(TRIALS, st.sampled_from(["min", "max"]))
def test_history_is_the_best_so_far(trials, mode):
    """Trial by trial, of the complete ones alone, whose value is finite."""
    better = min if mode == "min" else max
    best, seconds, expected = math.nan, 0.0, []
    for trial in trials.to_dict("records"):
        if not trial["epochs_trained"]:
            continue
        seconds += trial["seconds"]
        value = trial["value"]
        if trial["state"] == "COMPLETE" and math.isfinite(value):
            best = value if math.isnan(best) else better(best, value)
        expected.append((trial["number"], best, seconds))
    found = history(trials, mode)
    assert found["trial"].tolist() == [number for number, _, _ in expected]
    np.testing.assert_array_equal(found["best"], [value for _, value, _ in expected])
    np.testing.assert_allclose(found["seconds"], [total for _, _, total in expected])


@settings(max_examples=40)
@given(TRIALS)
def test_the_baseline_fits_the_training_images_closest(trials):
    """No other complete trial but the winner has a lower training loss."""
    whole = completed(trials)
    if whole.empty:
        assert baseline(trials, 0) is None
        return
    winner = int(whole["number"].iloc[0])
    others = whole[whole["number"] != winner].set_index("number")["last_train_loss"]
    found = baseline(trials, winner)
    assert (found is None) == others.empty
    if found is not None:
        assert others[found] == others.min()


def test_a_gap_is_validation_minus_training():
    """In nats, after the last epoch."""
    trials = trials_of([(State.COMPLETE, 3, 3, 0.75, 0.5), (State.WAITING, 3, 1, 1.0, 1.0)])
    assert gaps(trials).tolist() == pytest.approx([0.25, math.nan], nan_ok=True)


def test_only_l2_alone_is_comparable_to_the_path():
    """L1, a hidden layer and moved images leave the path."""
    trials = trials_of([(State.COMPLETE, 1, 1, 1.0, 1.0)] * 4)
    trials.loc[1, "l1"] = 0.1
    trials.loc[2, "hidden_units"] = 8
    trials.loc[3, "augmentation"] = 0.5
    assert comparable(trials)["number"].tolist() == [0]


def test_regret_is_of_complete_and_comparable_trials():
    """The best of them minus the best on the path; none without any."""
    path = pd.DataFrame({"weight_decay": [1e-3, 1e-2], "validation_loss": [0.5, 0.25]})
    rows = [(State.COMPLETE, 1, 1, loss, 1.0) for loss in (1.0, 0.75, 0.5)]
    trials = trials_of([*rows, (State.PRUNED, 8, 4, 0.1, 1.0), (State.FAIL, 1, 1, 0.1, 1.0)])
    trials.loc[2, "l1"] = 0.1
    assert regret(trials, path) == 0.5
    assert regret(trials.assign(l1=0.1), path) is None


def test_every_cell_is_a_recall_of_classes_told_otherwise():
    """The diagonal has the intervals of the recalls, at the level of all cells together."""
    rng = np.random.default_rng(0)
    one, other = (rng.multinomial(500, np.full(4, 0.25), size=4) for _ in range(2))
    cells = confusion_differences(one, other)
    diagonal = cells[cells["true"] == cells["predicted"]].reset_index(drop=True)
    recalls = recall_differences(one, other, confidence=1 - 0.05 / 4)
    columns = ["difference", "low", "high", "is_different"]
    pd.testing.assert_frame_equal(diagonal[columns], recalls[columns])
    expected = (other / 500 - one / 500).ravel()
    np.testing.assert_allclose(cells["difference"], expected, atol=1e-12)


def test_cells_of_equal_models_are_never_different():
    """Under 5 % of pairs of equal models may have an alarm in any of their 36 cells."""
    rng = np.random.default_rng(1)
    shares = np.full((6, 6), 0.02) + 0.88 * np.eye(6)
    alarms = 0
    for _ in range(60):
        one, other = (np.stack([rng.multinomial(1000, row) for row in shares]) for _ in range(2))
        alarms += confusion_differences(one, other)["is_different"].any()
    assert alarms <= 7  # 3 expected at most; 8 and more have a chance under 2 %
