"""What the command line says of itself."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COMMAND = Path(sys.executable).with_name("tune-softmax")


def say(*arguments, columns=80):
    """Return what the command prints on a terminal of so many columns."""
    environment = os.environ | {"COLUMNS": str(columns)}
    done = subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def test_version():
    """`--version` prints the installed version."""
    assert say("--version") == f"tune-softmax {version('tune-softmax')}\n"


def test_no_summary_is_cut_at_80_columns():
    """The list of commands shows each summary whole."""
    for arguments in (["--help"], ["bench", "--help"]):
        lines = say(*arguments).partition("Commands:")[2].splitlines()
        commands = [line for line in lines if line.strip()]
        assert len(commands) >= 5
        assert [line for line in commands if not line.endswith(".") or "..." in line] == []
