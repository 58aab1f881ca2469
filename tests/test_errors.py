"""Errors, and the commands that their messages name."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tune_softmax.errors import command


@pytest.mark.parametrize(
    "name", ["plain", "sp ace", "-dash", "--", "$HOME", "it's", 'a"b', "a;b", "ö ü", "a\\b", "*"]
)
def test_a_printed_command_can_be_pasted(tmp_path, name):
    """A shell hands the folder's name on as it is, and it is never taken for an option."""
    line = command("results", Path(name), "--format", "csv")
    words = shlex.split(line)
    assert words[:2] == ["tune-softmax", "results"]
    assert Path(words[2]) == Path(name)
    assert not words[2].startswith("-")
    assert words[3:] == ["--format", "csv"]
    line = line.replace("tune-softmax", f"{shlex.quote(sys.executable)} -c {_ECHO}", 1)
    said = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout == f"{Path(words[2])!s}"


_ECHO = shlex.quote("import sys, pathlib; print(pathlib.Path(sys.argv[2]), end='')")
