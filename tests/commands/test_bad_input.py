"""Bad input through the command line: one clear message, the right exit code, nothing changed."""

import contextlib
import gzip
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tune_softmax import cli
from tune_softmax.config import Config
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

ONE = "dataset: {name: digits}\nspace: {batch_size: 64, num_epochs: 1, learning_rate: 0.1}\n"
MANY = ONE.replace("num_epochs: 1", "num_epochs: {int: [1, 8]}")
IDX = ONE.replace("digits", "idx, path: images").replace("64", "8")
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working folder, with an experiment to train, one to search, and a text file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(ONE)
    (tmp_path / "many.yaml").write_text(MANY)
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


@pytest.fixture
def run(folder):
    """Return a run folder with one complete trial."""
    run = RunFolder(folder / "run")
    run.create()
    run.experiment.write_text(parse(MANY, "many.yaml").to_yaml())
    with contextlib.closing(Ledger.create(run.ledger, {"dataset_checksum": "abc"})) as ledger:
        ledger.hand_out(0, {0: Config(batch_size=64, num_epochs=1, learning_rate=0.1)})
        metrics = EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.1)
        ledger.record(0, [Report(0, 1, metrics, State.COMPLETE, 1)])
    return run


@pytest.fixture
def images(folder, write_idx):
    """Return a sound folder of IDX files: 30 training and 6 test images of 3 classes."""
    images = folder / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (36, 4, 5), dtype=np.uint8)
    labels = np.arange(36, dtype=np.uint8) % 3
    write_idx(images / TRAIN_IMAGES, pixels[:30])
    write_idx(images / TRAIN_LABELS, labels[:30])
    write_idx(images / TEST_IMAGES, pixels[30:])
    write_idx(images / TEST_LABELS, labels[30:])
    return images


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Return the function that runs a command and returns the message with which it is refused."""

    def call(*arguments, code=2):
        before = snapshot(folder)
        monkeypatch.setattr(sys, "argv", ["tune-softmax", *map(str, arguments)])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        assert snapshot(folder) == before
        return message_of(printed.out, printed.err)

    return call


def snapshot(folder):
    """Return every file and folder below, with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def message_of(out, err):
    """Return the message that a refused command printed, one fault a line, and nothing else."""
    assert "Traceback" not in out + err
    if err.startswith(("Usage: ", "Error: ")):  # from the parser of options
        *_, message = err.splitlines()
        assert message.startswith("Error: ")
        return message.removeprefix("Error: ")
    while err.startswith("downloading "):
        err = err.partition("\n")[2]
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    lines = err.removeprefix("error: ").splitlines()
    assert all(line and not line.startswith(" ") for line in lines), err
    assert all(line.isprintable() for line in lines), err
    return "\n".join(lines)


# Experiment files

