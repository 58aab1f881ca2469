"""Faults that other projects had, as a user would meet them here: the command, and how it ends.

Each was found with the program as it was then, and each ends now as it should. The whole program
runs, in a folder of its own and with temporary files of its own.
"""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PROGRAM = str(Path(sys.executable).parent / "tune-softmax")
LIMIT_S = 400  # the machine may be busy
OK = """
name: ok
dataset: {name: digits, validation: 0.25, train_fraction: 0.1}
space:
  batch_size: {choice: [16, 32]}
  num_epochs: {int: [1, 4]}
  learning_rate: {log_uniform: [1e-3, 1]}
search: {num_trials: 12, asha: {grace_period: 1, reduction_factor: 2}}
"""
ONE = "name: one\ndataset: {name: digits}\nspace: {batch_size: 16, "

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return the working folder, with `ok.yaml` in it; temporary files go to a short path."""
    monkeypatch.chdir(tmp_path)
    place = tempfile.mkdtemp(prefix="t", dir="/tmp")
    monkeypatch.setenv("TMPDIR", place)
    (tmp_path / "ok.yaml").write_text(OK)
    yield tmp_path
    shutil.rmtree(place, ignore_errors=True)


def run(*words, **options):
    """Run a command to its end; text both ways."""
    options = {"capture_output": True, "text": True, "errors": "surrogateescape", **options}
    return subprocess.run([*map(str, words)], timeout=LIMIT_S, check=False, **options)


def tune_softmax(*words, code=0, **options):
    """Run the program; return what it has printed."""
    done = run(PROGRAM, *words, **options)
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == code, said
    assert "Traceback" not in said, said
    return said


def python(text):
    """Run Python code; return what it has printed."""
    done = run(sys.executable, "-c", text)
    return done.stdout + done.stderr


def write_idx(path, shape, data, kind=8):
    """Write an IDX file."""
    path.parent.mkdir(exist_ok=True)
    header = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(header + bytes(data))


@pytest.mark.ray
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_stdout(closed):
    """A search needs no open stream."""
    script = f"{shlex.quote(PROGRAM)} search ok.yaml {closed}"
    assert run("bash", "-c", script, capture_output=False).returncode == 0
    assert "12 trials" in tune_softmax("check", "runs/ok")


@pytest.mark.ray
def test_cwd_json_executed(folder):
    """Nothing in the working folder is imported, nor in a run folder that is resumed in it."""
    planted = "open('EXECUTED', 'a').close()\nraise RuntimeError('shadow')\n"
    for name in ("json.py", "numpy.py", "ray.py"):
        (folder / name).write_text(planted)
    said = tune_softmax("search", "ok.yaml")
    assert "shadow" not in said
    for name in ("json.py", "numpy.py", "ray.py"):
        (folder / "runs/ok" / name).write_text(planted)
    tune_softmax("resume", ".", "--num-trials", 16, cwd=folder / "runs/ok")
    assert not list(folder.rglob("EXECUTED"))


@pytest.mark.ray
def test_diverged_accuracy(folder):
    """A trial whose loss is not finite has no value, whatever its accuracy, and no rank."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 20)):
        pixels = draw.integers(0, 256, count * 4, dtype=np.uint8)
        write_idx(folder / f"data/{part}-images-idx3-ubyte", (count, 2, 2), pixels)
        labels = np.arange(count) % 10 == 9  # nine of ten are 0, which is argmax of NaN as well
        write_idx(folder / f"data/{part}-labels-idx1-ubyte", (count,), labels)
    (folder / "e.yaml").write_text(
        "dataset: {name: idx, path: data, validation: 40}\n"
        "space: {batch_size: 8, num_epochs: 2, learning_rate: {choice: [0.01, 1e39]}}\n"
        "search: {num_trials: 2, sampler: grid, metric: validation_accuracy, asha: none}\n"
    )
    tune_softmax("search", "e.yaml")
    tune_softmax("results", "runs/e", "--format", "csv", "--output", "e.csv")
    trials = pd.read_csv("e.csv").set_index("learning_rate")
    assert trials.loc[1e39, "state"] == "FAIL"
    assert math.isnan(trials.loc[1e39, "value"])
    assert trials.loc[0.01, "value"] > 0.5
    table = tune_softmax("results", "runs/e")
    assert "0.01" in table
    assert "1e+39" not in table


@pytest.mark.ray
def test_grid_resume_message(folder):
    """A grid that was searched whole cannot be extended, and has the trials that it has."""
    (folder / "g.yaml").write_text(
        "dataset: {name: digits, train_fraction: 0.1}\n"
        "space: {batch_size: {choice: [8, 16]}, num_epochs: 1, "
        "learning_rate: {choice: [0.1, 0.2]}}\n"
        "search: {sampler: grid, num_trials: 64}\n"
    )
    tune_softmax("search", "g.yaml")
    said = tune_softmax("resume", "runs/g", "--num-trials", 20, code=2)
    assert "64" not in said
    assert re.search(r"\b4 configurations\b", said)


