"""Run folders of every legal name: commands take them, and what they print can be typed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import run_folders
from awkward_names import NAMES, NOT_UTF8

from tune_softmax.cli import main
from tune_softmax.run.results import load


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run to copy."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run_folders.finished(path, num_trials=2)
    return path


QUICK = {"sp ace", "-dash", "it's", "new\nline", "[bold]", "a?b", "a%20b", "run\udce9"}
ALL = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.fixture(params=ALL, ids=ascii)
def name(request, finished, tmp_path, monkeypatch):
    """Return the name of a run in the working folder, as a command takes it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, Path(request.param))
    return f"./{request.param}" if request.param.startswith("-") else request.param


@pytest.fixture
def say(monkeypatch, capsys):
    """Return the function that runs the command line: to its exit code and what it printed.

    A name that is not UTF-8 is printed by a process of its own, for pytest's streams refuse it.
    """

    def call(*words):
        if any(bad in word for bad in NOT_UTF8 for word in words):
            command = [Path(sys.executable).parent / "tune-softmax", *words]
            done = subprocess.run(
                command, capture_output=True, text=True, errors="surrogateescape", check=False
            )
            return done.returncode, done.stdout, done.stderr
        monkeypatch.setattr(sys, "argv", ["tune-softmax", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


def words_of(command):
    """Return the words of a command as Bash reads them."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"],  # noqa: S607 - whichever Bash there is
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def test_a_run_of_any_name_is_read_and_exported(name, say):
    """The study's address opens the study, and makes no other file."""
    run = Path(name)
    assert say("check", name)[0] == 0
    assert say("report", name)[0] == 0
    assert (run / "report.html").stat().st_size > 1000
    code, said, err = say("export", name, "--to", "optuna")
    if run.name in NOT_UTF8:
        assert (code, said) == (2, "")
        assert "Optuna cannot open a study there, for the path is not UTF-8; name another" in err
        code, said, err = say("export", name, "--to", "optuna", "--output", "study.db")
    assert (code, err) == (0, "")
    (command,) = re.findall(r"see them with: (optuna-dashboard .*)\n", said)
    _, url = words_of(command)
    before = sorted(Path().rglob("*"))
    (summary,) = optuna.get_all_study_summaries(url)
    assert summary.n_trials == 2
    assert sorted(Path().rglob("*")) == before


def test_a_run_of_any_name_is_copied_and_fetched(name, say, tmp_path):
    """And the command that is printed at the end names it."""
    store = f"file://{tmp_path}/store"
    assert say("copy", name, store)[0] == 0
    shutil.rmtree(Path(name))
    code, said, _ = say("copy", store, name)
    assert code == 0
    (command,) = re.findall(r"go on with: (tune-softmax .*)\n", said)
    _, verb, run = words_of(command)
    assert (verb, run) == ("resume", name)
    assert len(load(run).trials) == 2


def test_a_folder_of_any_name_that_is_taken_is_named(name, say):
    """What is advised instead of a second search can be typed."""
    Path("small.yaml").write_text(run_folders.EXPERIMENT)
    code, _, err = say("search", "small.yaml", "--run-dir", name)
    assert code == 2
    (command,) = re.findall(r"go on with `(tune-softmax .*)` if it is a run", err)
    assert words_of(command)[1:] == ["resume", name]
    assert shlex.quote(name) in command or "$'" in command
