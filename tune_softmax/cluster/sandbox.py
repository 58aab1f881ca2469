"""What keeps a local cluster to its user: a folder that nobody else can enter, and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

__all__ = ["make_folder", "remove_folder", "set_token"]

# Ray puts sockets below its folder, and a socket's path may be 107 bytes long at most.
MAX_FOLDER_LENGTH = 40


def make_folder() -> Path:
    """Make a folder, below which sockets' paths are short enough; remove what others left."""
    prefix = f"tune-softmax-{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if len(str(folder)) > MAX_FOLDER_LENGTH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    _remove_left(folder.parent)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder, and once more what others left.

    A cluster outlives its killed driver by seconds, and may make its folder anew after it was
    removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    _remove_left(folder.parent)


def _remove_left(parent: Path) -> None:
    """Remove the folders that killed processes have left behind."""
    for folder in parent.glob("tune-softmax-[0-9]*-*"):
        process = folder.name.split("-")[2]
        if not Path(f"/proc/{process}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def set_token() -> None:
    """Have the clusters that this process starts let nobody in but its children.

    Ray turns token authentication on by itself where no mode is set; a token in this process's
    environment reaches its children, and needs no file in a home that may be read-only.
    """
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
