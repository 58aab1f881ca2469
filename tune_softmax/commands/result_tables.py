"""Tables and files of a run's results."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pandas as pd

from tune_softmax.commands.tables import Column, Table
from tune_softmax.errors import ExperimentError, ResultsError, command
from tune_softmax.metrics import State
from tune_softmax.stats.wording import and_list, count, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune_softmax.run.results import Results

__all__ = [
    "confusion_table",
    "export",
    "most_confused",
    "next_steps",
    "path_table",
    "summary",
    "trial_table",
]


_STATES: dict[str, str] = {State.PRUNED: "stopped early", State.FAIL: "failed"}


def trial_table(results: Results, rows: pd.DataFrame, title: str) -> Table:
    """Return trials as a table: their results and the hyperparameters that were searched."""
    metric = results.experiment.search.metric.removeprefix("validation_")
    columns = {"trial": "number"}
    if "remedy" in rows:  # a study of remedies
        columns |= {"remedy": "remedy", "strength": "strength_label", "seed": "seed"}
    if results.has_means(rows):
        columns[f"mean {metric}"] = "value"
    columns |= {
        "loss": "last_validation_loss",
        "accuracy": "last_validation_accuracy",
        "epochs": "epochs_trained",
    }
    if len(set(rows["state"])) > 1:
        columns["state"] = "state"
    searched = results.experiment.space.searched
    columns |= {words(name): name for name in searched if name != "num_epochs"}
    made = [
        Column(
            heading,
            [_cell(name, value) for value in rows[name]],
            is_text=name in {"state", "learning_rate_schedule", "remedy", "strength_label"},
        )
        for heading, name in columns.items()
    ]
    return Table(f"{title}: loss and accuracy are of the validation images", made)


def summary(results: Results) -> list[str]:
    """Return how a search went and what to do next, one line each."""
    states = {state: results.count(state) for state in State}
    complete, pruned, failed = (states[s] for s in (State.COMPLETE, State.PRUNED, State.FAIL))
    done = sum(count for state, count in states.items() if state.is_final)
    wanted = results.experiment.num_trials
    line = f"{done:,} of {count(wanted, 'trial')} done: {complete:,} complete, {pruned:,} stopped "
    line += f"early, {failed:,} failed; {count(len(results.epochs), 'epoch')} in all."
    lines = [line]
    left = wanted - done
    run = results.folder.path
    if left:
        lines.append(
            f"The time budget ended with {count(left, 'trial')} left: {command('resume', run)}"
        )
    if failed:
        errors = results.trials.loc[results.trials["state"] == State.FAIL, "error"]
        reasons = errors.str.strip().str.split("\n").str[-1].value_counts()
        lines += [f"Failed most often because: {reason}" for reason in reasons.index[:1]]
    if complete + pruned:
        best = results.best()
        when = "on average of" if best.num_averaged > 1 else "after"
        lines.append(
            f"Best: trial {best.number}, {words(best.metric)} {best.value:.4f} {when} {best.span}."
        )
    lines += ["", f"run folder     {run}"]
    if complete + pruned:
        lines += next_steps(results)
    return lines


def next_steps(results: Results) -> list[str]:
    """Return the commands that follow a search, one a line."""
    run = results.folder.path
    steps = {
        "report": command("report", run),
        "test the best": command("confirm", run),
        "every trial": command("results", run, "--format", "csv"),
    }
    try:
        results.experiment.check_convex()
    except ExperimentError:
        pass
    else:
        steps["known optimum"] = command("oracle", run)
    return [f"{name:<15}{line}" for name, line in steps.items()]


def export(trials: pd.DataFrame, form: str) -> str | bytes:
    """Return trials in one of the formats that programs read.

    Args:
        trials: Rows and columns as in `Results.trials`.
        form: "csv", "json" (a list of rows; null for what is missing or not finite, which JSON
            cannot say) or "parquet" (bytes).
    """
    if form == "csv":
        return trials.to_csv(index=False)
    if form == "parquet":
        return trials.to_parquet(index=False)
    if form == "json":
        rows = [
            {name: _json_value(value) for name, value in row.items()}
            for row in trials.astype(object).to_dict("records")
        ]
        return json.dumps(rows, indent=2, allow_nan=False) + "\n"
    raise ResultsError(f"--format {form!r}: allowed are table, csv, json, parquet")


def confusion_table(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """Return a confusion matrix: a row for each true class, a column for each predicted one.

    Columns are numbered as the rows are, so that names of any length fit.
    """
    numbers = range(len(names))
    columns = [
        Column("", [str(number) for number in numbers]),
        Column("true class", list(names), is_text=True),
    ]
    columns += [
        Column(str(number), [str(row[number]) if row[number] else "·" for row in confusion])
        for number in numbers
    ]
    return Table("Confusion matrix: test images by true class and predicted class", columns)


def most_confused(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """Return the three most frequent mistakes in one sentence, if there is any."""
    wrong = sorted(
        (-number, true, predicted)
        for true, row in enumerate(confusion)
        for predicted, number in enumerate(row)
        if number and true != predicted
    )
    mistakes = [f"{names[true]} as {names[other]} ({-n:,})" for n, true, other in wrong[:3]]
    return [f"Most frequent mistakes: {and_list(mistakes)}."] if mistakes else []


def path_table(path: pd.DataFrame) -> Table:
    """Return a regularization path, the greatest penalty first, its best point bold.

    Args:
        path: One row a penalty; columns as in `oracle.cache.PathPoint`.
    """
    ordered = path.sort_values("weight_decay", ascending=False).reset_index(drop=True)
    forms = {
        "weight_decay": ".3g",
        "train_loss": ".4f",
        "validation_loss": ".4f",
        "validation_accuracy": ".4f",
        "validation_loss_bound": ".1g",
        "seconds": ".1f",
    }
    names = {"train_loss": "training loss", "validation_loss_bound": "certain to"}
    columns = [
        Column(names.get(name, words(name)), [f"{value:{form}}" for value in ordered[name]])
        for name, form in forms.items()
    ]
    best = int(ordered["validation_loss"].to_numpy().argmin())
    return Table("", columns, bold={best})


def _json_value(value: object) -> object:
    is_missing = value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if is_missing else value


def _cell(column: str, value: object) -> str:
    if column == "remedy":
        return words(value)
    if column == "state":
        return _STATES.get(str(value), str(value).lower())
    if column == "value" or column.endswith(("_loss", "_accuracy")):
        return f"{value:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