def test_gzip_members():
    """A gzip file of several members is one file."""
    said = python(
        "import gzip, os, struct\n"
        "from tune_softmax.data import dataset\n"
        "images = bytes([0, 0, 8, 3]) + struct.pack('>3I', 20, 3, 4) + bytes(range(240))\n"
        "labels = bytes([0, 0, 8, 1]) + struct.pack('>I', 20) + bytes([0, 1] * 10)\n"
        "os.makedirs('d')\n"
        "packed = gzip.compress(images[:100]) + gzip.compress(images[100:])\n"
        "open('d/train-images-idx3-ubyte.gz', 'wb').write(packed)\n"
        "open('d/train-labels-idx1-ubyte', 'wb').write(labels)\n"
        "print(len(dataset.load_dataset('idx', path='d', validation=4).train))\n"
    )
    assert said.strip() == "16"


def test_idx_more_than_256_classes(folder):
    """Labels of 32 bits are read, or it is said that they must be bytes."""
    labels = np.repeat(np.arange(300), 2)
    for part in ("train", "t10k"):
        pixels = np.arange(600) % 251
        write_idx(folder / f"d/{part}-images-idx3-ubyte", (600, 1, 1), pixels.astype("u1"))
        raw = labels.astype(">i4").tobytes()
        write_idx(folder / f"d/{part}-labels-idx1-ubyte", (600,), raw, kind=12)
    said = python(
        "from tune_softmax.data import dataset\n"
        "from tune_softmax.errors import DataError\n"
        "try: print(dataset.load_dataset('idx', path='d', validation=100).num_classes)\n"
        "except DataError as error: print(error)\n"
    )
    is_read = said.strip() == "300"
    is_refused = "unsigned bytes" in said and "32-bit integers" in said
    assert is_read or is_refused, said
    assert "get the file again" not in said


@pytest.mark.parametrize(
    ("domain", "sampler"),
    [
        ("{low: 1, high: 18014398509481984, step: 3}", "tpe"),
        ("{low: 1, high: 1000000000, log: true}", "gp"),
    ],
)
def test_int_above_2_53(folder, domain, sampler):
    """Integers that floats do not hold, and too many of them for a sampler, are refused."""
    (folder / "i.yaml").write_text(
        f"dataset: {{name: digits}}\nspace: {{batch_size: 16, num_epochs: {{int: {domain}}}, "
        f"learning_rate: 0.1}}\nsearch: {{num_trials: 4, sampler: {sampler}}}\n"
    )
    assert "num_epochs" in tune_softmax("validate", "i.yaml", code=2)


@pytest.mark.ray
def test_optuna_url_special():
    """The address that is printed opens the study."""
    tune_softmax("search", "ok.yaml", "--run-dir", "plain")
    for name in ("a?b", "a%20b", "a b#c"):
        shutil.copytree("plain", name)
        before = sorted(Path().iterdir())
        said = tune_softmax("export", name, "--to", "optuna")
        (command,) = re.findall(r"optuna-dashboard .*", said)
        _, url = shlex.split(command)
        code = f"print(len(optuna.load_study(study_name=None, storage={url!r}).trials), 'trials')"
        assert "12 trials" in python(f"import optuna\n{code}")
        assert sorted(Path().iterdir()) == before


@pytest.mark.ray
def test_pid_namespace_cleanup(folder):
    """A search in another PID namespace, which sees no process of the first, deletes nothing."""
    if run("unshare", "--pid", "--fork", "--mount-proc", "true").returncode:
        pytest.skip("no PID namespace can be made here")
    long = OK.replace("{int: [1, 4]}", "5000").replace("asha: {grace_period: 1, ", "asha: none}#")
    (folder / "long.yaml").write_text(long)
    place, printed = Path(os.environ["TMPDIR"]), folder / "long.txt"
    with printed.open("w") as said:
        first = subprocess.Popen([PROGRAM, "search", "long.yaml"], stdout=said, stderr=said)
        deadline = time.monotonic() + LIMIT_S
        while "running in" not in printed.read_text():
            assert time.monotonic() < deadline
            assert first.poll() is None, printed.read_text()
            time.sleep(0.1)
        before = set(place.glob("tune-softmax-*"))
        inside = ["unshare", "--pid", "--fork", "--mount-proc", PROGRAM, "search", "ok.yaml"]
        second = run(*inside, "--run-dir", "second")
        left = set(place.glob("tune-softmax-*"))
        is_alive = first.poll() is None
        first.send_signal(signal.SIGINT)
        code = first.wait(LIMIT_S)
    assert second.returncode == 0, second.stderr
    assert is_alive
    assert before
    assert before <= left
    assert code == 130, printed.read_text()
    assert "Traceback" not in printed.read_text()


