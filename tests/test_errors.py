"""The errors' messages: a command that they name can be typed, whatever the path."""

import shutil
import subprocess
from pathlib import Path

import pytest
from awkward_names import NAMES

from tune_softmax.errors import command


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_command_means_the_same_to_a_shell(shell, name):
    """Every word arrives as it is, and a path that begins with a dash is no option."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    line = command("resume", Path(name), "--num-trials", 4, program="printf '%s\\0'")
    assert line.isprintable()
    line.encode("utf-8")
    done = subprocess.run([shell, "-c", line], stdout=subprocess.PIPE, check=True)
    path = f"./{name}" if name.startswith("-") else name
    expected = ["resume", path, "--num-trials", "4", ""]
    assert done.stdout.decode("utf-8", "surrogateescape").split("\0") == expected


def test_a_plain_command_has_no_quotes():
    """What a message shows is what people type."""
    assert command("resume", Path("runs/a-1")) == "tune-softmax resume runs/a-1"
    url = "sqlite:///runs/a/optuna.db"
    assert command(url, program="optuna-dashboard") == f"optuna-dashboard {url}"
