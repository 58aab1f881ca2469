"""Run folders from a stranger: every command gives a right answer or one clear message.

`TUNE_SOFTMAX_FUZZ=300 pytest tests/commands/test_fuzzed_runs.py` tries more of them;
`TUNE_SOFTMAX_FUZZ_FIRST` says with which seed it begins.
"""

import importlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

import fuzzed_runs
import pytest

from tune_softmax import cli
from tune_softmax.data import dataset as data

IS_LONG = "TUNE_SOFTMAX_FUZZ" in os.environ
NUM_RUNS = int(os.environ.get("TUNE_SOFTMAX_FUZZ", "8"))
FIRST = int(os.environ.get("TUNE_SOFTMAX_FUZZ_FIRST", "0"))
LIMIT_S = 60  # a machine may be busy; what hangs does so for ever
LIMIT_BYTES = 3 << 30  # of memory beyond what every process has here
CODES = {0, 2, 4, 5, 6}
OFTEN = [
    ["check", "RUN"],
    ["results", "RUN"],
    ["report", "RUN"],
    ["export", "RUN", "--to", "optuna"],
    ["copy", "RUN", "file://OUT/store"],
    ["resume", "RUN"],
    ["train", "RUN", "--run-dir", "OUT/trained"],
]
SELDOM = [
    ["results", "RUN", "--format", "csv"],
    ["validate", "RUN/experiment.yaml"],
    ["report", "RUN", "--markdown", "--output", "OUT/report.md"],
    ["predict", "RUN", "PICTURE"],
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a sound run, and import what commands import, for children to have it at once."""
    for name in ("run.results", "report.page", "report.markdown", "export.optuna_file"):
        importlib.import_module(f"tune_softmax.{name}")
    for name in ("studies.train", "studies.search", "studies.predict", "export.copies"):
        importlib.import_module(f"tune_softmax.{name}")
    loaded = data.load_dataset("digits")
    return fuzzed_runs.write_base(tmp_path_factory.mktemp("base") / "run", loaded.checksum)


@pytest.fixture
def victim(tmp_path):
    """Return a folder of things that no run may touch."""
    folder = tmp_path / "victim"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "file").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "empty").touch()
    with closing(sqlite3.connect(folder / "run.db")) as connection:
        connection.execute("CREATE TABLE mine (x)")
    return folder


def spy(event, arguments):
    """End the process where a run's own code would begin to run."""
    is_code = event in {"os.system", "os.exec", "pickle.find_class", "ctypes.dlopen"}
    if is_code and (event != "ctypes.dlopen" or "planted" in str(arguments)):
        sys.stderr.write(f"PLANTED CODE RUNS: {event} {arguments}\n")
        traceback.print_stack()
        os._exit(99)


def call(words, place, said):
    """Run one command in a child; return its exit code, what it said, and its memory in bytes."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(place)
            os.setpgid(0, 0)
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT_S)
            sys.addaudithook(spy)
            sys.argv = ["tune-softmax", *words]
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:  # noqa: BLE001 - nothing of the child may go on here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    _, status, usage = os.wait4(child, 0)
    text = Path(said).read_text(encoding="utf-8", errors="replace")
    return os.waitstatus_to_exitcode(status), text, usage.ru_maxrss * 1024


@pytest.mark.parametrize("seed", range(FIRST, FIRST + NUM_RUNS))
def test_a_run_from_a_stranger_does_no_harm(base, victim, tmp_path, seed):
    """No code of it runs, nothing outside is touched, and every command ends as it should."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(base, run)
    changes = fuzzed_runs.fuzz(run, victim, draw)
    before = fuzzed_runs.state_of(victim)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    codes, faults = {}, []
    # Commands run in forks. Beside other tests torch has threads by then, which no fork has, so
    # training is left to a run of these tests alone.
    often = OFTEN if IS_LONG else [*OFTEN[:2], draw.choice(OFTEN[2:-1])]
    for words in [*often, draw.choice(SELDOM)]:
        out.mkdir()
        place = draw.choice([tmp_path, run])
        names = {"RUN": str(run) if place == tmp_path else ".", "OUT": str(out)}
        picture = str(Path(__file__).parent / "none.png")
        typed = [picture if w == "PICTURE" else _named(w, names) for w in words]
        started = time.monotonic()
        code, said, used = call(typed, place, tmp_path / "said.txt")
        seconds = time.monotonic() - started
        codes[words[0]] = code
        what = f"{' '.join(words)}: exit code {code} after {seconds:.1f} s: {said[-1500:]}"
        if code not in CODES or "Traceback" in said or "PLANTED" in said:
            faults.append(what)
        if used > memory + LIMIT_BYTES:
            faults.append(f"{used / 1e9:.1f} GB of memory: {what}")
        if fuzzed_runs.state_of(victim) != before:
            faults.append(f"touched what is outside: {what}")
            break
        if list(tmp_path.rglob("planted")):
            faults.append(f"ran planted code: {what}")
            break
        faults += [f"{path.name} holds what was planted: {what}" for path in unsafe(run, out)]
        shutil.rmtree(out)
    if codes.get("check") == 0 and codes.get("results"):
        faults.append(f"check says that the run is sound, but others do not: {codes}")
    assert not faults, f"seed {seed}, {changes}:\n" + "\n".join(faults)


def _named(word, names):
    for name, value in names.items():
        word = word.replace(name, value)
    return word


def unsafe(run, out):
    """Return the reports whose text holds planted HTML as it is."""
    reports = [run / "report.html", out / "report.md"]
    return [
        path
        for path in reports
        if path.is_file()
        and not path.is_symlink()
        and "<script>planted" in path.read_text(encoding="utf-8", errors="replace")
    ]
