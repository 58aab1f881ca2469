"""Compute what the report's text, tables and figures share from a run's dataframes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.metrics import State
from tune_softmax.stats.intervals import recall_differences

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Spending",
    "baseline",
    "comparable",
    "completed",
    "confusion_differences",
    "gaps",
    "history",
    "regret",
    "rungs",
    "spending",
]


def completed(trials: pd.DataFrame, column: str = "last_validation_loss") -> pd.DataFrame:
    """Return the trials that ran all their epochs and have a finite value in a column."""
    finite = np.isfinite(trials[column].to_numpy(dtype=float))
    found: pd.DataFrame = trials[(trials["state"] == State.COMPLETE) & finite]
    return found


def gaps(trials: pd.DataFrame) -> pd.Series[float]:
    """Return each trial's generalization gap after its last epoch, in nats.

    The gap is validation loss minus training loss. The training loss is the mean over the
    epoch's mini-batches, each before its update, so the gap of a first epoch is often negative.
    """
    return trials["last_validation_loss"] - trials["last_train_loss"]


def baseline(trials: pd.DataFrame, winner: int) -> int | None:
    """Return the trial that the winner is compared with: the one with the lowest training loss.

    Only complete trials other than the winner count, after their last epoch. Weak regularization
    and long training lead to such a trial, whichever hyperparameters a search has for them.

    Returns:
        A trial's number, or None where the winner is the only complete trial.
    """
    others = completed(trials, "last_train_loss")
    others = completed(others[others["number"] != winner])
    if others.empty:
        return None
    return int(others.sort_values(["last_train_loss", "number"])["number"].iloc[0])


def comparable(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that the regularization path is about.

    They have no L1, no hidden layer and no augmentation.
    """
    others = ["l1", "hidden_units", "augmentation"]
    return trials[(trials[others] == 0).all(axis=1)]


def regret(trials: pd.DataFrame, path: pd.DataFrame) -> float | None:
    """Return how far the best loss of a search is above the best on the path, in nats.

    Returns:
        The least validation loss of the complete trials that the path is about, minus the least
        on the path; below zero where stopping early did better than any penalty. None where
        there is no such trial.
    """
    found = completed(comparable(trials))["last_validation_loss"]
    return None if found.empty else float(found.min() - path["validation_loss"].min())


def rungs(trials: pd.DataFrame) -> pd.DataFrame:
    """Return what ASHA did at each rung.

    Returns:
        One row a rung, ascending: `rung` in epochs; `entered`, the trials that reached it;
        `stopped` there; `ended` there of themselves, complete or failed; `went_on`;
        `epochs_saved`, what the stopped ones had left; `seconds_saved`, the same at each
        trial's own mean seconds an epoch, an estimate.
    """
    reached = trials["rung"].dropna()
    rows = []
    for rung in sorted(int(value) for value in reached.unique()):
        entered = trials.loc[reached.index[reached >= rung]]
        here = entered[entered["epochs_trained"] == rung]
        stopped = here[here["state"] == State.PRUNED]
        ended = here[here["state"].isin([State.COMPLETE, State.FAIL])]
        left = stopped["num_epochs"] - stopped["epochs_trained"]
        rows.append(
            {
                "rung": rung,
                "entered": len(entered),
                "stopped": len(stopped),
                "ended": len(ended),
                "went_on": len(entered) - len(stopped) - len(ended),
                "epochs_saved": int(left.sum()),
                "seconds_saved": float(
                    (left * stopped["seconds"] / stopped["epochs_trained"]).sum()
                ),
            }
        )
    columns = ["rung", "entered", "stopped", "ended", "went_on", "epochs_saved", "seconds_saved"]
    types = dict.fromkeys(columns, "int64") | {"seconds_saved": "float64"}
    return pd.DataFrame(rows, columns=columns).astype(types)


@dataclass(frozen=True, slots=True)
class Spending:
    """What a search cost, and what ASHA saved.

    Attributes:
        epochs_trained: Epochs, over all trials.
        epochs_saved: Epochs that stopped trials had left.
        seconds_trained: The trials' shares of their packs' wall clock, summed.
        seconds_saved: What the epochs saved would have taken at each trial's own pace.
    """

    epochs_trained: int
    epochs_saved: int
    seconds_trained: float
    seconds_saved: float


def spending(trials: pd.DataFrame) -> Spending:
    """Return what the trials cost, and what stopping the poor ones saved."""
    table = rungs(trials)
    return Spending(
        epochs_trained=int(trials["epochs_trained"].sum()),
        epochs_saved=int(table["epochs_saved"].sum()),
        seconds_trained=float(trials["seconds"].sum()),
        seconds_saved=float(table["seconds_saved"].sum()),
    )


def history(trials: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Return the best value so far, trial by trial.

    Args:
        trials: Every trial of the run.
        mode: "min" or "max": which values are better.

    Returns:
        One row a trial that has trained, by number: `trial`; `value`, NaN unless complete;
        `best` so far, NaN before the first; `seconds`, of training up to and with this trial,
        the trials' shares summed in the order of their numbers.
    """
    trained = trials[trials["epochs_trained"] > 0].sort_values("number")
    value = trained["value"].where(trained.index.isin(completed(trained).index))
    best = value.cummin() if mode == "min" else value.cummax()
    return pd.DataFrame(
        {
            "trial": trained["number"],
            "value": value,
            "best": best.ffill(),
            "seconds": trained["seconds"].cumsum(),
        }
    ).reset_index(drop=True)


def confusion_differences(confusion: NDArray[np.int64], other: NDArray[np.int64]) -> pd.DataFrame:
    """Return for every cell how two models' confusion matrices differ, and how surely.

    The intervals are those of `intervals.recall_differences`, whose diagonal each cell is moved
    to in turn, at 95 % for all cells together.

    Args:
        confusion: Counts, (C, C): rows are true classes, columns predicted ones.
        other: The same of another model, on the same images.

    Returns:
        One row a cell: `true`, `predicted`, and of the class's share that is predicted so, the
        second model's minus the first's: `difference`, `low`, `high`, `is_different`.
    """
    num_classes = len(confusion)
    classes = np.arange(num_classes)
    tables = []
    for shift in range(num_classes):
        first, second = (np.roll(counts, -shift, axis=1) for counts in (confusion, other))
        table = recall_differences(first, second, confidence=1 - 0.05 / num_classes)
        tables.append(table.assign(true=classes, predicted=(classes + shift) % num_classes))
    columns = ["true", "predicted", "difference", "low", "high", "is_different"]
    cells = pd.concat(tables, ignore_index=True)[columns]
    return cells.sort_values(["true", "predicted"], ignore_index=True)