# What a file holds, and what the message says; `ONE` has its dataset on line 1, space on line 2.
WRONG_FILES = {
    "empty": ("", "must be a mapping of keys, got an empty file"),
    "only a comment": ("# nothing yet\n", "must be a mapping of keys, got an empty file"),
    "not UTF-8": (b"name: \xff\xfe", "wrong.yaml:1:"),
    "binary": (bytes(range(256)), "wrong.yaml"),
    "tab": ("space:\n\tbatch_size: 1\n", "wrong.yaml:2:"),
    "not closed": ("dataset: {name: digits\n", "wrong.yaml:"),
    "a list": ("- 1\n- 2\n", "must be a mapping"),
    "a word": ("hello\n", "must be a mapping"),
    "two documents": (ONE + "---\n" + ONE, "wrong.yaml:3:"),
    "duplicate key": (ONE + "dataset: {name: mnist}\n", "wrong.yaml:3:"),
    "a Python object": ("name: !!python/object/apply:os.system [ls]\n" + ONE, "wrong.yaml:1:"),
    "an alias bomb": (
        "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9)) + ONE,
        "wrong.yaml",
    ),
    "too large": (ONE + "#" * 2_000_000, "wrong.yaml"),
    "unknown section": (ONE + "serach: {seed: 1}\n", "'serach'; did you mean 'search'?"),
    "unknown key": (ONE.replace("learning_rate", "learning_rat"), "did you mean 'learning_rate'?"),
    "missing key": (ONE.replace("batch_size: 64, ", ""), "missing key 'batch_size'"),
    "missing section": ("dataset: {name: digits}\n", "missing key 'space'"),
    "unknown dataset": (ONE.replace("digits", "digit"), "did you mean 'digits'?"),
    "idx without a path": (ONE.replace("digits", "idx"), "must be the folder of IDX files"),
    "word for a number": (ONE.replace("0.1", "fast"), "learning_rate: must be a number > 0"),
    "NaN": (ONE.replace("0.1", ".nan"), "learning_rate: must be a number > 0, got nan"),
    "infinity": (ONE.replace("0.1", ".inf"), "learning_rate: must be a number > 0, got inf"),
    "fraction for a count": (ONE.replace("64", "2.5"), "must be an integer >= 1, got 2.5"),
    "batch size 0": (ONE.replace("64", "0"), "batch_size: must be an integer >= 1, got 0"),
    "log range from 0": (ONE.replace("0.1", "{log_uniform: [0, 1]}"), "low must be a number > 0"),
    "low above high": (ONE.replace("0.1", "{uniform: [2, 1]}"), "low must be < high, got low 2.0"),
    "low equals high": (ONE.replace("64", "{int: [5, 5]}"), "got 5 twice; write 5 alone"),
    "empty choice": (ONE.replace("64", "{choice: []}"), "a list of one or more values"),
    "repeated choice": (ONE.replace("64", "{choice: [1, 1]}"), "must not repeat choice[0]"),
    "step 0": (ONE.replace("64", "{int: {low: 1, high: 9, step: 0}}"), "step must be an integer"),
    "unknown domain": (ONE.replace("0.1", "{loguniform: [1, 2]}"), "did you mean 'log_uniform'?"),
    "momentum 1": (ONE.replace("0.1", "0.1, momentum: 1"), "must be a number >= 0 and < 1, got 1"),
    "negative decay": (ONE.replace("0.1", "0.1, weight_decay: -1"), "weight_decay: must be a n"),
    "validation 0": (ONE.replace("digits", "digits, validation: 0"), "dataset.validation: must"),
    "validation 1.0": (ONE.replace("digits", "digits, validation: 1.0"), "got 1.0"),
    "no trials": (
        MANY + "search: {num_trials: 0}\n",
        "num_trials: must be an integer >= 1, got 0",
    ),
    "trials without end": (MANY + "search: {num_trials: -1}\n", "integer >= 1, got -1"),
    "half a trial": (MANY + "search: {num_trials: 2.5}\n", "integer >= 1, got 2.5"),
    "unknown metric": (MANY + "search: {metric: loss}\n", "one of validation_loss, validation_a"),
    "unknown sampler": (MANY + "search: {sampler: tpee}\n", "did you mean 'tpe'?"),
    "grace too long": (MANY + "search: {asha: {grace_period: 9}}\n", "<= the most epochs of the"),
    "factor 1": (MANY + "search: {asha: {reduction_factor: 1}}\n", "must be a number > 1, got 1"),
    "too many brackets": (MANY + "search: {asha: {brackets: 9}}\n", "brackets: must be <= "),
    "point outside": (MANY + "search: {points: [{num_epochs: 9}]}\n", "must be in the space"),
    "grid over numbers": (
        ONE.replace("0.1", "{uniform: [1, 2]}") + "search: {sampler: grid}\n",
        "grid needs choice or int for all that is searched, got learning_rate",
    ),
    "no CPU": (ONE + "resources: {cpus_per_pack: 0}\n", "cpus_per_pack: must be an integer >= 1"),
    "one GPU and a half": (
        ONE + "resources: {gpus_per_pack: 1.5}\n",
        "must be <= 1, since a pack",
    ),
    "a path as name": (ONE + "name: ../up\n", "name: must be 1 to 64 letters, digits"),
}


