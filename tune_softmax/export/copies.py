"""Whole copies of a run folder in a store, made also while a search writes the run.

A copy goes to a folder of its own below the store's address; the list of copies is replaced last.
So a reader finds a whole copy at any moment.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tune_softmax.errors import DamagedRunError, ResultsError, StorageError, command
from tune_softmax.export.copy_list import (
    CopiedFile,
    Copy,
    CopyList,
    begun,
    new_name,
    read_list,
    write_list,
)
from tune_softmax.export.stores import CHUNK_BYTES
from tune_softmax.run.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from tune_softmax.export.stores import Store
    from tune_softmax.run.folder import RunFolder

__all__ = ["fetch", "ledger_file", "prepare", "put"]

logger = logging.getLogger("tune_softmax")

NUM_KEPT = 2  # the newest, and the one that a slow reader may still be fetching

# Who writes the run here and now, and what `export` and `search --track` make of it again.
LEFT_OUT = re.compile(r"\.|(run\.lock|writer\.json)$|optuna\.db")

ABANDONED_AFTER = timedelta(days=1)


def ledger_file(folder: RunFolder) -> Path:
    """Return the file of a run's ledger.

    Raises:
        ResultsError: The ledger is in a database, which copies itself.
    """
    if not isinstance(folder.ledger, Path):
        raise ResultsError(
            f"{folder.path}: its ledger is in a PostgreSQL database; the server's own backups "
            "copy that, `tune-softmax copy` copies SQLite files alone"
        )
    return folder.ledger


def prepare(folder: RunFolder, store: Store) -> None:
    """Check that copies of a run can be kept in a store, which may then hold none yet.

    Raises:
        StorageError: The store cannot be reached, read or written.
        ResultsError: It holds copies of another run, or the run is of a kind not copied.
    """
    _check_apart(folder, store)
    ledger = ledger_file(folder)
    kept = read_list(store)
    if kept is None:
        write_list(store, CopyList())
    elif kept.copies:
        started = _started(ledger) if ledger.exists() else None
        _check_same_run(kept.copies[0], folder, started, store)


def put(folder: RunFolder, store: Store) -> Copy:
    """Copy a run to a store; whoever writes the run meanwhile goes on undisturbed.

    The newest two copies stay, older ones are deleted.

    Returns:
        The copy.

    Raises:
        StorageError: The store or a file of the run fails.
        DamagedRunError: The ledger is damaged; the copies made before stay as they are.
        ResultsError: There is no run, or the store holds copies of another one.
    """
    _check_apart(folder, store)
    with _snapshot(folder) as ledger:
        now = datetime.now(UTC).replace(microsecond=0)
        started = _started(ledger, verify=True)
        before = (read_list(store) or CopyList()).copies
        if before:
            _check_same_run(before[0], folder, started, store)
        name = new_name(now)
        paths = {ledger_file(folder).name: ledger, **_other_files(folder)}
        copied = (_put_file(store, name, file, path) for file, path in paths.items())
        files = tuple(file for file in copied if file is not None)
    # A store's names and lists are UTF-8, paths need not be.
    run = folder.path.absolute().name.encode("utf-8", "backslashreplace").decode()
    copy = Copy(folder=name, at=now, run=run, run_started=started, files=files)
    kept = (copy, *before[: NUM_KEPT - 1])
    write_list(store, CopyList(copies=kept))
    _delete_old(store, {old.folder for old in before}, {new.folder for new in kept}, now)
    return copy


def fetch(store: Store, path: Path, *, report: Callable[[str], None]) -> Copy:
    """Bring back the newest copy of a run that is whole.

    Args:
        store: Where the copies are.
        path: The run folder to make; it appears when all of it is there.
        report: Called with a line for each newer copy that is not whole.

    Returns:
        The copy that was fetched.

    Raises:
        ResultsError: There is no copy in the store, or something in the folder already.
        DamagedRunError: No copy is whole, or the list of copies is not one of ours.
        StorageError: The store cannot be read or the folder not be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ResultsError(f"{path}: there is something already; name a folder still to be made")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        for copy in _copies_by_age(store):
            draft.mkdir(parents=True)
            fault = _fetch_copy(store, copy, draft)
            if fault is None:
                draft.rename(path)
                return copy
            report(f"{store.url}: the copy of {copy.at:%Y-%m-%d %H:%M:%S} UTC is damaged: {fault}")
            shutil.rmtree(draft)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    raise DamagedRunError(f"{store.url}: no copy there is whole; copy the run again")


def _copies_by_age(store: Store) -> Iterator[Copy]:
    """Yield the newest copy, then older ones, then those that have been made meanwhile."""
    seen: set[str] = set()
    while copies := [c for c in _listed(store).copies if c.folder not in seen]:
        yield from copies
        seen |= {copy.folder for copy in copies}


def _listed(store: Store) -> CopyList:
    kept = read_list(store)
    if kept is None or not kept.copies:
        raise ResultsError(
            f"{store.url}: no copy of a run there; make one with "
            f"`{command('copy', 'RUN', store.url)}`, or correct the address"
        )
    return kept


