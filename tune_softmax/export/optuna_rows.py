"""A run's trials as rows of the tables that Optuna keeps a study in.

Optuna's own API looks up each value before it adds it, and writes a trial of 30 epochs in 100 ms.
The rows of 256 such trials are written in 250 ms.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, distribution_to_json

from tune_softmax.metrics import State
from tune_softmax.scheduler.study import recorded_value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.run.records import TrialRecord

__all__ = ["STUDY_ID", "TABLES", "RunContents", "rows_of_trial"]

STUDY_ID = 1  # one study a file
TABLES = (
    "trials",
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
)


@dataclass(frozen=True, slots=True)
class RunContents:
    """What a study is made from, of one moment.

    Attributes:
        experiment: What was asked.
        has_begun: Whether anything is recorded of it.
        started: When it began, UTC; trials have no times of their own.
        trials: By number.
        epochs: By trial number, in order.
    """

    experiment: Experiment
    has_begun: bool
    started: datetime
    trials: list[TrialRecord]
    epochs: dict[int, list[tuple[int, EpochMetrics]]]

    @property
    def owner(self) -> str:
        """What tells the run from others, wherever its folder is."""
        return self.started.isoformat()


def rows_of_trial(
    run: RunContents,
    trial: TrialRecord,
    fresh: list[tuple[int, EpochMetrics]],
    distributions: Mapping[str, BaseDistribution],
) -> dict[str, list[dict[str, Any]]]:
    """Return a trial's rows by table, of its epochs only the fresh ones."""
    identity = {"trial_id": trial.number + 1}
    curve = run.epochs[trial.number]
    metric = run.experiment.search.metric
    seconds = sum(metrics.seconds for _, metrics in curve)
    ended = run.started + timedelta(seconds=seconds) if trial.state.is_final else None
    params, attributes = _params(trial, distributions)
    attributes |= _attributes(trial, curve)
    rows: dict[str, list[dict[str, Any]]] = {
        "trials": [
            {
                **identity,
                "number": trial.number,
                "study_id": STUDY_ID,
                # Optuna has no state for a trial that is parked on a rung.
                "state": State.RUNNING if trial.state is State.PARKED else trial.state,
                "datetime_start": None if trial.state is State.WAITING else run.started,
                "datetime_complete": ended,
            }
        ],
        "trial_params": [{**identity, **param} for param in params],
        "trial_intermediate_values": [
            {**identity, "step": epoch, **_stored(getattr(metrics, metric), "intermediate_value")}
            for epoch, metrics in fresh
        ],
        "trial_user_attributes": [
            {**identity, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ],
    }
    values = [getattr(metrics, metric) for _, metrics in curve]
    value = recorded_value(trial.config, trial.state, values)
    if value is not None and not math.isnan(value):
        rows["trial_values"] = [{**identity, "objective": 0, **_stored(value, "value")}]
    return rows


def _params(
    trial: TrialRecord, distributions: Mapping[str, BaseDistribution]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a trial's hyperparameters as Optuna keeps them, and those that its space lacks."""
    params, others = [], {}
    for name, domain in distributions.items():
        value = getattr(trial.config, name)
        try:
            internal = domain.to_internal_repr(value)
        except ValueError:  # a choice that is not in the space, of a trial that was asked for
            others[name] = value
            continue
        described = distribution_to_json(domain)
        params.append(
            {"param_name": name, "param_value": internal, "distribution_json": described}
        )
    return params, others


def _attributes(trial: TrialRecord, curve: list[tuple[int, EpochMetrics]]) -> dict[str, object]:
    """Return what else is known of a trial; what is no number is left out, JSON has none."""
    last = asdict(curve[-1][1]) if curve else {}
    attributes = {
        **last,
        "seconds": sum(metrics.seconds for _, metrics in curve),
        "epochs_trained": len(curve),
        "pack": trial.pack,
        "attempts": trial.attempts,
        "rung": trial.rung,
        "error": trial.error,
    }
    return {
        key: value
        for key, value in attributes.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _stored(value: float, column: str) -> dict[str, object]:
    """Return a number as Optuna keeps it: its kind beside it, for SQL has no infinity."""
    if math.isfinite(value):
        return {column: value, f"{column}_type": "FINITE"}
    kind = "NAN" if math.isnan(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {column: None, f"{column}_type": kind}
