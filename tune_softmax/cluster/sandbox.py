"""What keeps a local cluster to its user: a private folder, a token, and variables put back."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["is_there", "private_folder", "token_required", "variables"]

PREFIX = "tune-softmax-"
# A folder bears this name until its lock is held, and so is never taken for a dead one.
NEW_PREFIX = ".tune-softmax-new-"
LOCK = "lock"
# Ray opens its folder to all users, so it gets one below ours, which is open to none of them.
RAY_FOLDER = "ray"
# Ray puts sockets below its folder, and a socket's path may be 107 bytes long at most.
MAX_LENGTH = 40
SHORT_PARENT = "/tmp"  # noqa: S108 - mkdtemp makes a name of its own there
# Where a token of the user's own may be, by Ray's documentation.
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray", "auth_token")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, for as long as the context lasts.

    Its lock is held meanwhile. Folders of killed processes, whose locks nobody holds, are removed;
    process numbers would not tell, since containers share a temporary folder but not those.

    Yields:
        A folder below it, for Ray.
    """
    folder, lock = _locked(_new(None))
    if len(str(folder / RAY_FOLDER)) > MAX_LENGTH:
        shutil.rmtree(folder)
        os.close(lock)
        folder, lock = _locked(_new(SHORT_PARENT))
    _remove_dead(folder.parent)
    try:
        (folder / RAY_FOLDER).mkdir()
        yield folder / RAY_FOLDER
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        # A cluster outlives its killed driver by seconds and may make its folder anew.
        _remove_dead(folder.parent)


def is_there(ray_folder: Path) -> bool:
    """Return whether a private folder is the one that was made.

    Ray makes its own folder anew if somebody removes it, but not our lock.
    """
    return (ray_folder.parent / LOCK).is_file()


def _new(parent: str | None) -> Path:
    return Path(tempfile.mkdtemp(prefix=NEW_PREFIX, dir=parent))


def _locked(new: Path) -> tuple[Path, int]:
    """Return a new folder under its lasting name, and its lock."""
    lock = os.open(new / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    with suppress(OSError):  # a file system without locks: then nobody removes what is left there
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = new.with_name(new.name.replace(NEW_PREFIX, PREFIX))
    new.rename(folder)
    return folder, lock


def _remove_dead(parent: Path) -> None:
    """Remove the folders whose lock can be had."""
    for folder in parent.glob(f"{PREFIX}*"):
        if not (folder / RAY_FOLDER).is_dir():  # not made here
            continue
        with suppress(OSError):  # another user's, held, or gone by now
            lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for as long as the context lasts.

    Args:
        wanted: Values by name; None for a variable that must not be there.
    """
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def token_required() -> Iterator[None]:
    """Have a cluster that is started within the context ask everybody for a token.

    Enter it before Ray is imported, if that can be had: Ray reads the mode while it is imported.
    Where it is imported already, the variable is taken out, and Ray requires a token by default.
    The token is the user's own where there is one, for Ray keeps the first that a process uses,
    also for clusters that it joins later. Children have it by the environment.
    """
    wanted: dict[str, str | None] = {"RAY_AUTH_MODE": None if "ray" in sys.modules else "token"}
    if not _has_token():
        wanted["RAY_AUTH_TOKEN"] = _random_token()
    with variables(wanted):
        yield


def _has_token() -> bool:
    if any(os.environ.get(name) for name in TOKEN_VARIABLES):
        return True
    try:
        return (Path.home() / TOKEN_FILE).is_file()
    except (OSError, RuntimeError):  # a home that cannot be read, or none
        return False


@cache
def _random_token() -> str:
    return secrets.token_hex(32)