@pytest.mark.ray
@pytest.mark.parametrize("name", ["sp ace", "./-dash", "$HOME", "it's"])
def test_printed_commands_unquoted(name):
    """What is printed can be typed."""
    said = tune_softmax("search", "ok.yaml", "--run-dir", name)
    commands = [shlex.split(line) for line in re.findall(r"tune-softmax .*", said)]
    assert commands
    for _, _, path, *_ in commands:
        assert not path.startswith("-")
        assert Path(path).samefile(name)


@pytest.mark.ray
def test_ray_already_up(folder):
    """A process that has Ray is told what to do, before the run folder is made."""
    said = python(
        "import ray\n"
        "ray.init(num_cpus=1, include_dashboard=False, logging_level='ERROR')\n"
        "import tune_softmax\n"
        "try: tune_softmax.search('ok.yaml')\n"
        "except tune_softmax.TuneSoftmaxError as error: print(f'told: {error}')\n"
    )
    assert re.search(r"told: .*ray\.shutdown\(\)", said), said
    assert not (folder / "runs").exists()


@pytest.mark.ray
def test_sqlite_locked_advice():
    """Another process's lock is no lack of room."""
    tune_softmax("search", "ok.yaml")
    with closing(sqlite3.connect("runs/ok/run.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        said = tune_softmax("results", "runs/ok", code=4)
    assert "another process has the file locked; wait" in said
    assert "make room" not in said


def test_top_rung_lost(folder):
    """A power of the reduction factor is a rung, whatever its logarithm rounds to."""
    said = python(
        "from tune_softmax.experiment.sections import Asha\n"
        "print(*[list(Asha(reduction_factor=f).rungs(n)) for f, n in "
        "((10, 1000), (3, 243), (3, 81))])\n"
    )
    assert said.strip() == "[1, 10, 100, 1000] [1, 3, 9, 27, 81, 243] [1, 3, 9, 27, 81]"
    (folder / "b.yaml").write_text(
        "dataset: {name: digits}\n"
        "space: {batch_size: 16, num_epochs: 1000, learning_rate: {log_uniform: [1e-3, 1]}}\n"
        "search: {asha: {grace_period: 1, reduction_factor: 10, brackets: 4}}\n"
    )
    tune_softmax("validate", "b.yaml")


@pytest.mark.parametrize(
    "values",
    [
        "num_epochs: 2, learning_rate: 10, weight_decay: 1}",
        "num_epochs: 60, learning_rate: 2.6, weight_decay: 1}",
    ],
    ids=["at once", "late"],
)
def test_train_diverged(folder, values):
    """It is said, with the epoch, and the files hold no NaN."""
    (folder / "d.yaml").write_text(ONE + values)
    said = tune_softmax("train", "d.yaml", code=3)
    assert re.search(r"diverged in epoch \d+", said), said

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for path in (folder / "runs").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_train_latin1_stdout(folder, encoding):
    """An encoding without a plot's characters costs no result."""
    (folder / "d.yaml").write_text(ONE + "num_epochs: 2, learning_rate: 0.1}")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    said = tune_softmax("train", "d.yaml", env=environment)
    assert re.search(r"test images: loss 0\.\d+, accuracy 0\.\d+", said), said


def test_train_yaml_in_locale(folder):
    """Files are UTF-8 whatever the locale."""
    locale = folder / "loc/en_US.ISO-8859-1"
    locale.parent.mkdir()
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef here")
    run("localedef", "-i", "en_US", "-f", "ISO-8859-1", locale)
    if not locale.exists():
        pytest.skip("no locale can be made here")
    data = Path(os.fsdecode("données".encode("latin-1")))
    for part in ("train", "t10k"):
        write_idx(data / f"{part}-images-idx3-ubyte", (8, 1, 1), range(0, 240, 30))
        write_idx(data / f"{part}-labels-idx1-ubyte", (8,), [0, 1] * 4)
    (folder / "lat.yaml").write_text(
        "name: lat\ndataset: {name: idx, path: données, validation: 2}\n"
        "space: {batch_size: 2, num_epochs: 2, learning_rate: 0.1}\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "LOCPATH": str(locale.parent), "LC_ALL": locale.name}
    environment.pop("PYTHONUTF8", None)
    tune_softmax("train", "lat.yaml", env=environment)
    written = folder / "runs/lat-train/experiment.yaml"
    assert "données" in written.read_text(encoding="utf-8")
    tune_softmax("validate", written)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tab.yaml", ONE.replace("name: one", "name:\tone") + "num_epochs: 2, learning_rate: 1}"),
        (
            "tabs.json",
            (
                '{"name": "x", "dataset": {"name": "digits"},\n'
                '\t"space": {"batch_size": 16, "num_epochs": 2, "learning_rate": 0.1}}\n'
            ),
        ),
    ],
)
def test_yaml_tabs(folder, name, text):
    """Tabs may separate words in YAML 1.2; they are taken, or it is said that they are not."""
    (folder / name).write_text(text)
    done = run(PROGRAM, "validate", name)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or (done.returncode == 2 and "tab" in said), said
    assert "not YAML" not in said
