"""Say what is at a path where a run folder was expected, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_softmax.errors import command

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["no_run_message"]

MAX_NAMED = 5
LEDGERS = ("run.db", "ledger.url")  # a run folder holds one of them
EXPERIMENT = "experiment.yaml"
MODEL = "weights.safetensors"  # as `train` saves it


def no_run_message(path: Path) -> str:
    """Return the message for a path that is no run folder.

    Args:
        path: The path that was named as a run.
    """
    if path.is_file():
        text = f"{path}: is a file, and a run is a folder, such as runs/NAME"
        if path.suffix in {".yaml", ".yml"}:
            text += f"; an experiment file is for: {command('search', path)}"
        return text
    if not path.is_dir():
        return f"{path}: there is no such folder; name the folder of a run, such as runs/NAME"
    if (path / EXPERIMENT).is_file() and not (path / MODEL).is_file():
        return f"{path / LEDGERS[0]}: no ledger there; restore the folder from a copy"
    if (path / MODEL).is_file():
        return f"{path}: holds one trained model and no run; its numbers are in evaluation.json"
    runs = sorted({found.parent for name in LEDGERS for found in path.glob(f"*/{name}")})
    if runs:
        named = ", ".join(map(str, runs[:MAX_NAMED]))
        more = f" and {len(runs) - MAX_NAMED:,} more" if len(runs) > MAX_NAMED else ""
        return f"{path}: is no run but holds some; name one of them: {named}{more}"
    return f"{path / LEDGERS[0]}: no ledger there; name the folder of a run, such as runs/NAME"
