"""Save a ledger whose file was deleted, from the process that still has it open."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tune_softmax import files
from tune_softmax.errors import StorageError

__all__ = ["rescue"]


def rescue(source: sqlite3.Connection, run: Path) -> Path:
    """Write a run folder with all that a ledger holds, for `resume` to go on with.

    Args:
        source: An open connection to the ledger.
        run: The folder that it was in.

    Returns:
        The new folder, beside the old one or, where there is no such place any more, in the
        working folder.

    Raises:
        StorageError: It cannot be written, or the ledger not be read.
    """
    run = run.absolute()
    place = run.parent if run.parent.is_dir() else Path()
    try:
        folder = _new_folder(place, f"{run.name}-rescued")
        with closing(sqlite3.connect(folder / "run.db")) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            meta = dict(copy.execute("SELECT key, value FROM meta"))
        description = {"dataset_checksum": meta.get("dataset_checksum"), "rescued_from": str(run)}
        files.write_atomically(folder / "environment.json", json.dumps(description) + "\n")
        files.write_atomically(folder / "experiment.yaml", meta.get("experiment", ""))
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"{place}: cannot save the run there ({error})") from error
    return folder


def _new_folder(place: Path, name: str) -> Path:
    for count in range(1, 1000):
        folder = place / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{place / name} and 998 more are there already")
