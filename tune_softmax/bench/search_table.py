"""A comparison of searches as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

from tune_softmax.bench.forms import aligned, spread
from tune_softmax.bench.outcomes import TIME_POINTS_S, Outcome, Row
from tune_softmax.bench.task import NUM_EPOCHS, NUM_WORKERS, REDUCTION_FACTOR
from tune_softmax.bench.trace import best_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tune_softmax.bench.conditions import Conditions

__all__ = ["format_table", "to_json"]

_POINTS = tuple(f"after {seconds} s" for seconds in TIME_POINTS_S)


def format_table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return what was asked, under what conditions, and the rows as aligned text."""
    ours = _reference(rows)
    heading = (
        *("", "trials", "epochs each", "wall s", "min to max", "s per trial", "trials per hour"),
        *("ratio", "best loss", *_POINTS),
    )
    table = [heading, *(_cells(row, ours, len(heading)) for row in rows)]
    lines = [_asked(rows), str(conditions), "", aligned(table), *_notes(rows), *_anew(rows)]
    return "\n".join(lines)


def _anew(rows: Sequence[Row]) -> list[str]:
    """Return the lines on winners that were trained anew, if any were."""
    if not rows[0].anew:
        return []
    num_seeds = len(next(iter(rows[0].anew.values())))
    table = [("", "in the end", *_POINTS)]
    for row in rows:
        known = [row.anew_after(seconds) for seconds in (inf, *TIME_POINTS_S)]
        if any(known):
            table.append((row.way.name, *map(_mean, known)))
    searches = len(rows[0].outcomes)
    asked = f"trained anew for {NUM_EPOCHS} epochs with {num_seeds} seeds"
    over = f", means of {searches} searches ± standard errors" if searches > 1 else ""
    return [
        "",
        f"what each way calls its best configuration, {asked}; validation loss in the end{over}",
        aligned(table),
    ]


def _mean(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    mean, error = value
    return _cell(mean, 4) + ("" if error is None else f" ± {error:.4f}")


def _reference(rows: Sequence[Row]) -> float | None:
    """Return our own seconds per trial, if there are any."""
    return _finite(median(rows[0].seconds_per_trial)) if not rows[0].error else None


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _ratio(row: Row, ours: float | None) -> float | None:
    """Return how many times our trials per hour are the row's."""
    return _finite(median(row.seconds_per_trial) / ours) if ours and not row.error else None


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _asked(rows: Sequence[Row]) -> str:
    return (
        f"{rows[0].num_trials:,} trials on Fashion-MNIST, up to {NUM_EPOCHS} epochs each, "
        f"{NUM_WORKERS} at once, successive halving by {REDUCTION_FACTOR}; from typing to result; "
        f"medians of {len(rows[0].outcomes)}"
    )


def _cells(row: Row, ours: float | None, num_cells: int) -> tuple[str, ...]:
    if row.error is not None:
        return (row.way.name, "failed", *("-" for _ in range(num_cells - 2)))
    seconds = _finite(median(row.seconds_per_trial))
    done = f"{row.num_trials:,}" if row.is_whole else f"{median(row.trials_done):,.0f} *"
    losses = [row.best, *(row.best_after(seconds) for seconds in TIME_POINTS_S)]
    return (
        row.way.name,
        done,
        _cell(_finite(row.epochs_per_trial), 1),
        *spread([one.wall_s for one in row.outcomes], 1),
        _cell(seconds, 3),
        _cell(3600 / seconds if seconds else None, 0),
        _cell(_ratio(row, ours), 1),
        *(_cell(loss, 4) for loss in losses),
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    if any(not row.is_whole and not row.error for row in rows):
        notes.append("* ended by the time limit; seconds per trial are of the trials done by then")
    notes += [f"{row.way.name} failed: {row.error}" for row in rows if row.error]
    return ["", *notes] if notes else []


def to_json(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return a JSON object: what was asked, the conditions, and the rows, every repeat apart."""
    ours = _reference(rows)
    content = {
        "asked": _asked(rows),
        "num_trials": rows[0].num_trials,
        "conditions": asdict(conditions),
        "rows": [
            {
                "name": row.way.name,
                "error": row.error,
                "is_whole": row.is_whole,
                "wall_s": [one.wall_s for one in row.outcomes],
                "trials_done": row.trials_done,
                "seconds_per_trial": [_finite(value) for value in row.seconds_per_trial],
                "ratio": _ratio(row, ours),
                "best_loss": [best_after(one.reports, inf) for one in row.outcomes],
                "best_loss_after_s": {str(s): row.best_after(s) for s in TIME_POINTS_S},
                "winners_anew": [_winners(row, one) for one in row.outcomes],
                "reports": [[asdict(one) for one in run.reports] for run in row.outcomes],
            }
            for row in rows
        ],
    }
    return json.dumps(content)


def _winners(row: Row, outcome: Outcome) -> dict[str, Any]:
    """Return each time point's winner and its losses trained anew, those that are known."""
    winners = {
        "end" if seconds == inf else str(seconds): outcome.winner_after(seconds, row.way.answer)
        for seconds in (inf, *TIME_POINTS_S)
        if seconds == inf or outcome.is_known_after(seconds)
    }
    return {
        point: {"config": asdict(winner), "losses": row.anew.get(winner, ())}
        for point, winner in winners.items()
        if winner
    }
