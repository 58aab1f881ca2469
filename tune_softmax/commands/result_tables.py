"""What the command line prints of results: tables for people, and files for programs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table
from rich.text import Text

from tune_softmax.errors import ResultsError
from tune_softmax.metrics import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune_softmax.run.results import Results

__all__ = ["confusion_table", "export", "path_table", "summary", "trial_table"]


def trial_table(results: Results, rows: pd.DataFrame, title: str) -> Table:
    """Return trials as a table: what was searched and what came of it.

    Args:
        results: Where the trials are from.
        rows: Which trials, in which order.
        title: Above the table.
    """
    # As text, for brackets in a folder's name are no markup.
    table = Table(title=Text(title), title_justify="left", header_style="bold", box=None)
    searched = list(results.experiment.space.searched)
    columns = ["number", "last_validation_loss", "last_validation_accuracy", "epochs_trained"]
    names = ["trial", "validation_loss", "validation_accuracy", "epochs"]
    if results.has_means(rows):
        columns.insert(1, "value")
        names.insert(1, f"mean_{results.experiment.search.metric}")
    if len(set(rows["state"])) > 1:
        columns.append("state")
        names.append("state")
    columns += [name for name in searched if name != "num_epochs"]
    names += [name for name in searched if name != "num_epochs"]
    for name in names:
        is_word = name in {"state", "learning_rate_schedule"}
        table.add_column(name.replace("_", "\n"), justify="left" if is_word else "right")
    for values in rows[columns].itertuples(index=False):
        table.add_row(*map(_cell, columns, values))
    return table


def summary(results: Results) -> list[str]:
    """Return how a search went and what to do next, line by line."""
    states = {state: results.count(state) for state in State}
    complete, pruned, failed = (states[s] for s in (State.COMPLETE, State.PRUNED, State.FAIL))
    done = sum(count for state, count in states.items() if state.is_final)
    wanted = results.experiment.num_trials
    line = f"{done} of {wanted} trials done: {complete} ran all their epochs, {pruned} were "
    line += f"stopped early, {failed} failed; {len(results.epochs):,} trial-epochs in all."
    lines = [line]
    left = wanted - done
    if left:
        lines.append(
            f"The time budget ended with {left} trials left: "
            f"tune-softmax resume {results.folder.path}"
        )
    if failed:
        errors = results.trials.loc[results.trials["state"] == State.FAIL, "error"]
        reasons = errors.str.strip().str.split("\n").str[-1].value_counts()
        lines += [f"Failed most often because: {reason}" for reason in reasons.index[:1]]
    if complete + pruned:
        best = results.best()
        when = "on average of" if best.num_averaged > 1 else "after"
        lines.append(
            f"Best: trial {best.number}, {best.metric} {best.value:.4f} {when} {best.span}."
        )
    lines += [
        "",
        f"run folder   {results.folder.path}",
        f"every trial  tune-softmax results {results.folder.path} --format csv",
        f"test result  tune-softmax train {results.folder.path}",
    ]
    return lines


def export(results: Results, form: str) -> str | bytes:
    """Return every trial in one of the forms that programs read.

    Args:
        results: The run's results.
        form: "csv", "json" (a list of rows; null for what is missing or not finite, which JSON
            cannot say) or "parquet" (bytes).
    """
    trials = results.trials
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
    """Return a confusion matrix: a row for each true class, a column for each predicted one."""
    table = Table(title="true class, then how often it was taken for", title_justify="left")
    table.add_column("", justify="left")
    for name in names:
        table.add_column(name[:8], justify="right")
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        cells = (Text(str(n) if n else "·", "bold" if i == j else "") for j, n in enumerate(row))
        table.add_row(Text(name), *cells)
    return table


def path_table(path: pd.DataFrame) -> Table:
    """Return a regularization path, the greatest penalty first, its best point bold.

    Args:
        path: One row a penalty; columns as in `oracle_cache.PathPoint`.
    """
    table = Table(header_style="bold", box=None)
    names = ["weight_decay", "train_loss", "validation_loss", "validation_accuracy"]
    for name in (*names, "certain_to", "seconds"):
        table.add_column(name.replace("_", "\n"), justify="right")
    best = path["validation_loss"].idxmin()
    for index, row in path.sort_values("weight_decay", ascending=False).iterrows():
        table.add_row(
            f"{row['weight_decay']:.3g}",
            f"{row['train_loss']:.4f}",
            f"{row['validation_loss']:.4f}",
            f"{row['validation_accuracy']:.4f}",
            f"{row['validation_loss_bound']:.1g}",
            f"{row['seconds']:.1f}",
            style="bold" if index == best else None,
        )
    return table


def _json_value(value: object) -> object:
    is_missing = value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if is_missing else value


def _cell(column: str, value: object) -> str:
    if column == "state":
        return str(value).lower()
    if column == "value" or column.endswith(("_loss", "_accuracy")):
        return f"{value:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
