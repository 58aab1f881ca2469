"""The rows of the ledger's tables as values, and values as rows.

`tables` owns the columns and the checksums; here is what the columns mean.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from tune_softmax.config import Config
from tune_softmax.metrics import CURVES, EpochMetrics, FinalTest, State

if TYPE_CHECKING:
    from tune_softmax.metrics import Report

__all__ = [
    "TrialRecord",
    "epoch_row",
    "new_trial_row",
    "read_epoch",
    "read_event",
    "read_meta",
    "read_test",
    "read_trial",
    "test_row",
]
_T = TypeVar("_T")

_KINDS = get_type_hints(Config)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One row of the ledger's trials.

    Attributes:
        number: From 0, in the order of asking.
        state: Where it stands.
        config: Its hyperparameters.
        pack: The pack it trains in, or trained in last.
        attempts: How often it was handed out.
        rung: The highest of ASHA's rungs that it has reached, in epochs.
        error: Why it failed.
    """

    number: int
    state: State
    config: Config
    pack: int
    attempts: int
    rung: int | None
    error: str | None


def new_trial_row(number: int, config: Config) -> dict[str, Any]:
    """Return the row of a trial that was never handed out, without its state and its pack."""
    values = {"number": number, "config": json.dumps(asdict(config)), "attempts": 0}
    return {**values, "rung": None, "error": None}


def epoch_row(report: Report) -> dict[str, object]:
    """Return the row of one epoch of a trial."""
    metrics = report.metrics
    values = {name: float(getattr(metrics, name)) for name in (*CURVES, "seconds")}
    return {"number": report.number, "epoch": report.epoch, **values}


def test_row(number: int, test: FinalTest) -> dict[str, object]:
    """Return the row of a trial's test-set result."""
    values = {"loss": float(test.loss), "accuracy": float(test.accuracy)}
    return {"number": number, **values, "confusion": json.dumps(test.confusion)}


def read_meta(row: dict[str, Any]) -> tuple[str, str]:
    """Return a key and its value.

    Raises:
        ValueError: The row has a value of another type; so do the other readers.
    """
    return _text(row["key"]), _text(row["value"])


def read_trial(row: dict[str, Any]) -> TrialRecord:
    """Return a trial."""
    rung, error = row["rung"], row["error"]
    return TrialRecord(
        number=_integer(row["number"]),
        state=State(row["state"]),
        config=_config(row["config"]),
        pack=_integer(row["pack"]),
        attempts=_integer(row["attempts"]),
        rung=None if rung is None else _integer(rung),
        error=None if error is None else _text(error),
    )


def read_epoch(row: dict[str, Any]) -> tuple[int, int, EpochMetrics]:
    """Return a trial's number, an epoch, and what was measured then."""
    number, epoch, *values = row.values()
    # There are many rows, and nearly all are without a NULL.
    read = _number if None in values else float
    return int(number), int(epoch), EpochMetrics(*map(read, values))


def read_test(row: dict[str, Any]) -> tuple[int, FinalTest]:
    """Return a trial's number and its test-set result."""
    confusion = tuple(
        tuple(_integer(count) for count in counts) for counts in _json(row["confusion"], list)
    )
    loss, accuracy = _number(row["loss"]), _number(row["accuracy"])
    return _integer(row["number"]), FinalTest(loss, accuracy, confusion)


def read_event(row: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return an event's UTC time, kind and detail."""
    return _text(row["at"]), _text(row["kind"]), _json(row["detail"], dict)


def _config(text: object) -> Config:
    """Return hyperparameters, each of its type; their ranges are the experiment's affair."""
    config = Config(**_json(text, dict))
    for name, kind in _KINDS.items():
        value = getattr(config, name)
        if kind is float:
            is_right = isinstance(value, int | float) and not isinstance(value, bool)
        elif kind is int:
            is_right = type(value) is int
        else:
            is_right = value in get_args(kind)
        if not is_right:
            raise ValueError(f"{name} is {_shown(value)}")
    return config


def _json(text: object, kind: type[_T]) -> _T:
    try:
        value = json.loads(_text(text))
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(value, kind):
        raise ValueError(f"{_shown(text)} is no {kind.__name__}")  # noqa: TRY004 - a file's fault
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no text")  # noqa: TRY004 - a file's fault
    return value


def _integer(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{_shown(value)} is no integer")
    return value


def _number(value: float | None) -> float:
    """Return a float; SQL has no NaN, so it is NULL there."""
    return math.nan if value is None else float(value)


def _shown(value: object) -> str:
    """Return a value for a message, as plain ASCII and not too long."""
    return f"{value!a:.80}"
