"""What a run has found so far, as dataframes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.config import HYPERPARAMETERS
from tune_softmax.errors import DamagedRunError, ResultsError
from tune_softmax.metrics import CURVES, State, num_averaged
from tune_softmax.run.arms import ArmTrials
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.notebook import html

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.run.records import TrialRecord

__all__ = ["Best", "Results", "load"]

_NUM_SHOWN = 10  # trials, in a notebook


@dataclass(frozen=True, slots=True)
class Best:
    """A search's best trial.

    Attributes:
        number: The trial's number.
        metric: By which it is the best.
        value: The metric by `metrics.trial_value`.
        epoch: The trial's last.
        num_averaged: Over how many epochs, up to that one, the value is the mean.
        config: Its hyperparameters.
    """

    number: int
    metric: str
    value: float
    epoch: int
    num_averaged: int
    config: Config

    @property
    def span(self) -> str:
        """Which epochs the value is of, in words."""
        first = self.epoch - self.num_averaged + 1
        return f"epochs {first} to {self.epoch}" if first < self.epoch else f"epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class Results:
    """What a run has found so far.

    Attributes:
        folder: Where the run is.
        experiment: What was asked.
        trials: One row a trial, failed and stopped ones too: `number`, `state`, each
            hyperparameter under its own name, `value` (what it is ranked by: the experiment's
            metric after the last epoch, or its mean over the last epochs, see
            `metrics.num_averaged`), `last_` and `best_` validation loss and accuracy,
            `last_` training loss and accuracy, `epochs_trained`, `best_epoch` by the
            experiment's metric, `rung`, `pack`, `attempts`, `seconds` (its share of the packs'
            wall clock), `error`. Of a study of remedies, after `state` too: `remedy`, `strength`,
            `strength_label`, `seed`, `train_fraction`; see `run.arms.Arm`.
        epochs: One row a trial and epoch: `trial`, `epoch`, the four curves, `seconds`.
    """

    folder: RunFolder
    experiment: Experiment = field(repr=False)
    trials: pd.DataFrame = field(repr=False)
    epochs: pd.DataFrame = field(repr=False)

    def _repr_html_(self) -> str:
        counts = self.trials["state"].value_counts().sort_index()
        states = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        lines = [f"{self.folder.path}: {len(self.trials):,} trials: {states}."]
        ranked = self.ranked(self.trials[self.trials["state"] == State.COMPLETE]).head(_NUM_SHOWN)
        if ranked.empty:
            return html([*lines, "No trial has run all its epochs yet."])
        metric = self.experiment.search.metric
        lines.append(f"The best by {metric.replace('_', ' ')}:")
        means = ["value"] if self.has_means(ranked) else []
        values = [*means, *(f"last_{curve}" for curve in CURVES)]
        arm = [name for name in ("remedy", "strength_label", "seed") if name in ranked]
        columns = ["number", *arm, *self.experiment.space.searched, *values]
        shown = ranked[columns].rename(columns={"value": f"mean_{metric}"})
        shown = shown.rename(columns=lambda name: name.removeprefix("last_"))
        return html(lines, shown)

    def best(self) -> Best:
        """Return the best trial by its value.

        Trials that ran all their epochs come first; a stopped one counts only where there is no
        other, because its configuration asked for more epochs than its value had.

        Raises:
            ResultsError: No trial has a value yet.
        """
        metric = self.experiment.search.metric
        unfinished = [State.PARKED, State.RUNNING, State.WAITING]
        for states in ([State.COMPLETE], [State.PRUNED], unfinished):
            rows = self.ranked(self.trials[self.trials["state"].isin(states)])
            if len(rows):
                row = rows.iloc[0]
                number, epoch = int(row["number"]), int(row["epochs_trained"])
                config = self.config(number)
                return Best(
                    number=number,
                    metric=metric,
                    value=float(row["value"]),
                    epoch=epoch,
                    num_averaged=num_averaged(epoch, config.learning_rate_schedule),
                    config=config,
                )
        raise ResultsError(f"{self.folder.path}: no trial has a result yet")

    def config(self, number: int) -> Config:
        """Return a trial's hyperparameters.

        Raises:
            ResultsError: There is no such trial.
        """
        rows = self.trials[self.trials["number"] == number]
        if rows.empty:
            known = f"only 0 to {len(self.trials) - 1}" if len(self.trials) else "nor any other"
            raise ResultsError(f"{self.folder.path}: there is no trial {number}, {known}")
        values = {name: _plain(rows[name].iloc[0]) for name in HYPERPARAMETERS}
        return self.experiment.space.config(
            {name: values[name] for name in self.experiment.space.searched}
        )

    def ranked(self, trials: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return trials that have a value, the best first."""
        rows = self.trials if trials is None else trials
        ascending = self.experiment.search.mode == "min"
        valued = rows.dropna(subset=["value"])
        return valued.sort_values(["value", "number"], ascending=[ascending, True])

    def has_means(self, trials: pd.DataFrame) -> bool:
        """Say whether any of these trials is ranked by a mean instead of its last epoch."""
        return not trials["value"].equals(trials[f"last_{self.experiment.search.metric}"])

    def count(self, *states: State) -> int:
        """Return how many trials are in any of the given states."""
        return int(self.trials["state"].isin(states).sum())