@pytest.mark.parametrize(("content", "expected"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_experiment_file(folder, refused, content, expected):
    """The message names file, line and fault."""
    data = content.encode() if isinstance(content, str) else content
    (folder / "wrong.yaml").write_bytes(data)
    message = refused("validate", "wrong.yaml")
    assert message.startswith("wrong.yaml")
    assert expected in message


@pytest.mark.parametrize("name", ["empty", "not UTF-8", "unknown key", "grace too long"])
def test_every_command_refuses_a_wrong_file_alike(folder, refused, name):
    """A search or a training says what validate says, before it makes anything."""
    content, _ = WRONG_FILES[name]
    (folder / "wrong.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    expected = refused("validate", "wrong.yaml")
    assert refused("search", "wrong.yaml") == refused("train", "wrong.yaml") == expected


def test_all_faults_of_a_file_come_together(folder, refused):
    """One line a fault, in the order of the file's lines."""
    (folder / "wrong.yaml").write_text(ONE.replace("64", "0").replace("0.1", "-1") + "seed: 1\n")
    lines = refused("validate", "wrong.yaml").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["wrong.yaml:2"] * 2 + ["wrong.yaml:3"]


# Commands and options

WRONG_USES = [
    ("serach many.yaml", "No such command 'serach'. Did you mean 'search'?"),
    ("search", "Missing argument 'EXPERIMENT'"),
    ("search many.yaml one.yaml", "unexpected extra argument"),
    ("search many.yaml --num-trial 3", "No such option: --num-trial (Possible options: --num-tr"),
    ("search many.yaml --num-trials", "--num-trials' requires an argument"),
    ("search many.yaml --num-trials many", "Invalid value for '--num-trials'"),
    ("search many.yaml --num-trials 2.5", "Invalid value for '--num-trials'"),
    ("search many.yaml --num-trials 0", "option --num-trials: must be an integer >= 1, got 0"),
    ("search many.yaml --num-trials -1", "option --num-trials: must be an integer >= 1, got -1"),
    ("search many.yaml --time-budget-s 0", "option --time-budget-s: must be a number > 0"),
    ("search many.yaml --time-budget-s nan", "option --time-budget-s: must be a number > 0"),
    ("search many.yaml --time-budget-s 10m", "Invalid value for '--time-budget-s'"),
    ("search many.yaml --seed -1", "option --seed: must be an integer >= 0 and < 4294967296"),
    ("search many.yaml --seed 4294967296", "option --seed: must be an integer >= 0 and < 42949"),
    ("search many.yaml --pack-size many", "option --pack-size: must be auto or an integer >= 1"),
    ("search many.yaml --pack-size 0", "option --pack-size: must be auto or an integer >= 1"),
    ("search many.yaml --pack-size -5", "option --pack-size: must be auto or an integer >= 1"),
    ("search many.yaml --cpus-per-pack 0", "option --cpus-per-pack: must be an integer >= 1"),
    ("search many.yaml --gpus-per-pack -1", "option --gpus-per-pack: must be a number >= 0"),
    ("search many.yaml --gpus-per-pack 1.5", "option --gpus-per-pack: must be <= 1"),
    ("search missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
    ("search .", ".: is a folder, not an experiment file; name an experiment file"),
    ("search one.yaml", "a search needs at least one hyperparameter of the space"),
    ("search many.yaml --run-dir .", "the folder is not empty; go on with `tune-softmax resume"),
    ("train many.yaml", "one configuration needs every hyperparameter of the space to be a const"),
    ("train one.yaml --trial 0", "--trial 0: one.yaml is not a run folder"),
    ("train missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
    ("train .", "no ledger there; name the folder of a run"),
    ("validate", "name an EXPERIMENT file, or ask for the --schema"),
    ("validate missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
    ("validate .", ".: cannot be read: Is a directory"),
    ("results", "Missing argument 'RUN'"),
    ("results missing", "missing: there is no such folder; name the folder of a run"),
    ("results notes.txt", "notes.txt: is a file, and a run is a folder"),
    ("results one.yaml --format xml", "must be one of table, csv, json, parquet, got 'xml'"),
    ("results one.yaml --top 0", "Invalid value for '--top'"),
    ("results one.yaml --format xlsx", "must be one of table, csv, json, parquet, got 'xlsx'"),
    ("resume one.yaml", "an experiment file is for: tune-softmax search one.yaml"),
    ("copy run file", "the address of a folder is file:///"),
    ("results one.yaml --output table.txt", "--output needs --format csv, json or parquet"),
    ("resume missing", "missing: there is no such folder; name the folder of a run"),
    ("resume many.yaml", "many.yaml: is a file, and a run is a folder"),
    ("oracle", "Missing argument 'EXPERIMENT|RUN'"),
    ("oracle missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
    ("oracle .", "no ledger there; name the folder of a run"),
    ("oracle many.yaml --num-penalties 1", "Invalid value for '--num-penalties'"),
    ("oracle many.yaml --low 0", "0 < low < high, got low 0 and high 0.1; see --low and --high"),
    ("oracle many.yaml --low 1", "0 < low < high, got low 1 and high 0.1; see --low and --high"),
    ("oracle many.yaml --high nan", "0 < low < high, got low 1e-06 and high nan"),
    ("bench packed --num-images 0", "Invalid value for '--num-images'"),
    ("bench packed --hidden-units -1", "Invalid value for '--hidden-units'"),
    ("bench search --peer hyperopt", "bench: no way to search is called 'hyperopt'; known: "),
    ("bench search --limit-s 0", "bench: limit_s must be above 0, got 0"),
    ("bench overhead --repeats 0", "Invalid value for '--repeats'"),
    ("bench scaling --part gpus", "'gpus' is not one of 'packs', 'nodes', 'trials'"),
    ("bench scaling --num-trials 0", "every number of trials must be at least 1"),
    ("bench speed", "No such command 'speed'"),
]


@pytest.mark.parametrize(("line", "expected"), WRONG_USES, ids=[line for line, _ in WRONG_USES])
def test_a_wrong_command_line(refused, line, expected):
    """The message names the option or argument, and what is allowed."""
    assert expected in refused(*line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("search many.yaml --run-dir notes.txt", "notes.txt: notes.txt is not a folder"),
        ("search many.yaml --run-dir notes.txt/run", "notes.txt/run: "),
        ("train one.yaml --run-dir notes.txt", "notes.txt: notes.txt is not a folder"),
        ("train one.yaml --run-dir notes.txt/run", "notes.txt/run: "),
    ],
)
def test_a_place_that_cannot_be_written(refused, line, expected):
    """Exit code 4, before any work is done."""
    assert refused(*line.split(), code=4).startswith(expected)


def test_the_real_command_says_the_same(folder):
    """As a process of its own: the message on stderr alone, and the exit code."""
    command = [Path(sys.executable).with_name("tune-softmax"), "search", "one.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a search needs at least one" in message_of("", done.stderr)


# Runs

CHECKSUM = zlib.crc32(b'["schema_version","9"]')
NEWER = f"UPDATE meta SET value = '9', checksum = {CHECKSUM} WHERE key = 'schema_version'"  # noqa: S608
# What has become of the run folder, the exit code, and what the message says.
HARMS = {
    "ledger of another kind": (lambda run: run.ledger.write_bytes(b"<html>" * 99), 5, "not a da"),
    "ledger empty": (lambda run: run.ledger.write_bytes(b""), 5, "is empty"),
    "ledger cut short": (
        lambda run: run.ledger.write_bytes(run.ledger.read_bytes()[:5000]),
        5,
        "malformed",
    ),
    "table missing": (lambda run: execute(run, "DROP TABLE epochs"), 5, "no such table: epochs"),
    "strange state": (lambda run: execute(run, "UPDATE trials SET state = 'X'"), 5, "valid State"),
    "newer": (
        lambda run: execute(run, NEWER),
        2,
        "the ledger has schema version 9",
    ),
    "ledger missing": (lambda run: run.ledger.unlink(), 2, "no ledger there"),
    "experiment missing": (lambda run: run.experiment.unlink(), 5, "cannot be read: No such file"),
    "experiment wrong": (
        lambda run: run.experiment.write_text(ONE.replace("64", "0")),
        5,
        "batch_size: must be an integer >= 1, got 0",
    ),
}


def execute(run, statement):
    """Change a run's ledger behind its back."""
    with contextlib.closing(sqlite3.connect(run.ledger)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize("command", ["results", "train", "resume"])
@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_run(run, refused, command, name):
    """The message names the file, and nothing is repaired or restarted in silence."""
    harm, code, expected = HARMS[name]
    harm(run)
    message = refused(command, "run", code=code)
    assert message.startswith("run/")
    assert expected in message


def test_a_trial_that_is_not_there(run, refused):
    """The message says which there are."""
    assert refused("train", run.path.name, "--trial", 7) == (
        "run: there is no trial 7, only 0 to 0"
    )


def test_a_run_folder_is_not_trained_into(run, refused):
    """A search's own experiment and ledger stay as they are."""
    for command in (("train", "one.yaml"), ("search", "many.yaml")):
        message = refused(*command, "--run-dir", run.path.name)
        assert message.startswith("run: the folder is not empty")


def test_results_that_cannot_be_written(run, refused):
    """Exit code 4, with the option's name."""
    for place in ("run", "missing/table.csv"):
        message = refused("results", "run", "--format", "csv", "--output", place, code=4)
        assert message.startswith(f"--output {place}: cannot be written")
    assert run.ledger.exists()


def test_a_full_disk(run):
    """Exit code 4 wherever the system has no room, here for the printed table."""
    command = [Path(sys.executable).with_name("tune-softmax"), "results", run.path]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4
    assert "No space left on device; make room" in message_of("", done.stderr)


def test_bytes_are_not_printed_on_a_terminal(run, refused, monkeypatch):
    """Parquet needs a file."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "add --output FILE" in refused("results", run.path.name, "--format", "parquet")


def test_a_run_in_use(run, refused):
    """Exit code 6, with process and host; the writer is not disturbed."""
    with run.writing():
        message = refused("resume", "run", code=6)
    assert message.startswith(f"run: process {os.getpid()} on {socket.gethostname()} (since ")


# Datasets


def _replace(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def _cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _exchange(folder):
    images, labels = folder / TRAIN_IMAGES, folder / TRAIN_LABELS
    swapped = images.read_bytes(), labels.read_bytes()
    labels.write_bytes(swapped[0])
    images.write_bytes(swapped[1])


def _labels(*labels):
    return gzip.compress(b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + bytes(labels))


# What has become of the folder of IDX files, and what the message says.
WRONG_DATA = {
    "images missing": (
        lambda folder: (folder / TRAIN_IMAGES).unlink(),
        "images: lacks train-images-idx3-ubyte",
    ),
    "truncated": (_cut(TRAIN_IMAGES, 300), TRAIN_IMAGES),
    "empty": (_replace(TRAIN_LABELS, b""), "is empty (0 bytes)"),
    "a web page": (_replace(TRAIN_IMAGES, b"<!DOCTYPE html>"), TRAIN_IMAGES),
    "trailing garbage": (
        lambda folder: _replace(TRAIN_LABELS, (folder / TRAIN_LABELS).read_bytes() + b"x")(folder),
        TRAIN_LABELS,
    ),
    "not IDX": (
        _replace(TRAIN_IMAGES, gzip.compress(b"hello" * 9)),
        "must begin with 00 00 08 03",
    ),
    "exchanged": (_exchange, "were images and labels exchanged?"),
    "too few labels": (_replace(TRAIN_LABELS, _labels(0, 1, 2)), "30 images"),
    "one class": (_replace(TRAIN_LABELS, _labels(*[1] * 30)), "at least 2 classes"),
    "a gap in the classes": (_replace(TRAIN_LABELS, _labels(*[0, 1, 9] * 10)), "class '2' has 0"),
    "a billion images": (
        _replace(TRAIN_IMAGES, gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3)),
        TRAIN_IMAGES,
    ),
    "no test labels": (lambda folder: (folder / TEST_LABELS).unlink(), "lacks t10k-labels-idx1"),
    "unseen test class": (_replace(TEST_LABELS, _labels(0, 1, 2, 3, 0, 1)), "but 3 is not"),
}


@pytest.mark.parametrize(("harm", "expected"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_a_wrong_dataset_file(folder, images, refused, harm, expected):
    """The message names the file and what is wrong with it."""
    harm(images)
    (folder / "idx.yaml").write_text(IDX)
    message = refused("train", "idx.yaml")
    assert message.startswith(str(images))
    assert expected in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("path: nowhere", "nowhere: must be a folder that holds train-images-idx3-ubyte, but do"),
        ("path: notes.txt", "but is not a folder"),
        ("path: images, validation: 30", "validation must leave images on both sides, 1 to 29 of"),
        ("path: images, validation: 29", "leaves none of class"),
    ],
)
def test_a_dataset_that_cannot_be_had_as_asked(folder, images, refused, options, expected):
    """A missing folder, and a validation set that leaves too little."""
    assert images.is_dir()
    (folder / "idx.yaml").write_text(ONE.replace("digits", f"idx, {options}"))
    assert expected in refused("train", "idx.yaml")


def test_a_sound_dataset_is_trained_on(folder, images, monkeypatch, capsys):
    """The folder that the other tests harm is not refused by itself."""
    assert images.is_dir()
    (folder / "idx.yaml").write_text(IDX)
    monkeypatch.setattr(sys, "argv", ["tune-softmax", "train", "idx.yaml"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert "test images: loss" in capsys.readouterr().out


def test_a_batch_larger_than_the_training_set(folder, images, refused):
    """`train` refuses what `search` refuses, and says so before it trains."""
    assert images.is_dir()
    (folder / "idx.yaml").write_text(IDX.replace("batch_size: 8", "batch_size: 26"))
    assert refused("train", "idx.yaml") == (
        "idx: space.batch_size: at most the 25 training images of idx, got 26; lower it, or hold "
        "out less"
    )


def test_a_download_without_a_network(folder, refused, monkeypatch):
    """The message names dataset and folder, and how to go on without a network."""
    # Python keeps the proxies of the first download for all later ones.
    monkeypatch.setattr(urllib.request, "_opener", None)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    (folder / "public.yaml").write_text(ONE.replace("digits", "fashion-mnist"))
    data_dir = folder.parent / f"{folder.name}-data"
    data_dir.mkdir()
    message = refused("train", "public.yaml", "--data-dir", data_dir)
    assert "train-images-idx3-ubyte" in message
    assert str(data_dir) in message


# Clusters and what is asked of them


def closed_port():
    """Return a port of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("address", ["nonsense", "host", "host:", ":6379", "host:port", "a:b:c"])
def test_an_address_that_is_none(refused, address):
    """The message shows the form."""
    message = refused("search", "many.yaml", "--address", address)
    assert message.startswith(f"--address {address!r}: write HOST:PORT")


def test_an_address_where_nothing_listens(refused):
    """The message says so at once, and how to start a cluster there."""
    address = f"127.0.0.1:{closed_port()}"
    message = refused("search", "many.yaml", "--address", address)
    assert message.startswith(f"--address {address}: no Ray cluster answers there")


IMPOSSIBLE = {
    "--cpus-per-pack 9999 --gpus-per-pack 1": (
        "a pack asks for 9999 CPUs and 1 GPUs on one node; the largest of 1 has"
    ),
    "": "space.batch_size: at most the 1,198 training images of digits, got up to 5,000",
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("options", "expected"), IMPOSSIBLE.items())
def test_a_request_that_can_never_be_met(folder, options, expected):
    """Refused with what was asked and what there is, before a run folder is made."""
    text = MANY if options else MANY.replace("64", "{choice: [64, 5000]}")
    (folder / "many.yaml").write_text(text)
    before = snapshot(folder)
    command = [Path(sys.executable).with_name("tune-softmax"), "search", "many.yaml"]
    done = subprocess.run(
        [*command, *options.split()], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert expected in message_of(done.stdout, done.stderr)
    assert snapshot(folder) == before