# --- What is kept -------------------------------------------------------------------------------


def _check_same_run(newest: Copy, folder: RunFolder, started: str | None, store: Store) -> None:
    if newest.run_started in {None, started}:  # a copy may be older than the run's first event
        return
    raise ResultsError(
        f"{store.url}: holds copies of another run ({newest.run}, begun {newest.run_started}); "
        f"give each run an address of its own, such as {store.url}/{folder.path.absolute().name}"
    )


def _delete_old(store: Store, before: set[str], kept: set[str], now: datetime) -> None:
    """Delete copies that are listed no more, and what was left of some that were never listed."""
    try:
        for name in store.folders():
            since = begun(name)
            if since is None or name in kept:
                continue
            # Another process may be making a copy that it will list soon.
            if name in before or now - since > ABANDONED_AFTER:
                store.delete_folder(name)
    except StorageError as error:
        logger.warning("an older copy could not be deleted: %s", error)


# --- Files --------------------------------------------------------------------------------------


def _check_apart(folder: RunFolder, store: Store) -> None:
    place, run = store.local_path, folder.path.resolve()
    if place is not None and place.resolve().is_relative_to(run):
        raise StorageError(f"{store.url}: lies in the run folder itself; name a place outside it")


@contextmanager
def _snapshot(folder: RunFolder) -> Iterator[Path]:
    """Make a copy of the ledger as it is at one moment, one plain file."""
    source = ledger_file(folder)
    Ledger.open(source).close()  # it says what is wrong with it better than SQLite does
    with tempfile.TemporaryDirectory(prefix="tune-softmax-") as place:
        path = Path(place) / source.name
        uri = f"{source.absolute().as_uri()}?mode=ro"
        try:
            with (
                closing(sqlite3.connect(uri, uri=True)) as original,
                closing(sqlite3.connect(path)) as copy,
            ):
                original.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # or a reader would look for a log
                (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.OperationalError as error:
            raise StorageError(f"{source}: cannot be copied, SQLite says '{error}'") from error
        except sqlite3.DatabaseError as error:
            raise DamagedRunError(f"{source}: is damaged, SQLite says '{error}'") from error
        if verdict != "ok":
            raise DamagedRunError(f"{source}: is damaged, SQLite says '{verdict}'")
        yield path


def _started(ledger: Path, *, verify: bool = False) -> str | None:
    """Return when a run began; None if it has not. `verify` reads all rows, to find damage."""
    with closing(Ledger.open(ledger)) as opened:
        if verify:
            opened.trials()
            opened.epochs()
        events = opened.events()
    return events[0][0] if events else None


def _other_files(folder: RunFolder) -> dict[str, Path]:
    """Return the run's files but for the ledger, by their names below the folder.

    Links are left out: they may lead to what is not the run's.
    """
    ledger = ledger_file(folder).name
    found = {}
    for place, folders, names in os.walk(folder.path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            below = path.relative_to(folder.path)
            if path.is_symlink() or not path.is_file() or LEFT_OUT.match(name):
                continue
            _check_utf8(path)
            is_ledgers = name == ledger or name.startswith(f"{ledger}-") or name.endswith(".part")
            if not (is_ledgers and below.parent == Path()):
                found[str(PurePosixPath(below))] = path
    return found


def _check_utf8(path: Path) -> None:
    try:
        str(path.name).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ResultsError(
            f"{path}: cannot be copied, because its name is not UTF-8; rename it, or remove it"
        ) from error


def _put_file(store: Store, folder: str, name: str, path: Path) -> CopiedFile | None:
    """Copy one file; None if it has just been removed."""
    digest = hashlib.sha256()
    size_bytes = 0

    def chunks(file: BinaryIO) -> Iterator[bytes]:
        # What is hashed is what is sent, whatever is appended to the file meanwhile.
        nonlocal size_bytes
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            yield chunk

    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error})") from error
    with file:
        store.put(f"{folder}/{name}", chunks(file))
    return CopiedFile(name=name, size_bytes=size_bytes, sha256=digest.hexdigest())


def _fetch_copy(store: Store, copy: Copy, draft: Path) -> str | None:
    """Fetch all files of a copy; return what is wrong with it, if anything."""
    for file in copy.files:
        path = draft / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        size_bytes = 0
        try:
            with path.open("xb") as target:
                for chunk in store.get(f"{copy.folder}/{file.name}"):
                    size_bytes += len(chunk)
                    if size_bytes > file.size_bytes:
                        break
                    digest.update(chunk)
                    target.write(chunk)
        except FileNotFoundError:
            return f"{file.name} is missing"
        except FileExistsError:
            return f"{file.name} is listed twice"
        if size_bytes != file.size_bytes or digest.hexdigest() != file.sha256:
            return f"{file.name} is not what was put there (its SHA-256 differs)"
    return None
