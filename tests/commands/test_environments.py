"""The command line wherever people start it: locales, streams, homes, folders, limits."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).parent / "tune-softmax")
EXPERIMENT = """
name: everywhere
dataset: {name: digits, validation: 0.25}
space: {batch_size: 64, num_epochs: 2, learning_rate: {log_uniform: [1.0e-2, 1]}}
search: {num_trials: 4, asha: none}
"""
AWKWARD = [
    "with space",
    "quote's",
    'double"quote',
    "-dash",
    "percent%20",
    "hash#question?",
    "semi;colon",
    "dollar$HOME",
    "star*",
    "back\\slash",
    "new\nline",
    "ünï-漢字",
]
slow = pytest.mark.slow


@pytest.fixture
def experiment(tmp_path):
    """Return the file of a search that takes a second."""
    path = tmp_path / "everywhere.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


def run(*command, cwd, limits=None, remove=(), stdout=subprocess.PIPE, **variables):
    """Run our command line to its end."""
    kept = {name: value for name, value in os.environ.items() if name not in remove}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=kept | variables,
        preexec_fn=None if limits is None else lambda: resource.setrlimit(*limits),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
    )


def num_trials(folder, cwd):
    """Return how many trials `results` finds."""
    done = run(PROGRAM, "results", folder, "--format", "json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return len(json.loads(done.stdout))


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("remove", "variables"),
    [
        pytest.param((), C_LOCALE, id="locale C"),
        pytest.param((), {"PYTHONIOENCODING": "latin-1"}, id="Latin-1", marks=slow),
        pytest.param((), {"TERM": "dumb"}, id="dumb terminal", marks=slow),
        pytest.param(("HOME",), {}, id="no home", marks=slow),
        pytest.param((), {"HOME": "read-only"}, id="read-only home", marks=slow),
        pytest.param((), {"TMPDIR": "temporary files here"}, id="TMPDIR with spaces", marks=slow),
        pytest.param((), {"TMPDIR": "x" * 90}, id="long TMPDIR", marks=slow),
        pytest.param((), {"TMPDIR": "missing"}, id="no TMPDIR", marks=slow),
        pytest.param((), {"RAY_ADDRESS": "192.0.2.1:6379"}, id="another cluster", marks=slow),
        pytest.param((), {"RAY_AUTH_MODE": "disabled"}, id="no authentication", marks=slow),
    ],
)
def test_a_search_runs_in_any_environment(tmp_path, experiment, remove, variables):
    """All its trials are there, and nothing of Ray's or Python's is printed."""
    places = dict(variables)
    for name in ("HOME", "TMPDIR"):
        if name in places:
            places[name] = str(tmp_path / places[name])
            if variables[name] != "missing":
                Path(places[name]).mkdir(mode=0o555 if name == "HOME" else 0o700)
    done = run(PROGRAM, "search", experiment, cwd=tmp_path, remove=remove, **places)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert num_trials(tmp_path / "runs" / "everywhere", tmp_path) == 4


@pytest.mark.ray
@pytest.mark.parametrize(
    "redirection",
    [
        ">&- 2>&- <&-",
        pytest.param("<&-", marks=slow),
        pytest.param(">&-", marks=slow),
        pytest.param("2>&-", marks=slow),
        pytest.param("| head -1", marks=slow),
    ],
)
def test_a_search_ends_well_whatever_becomes_of_its_output(tmp_path, experiment, redirection):
    """Streams may be closed from the start, or by whoever has read enough."""
    script = f'set -o pipefail; "$0" search "$1" {redirection}'
    done = run("/bin/bash", "-c", script, PROGRAM, experiment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert num_trials(tmp_path / "runs" / "everywhere", tmp_path) == 4


def test_a_full_standard_output_is_one_message(tmp_path, experiment):
    """With the exit code of storage."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = run(PROGRAM, "validate", experiment, cwd=tmp_path, stdout=full)
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_few_open_files_are_enough(tmp_path, experiment):
    """A limit of 128 is what some systems give."""
    few = (resource.RLIMIT_NOFILE, (128, 128))
    done = run(PROGRAM, "search", experiment, cwd=tmp_path, limits=few)
    assert done.returncode == 0, done.stderr
    assert num_trials(tmp_path / "runs" / "everywhere", tmp_path) == 4


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", AWKWARD)
def test_a_run_folder_may_have_any_name(tmp_path, experiment, name):
    """A search writes it, and the commands that it prints, and others, read it."""
    folder = tmp_path / "runs" / name
    done = run(PROGRAM, "search", experiment, f"--run-dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert num_trials(folder, tmp_path) == 4
    for command in ("check", "report", "resume"):
        again = run(PROGRAM, command, folder, cwd=tmp_path)
        assert again.returncode == 0, f"{command}: {again.stderr}"