def load(run: Path | str) -> Results:
    """Read a run, finished or not, from its folder.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Its files contradict themselves.
    """
    folder = RunFolder(Path(run))
    with closing(Ledger.open(folder.ledger)) as ledger:
        experiment = folder.read_experiment()
        with ledger.snapshot():
            trials, epochs = ledger.trials(), ledger.epochs()
    epoch_frame = _epoch_frame(epochs)
    try:
        trial_frame = _trial_frame(trials, epoch_frame, experiment)
    except OverflowError as error:
        raise DamagedRunError(
            f"{folder.ledger}: table trials holds a number that is too large ({error}); restore "
            "the folder from a copy"
        ) from error
    if experiment.remedies is not None:
        trial_frame = _with_arms(trial_frame, trials, epochs, experiment)
    return Results(folder, experiment, trial_frame, epoch_frame)


def _with_arms(
    frame: pd.DataFrame,
    trials: Sequence[TrialRecord],
    epochs: Sequence[tuple[int, int, EpochMetrics]],
    experiment: Experiment,
) -> pd.DataFrame:
    """Return a study's trials with what each of them is an example of."""
    curves: dict[int, list[float]] = {}
    for number, _, metrics in epochs:
        curves.setdefault(number, []).append(metrics.validation_loss)
    planned = ArmTrials(experiment)
    planned.replay(trials, curves)
    unknown = [number for number in frame["number"] if number >= len(planned.trials)]
    if unknown:
        raise DamagedRunError(
            f"trial {unknown[0]} is none of the {len(planned.trials):,} that the study's "
            "experiment and results lead to; restore the folder from a copy"
        )
    rows = [
        (arm.remedy, arm.strength, arm.label, seed, arm.train_fraction)
        for arm, seed in (planned.trials[number] for number in frame["number"])
    ]
    types = {
        "remedy": "str",
        "strength": "float64",
        "strength_label": "str",
        "seed": "int64",
        "train_fraction": "float64",
    }
    arms = pd.DataFrame(rows, columns=list(types), index=frame.index).astype(types)
    return pd.concat(
        [frame[["number", "state"]], arms, frame.drop(columns=["number", "state"])], axis=1
    )


def _epoch_frame(epochs: Sequence[tuple[int, int, EpochMetrics]]) -> pd.DataFrame:
    measured = attrgetter(*CURVES, "seconds")
    rows = [(number, epoch, *measured(metrics)) for number, epoch, metrics in epochs]
    frame = pd.DataFrame(rows, columns=["trial", "epoch", *CURVES, "seconds"])
    types = dict.fromkeys(["trial", "epoch"], "int64")
    return frame.astype(types | dict.fromkeys([*CURVES, "seconds"], "float64"))


def _trial_frame(
    trials: Sequence[TrialRecord], epochs: pd.DataFrame, experiment: Experiment
) -> pd.DataFrame:
    of_trial = ("number", "state", "rung", "pack", "attempts", "error")
    recorded, config = attrgetter(*of_trial), attrgetter(*HYPERPARAMETERS)
    rows = [(*recorded(trial), *config(trial.config)) for trial in trials]
    frame = pd.DataFrame(rows, columns=[*of_trial, *HYPERPARAMETERS])
    by_trial = epochs.groupby("trial")
    measured = by_trial[list(CURVES)].last(skipna=False).add_prefix("last_")
    # Of an epoch whose loss is not finite, the accuracy means nothing: it is finite all the same.
    finite = epochs[np.isfinite(epochs[["train_loss", "validation_loss"]]).all(axis=1)]
    finite_by_trial = finite.groupby("trial")
    measured["best_validation_loss"] = finite_by_trial["validation_loss"].min()
    measured["best_validation_accuracy"] = finite_by_trial["validation_accuracy"].max()
    measured["epochs_trained"] = by_trial.size()
    values = finite_by_trial[experiment.search.metric]
    rows_of_best = values.idxmin() if experiment.search.mode == "min" else values.idxmax()
    measured["best_epoch"] = epochs["epoch"].loc[rows_of_best].set_axis(rows_of_best.index)
    measured["seconds"] = by_trial["seconds"].sum()
    frame = frame.join(measured, on="number")
    order = [
        *("number", "state", *HYPERPARAMETERS, "value"),
        *(f"{which}_{curve}" for curve in CURVES[2:] for which in ("last", "best")),
        *(f"last_{curve}" for curve in CURVES[:2]),
        *("epochs_trained", "best_epoch", "rung", "pack", "attempts", "seconds", "error"),
    ]
    frame["epochs_trained"] = frame["epochs_trained"].fillna(0)
    frame["seconds"] = frame["seconds"].fillna(0.0)
    frame["value"] = _values(frame, epochs, experiment.search.metric)
    types = dict.fromkeys(order, "float64")
    types |= dict.fromkeys(["state", "learning_rate_schedule", "error"], "str")
    types |= dict.fromkeys(["best_epoch", "rung"], "Int64")
    integers = ["number", "batch_size", "num_epochs", "hidden_units"]
    types |= dict.fromkeys([*integers, "epochs_trained", "pack", "attempts"], "int64")
    return frame[order].astype(types)


def _values(trials: pd.DataFrame, epochs: pd.DataFrame, metric: str) -> pd.Series[float]:
    """Return every trial's value; NaN for one that has trained no epoch, or diverged."""
    trained, schedules = trials["epochs_trained"], trials["learning_rate_schedule"]
    widths = [num_averaged(int(n), s) if n else 0 for n, s in zip(trained, schedules, strict=True)]
    before = (trained - widths).set_axis(trials["number"])
    kept = epochs[epochs["epoch"] > epochs["trial"].map(before)]
    means = kept.groupby("trial")[metric].mean()
    losses = trials["last_train_loss"] + trials["last_validation_loss"]
    is_finite = pd.Series(np.isfinite(losses), index=trials.index)
    return trials["number"].map(means).where(is_finite)


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") else value
