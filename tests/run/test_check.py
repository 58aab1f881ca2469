"""`check`: every rule of a run, each broken by itself and named with its place."""

import json
import math
import os
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa

from tune_softmax import cli
from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, RunInUseError
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, FinalTest, Report, State
from tune_softmax.run.check import CheckedRun, check
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.postgresql import ServerLocation
from tune_softmax.run.tables import EPOCHS, EVENTS, META, TESTS, TRIALS

EXPERIMENT = """
dataset: {name: digits}
space:
  batch_size: {choice: [32, 64]}
  num_epochs: {int: [1, 5]}
  learning_rate: {uniform: [0.1, 1]}
search: {num_trials: 7}
"""
CONFIG = Config(batch_size=64, num_epochs=3, learning_rate=0.5)
METRICS = EpochMetrics(1.0, 0.5, 1.25, 0.25, 0.125)


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a finished search, for a ledger to be made in."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.experiment.write_text(parse(EXPERIMENT, "run.yaml").to_yaml())
    folder.environment.write_text(json.dumps({"dataset_checksum": "abc"}))
    return folder


def meta_of(folder):
    """Return what identifies a run, as a search records it."""
    return {"dataset_checksum": "abc", "experiment": folder.experiment.read_text()}


@pytest.fixture
def run(folder):
    """Return a finished search: trial 0 complete, 1 and 4 stopped early, 2 and 3 failed."""
    with closing(Ledger.create(folder.ledger, meta_of(folder))) as ledger:
        fill(ledger)
        ledger.event("ended", reason="finished", seconds=1.5)
    return folder


def fill(ledger):
    """Write the trials of a finished search."""
    ledger.event("started", places=1, pack_size=4)
    ledger.hand_out(0, dict.fromkeys(range(4), CONFIG))
    nowhere = replace(METRICS, train_loss=math.nan, validation_loss=math.inf)
    ledger.record(
        0,
        [
            *(Report(n, 1, METRICS, rung=1) for n in (0, 1, 2)),
            *(Report(n, 2, METRICS, rung=1) for n in (0, 1)),
            Report(0, 3, METRICS, State.COMPLETE, 3),
            Report(2, 2, nowhere, State.FAIL, 1, "diverged: train_loss nan"),
        ],
    )
    ledger.finish([1], State.WAITING)
    ledger.hand_out(1, {1: CONFIG})
    ledger.record(1, [Report(1, 1, METRICS, rung=1), Report(1, 2, METRICS, State.PRUNED, 2)])
    ledger.finish([3], State.FAIL, "it raised")
    ledger.hand_out(2, {4: Config(batch_size=32, num_epochs=5, learning_rate=0.1)})
    ledger.record(2, [Report(4, 1, METRICS, State.PRUNED, 1)])


def sealed(run, table, key, like=None, **changes):
    """Change or add a row with a right checksum and seal, as only a defect of ours would."""
    with closing(Ledger.open(run.ledger, writable=True)) as ledger, ledger._transaction() as batch:
        names = [column.name for column in table.primary_key]
        where = [table.c[name] == value for name, value in zip(names, like or key, strict=True)]
        found = batch._connection.execute(sa.select(table).where(*where)).mappings().one_or_none()
        row = {name: value for name, value in dict(found or {}).items() if name != "checksum"}
        batch.put(table, [{**row, **dict(zip(names, key, strict=True)), **changes}])


def config_text(**changes):
    """Return a configuration as the ledger holds it."""
    return json.dumps(asdict(CONFIG) | changes)


def broken(run):
    """Return the rules that a check names."""
    with pytest.raises(DamagedRunError) as caught:
        check(run.path)
    first, *rules = str(caught.value).splitlines()
    assert caught.value.exit_code == 5
    count = "one rule is" if len(rules) == 1 else f"{len(rules)} rules are"
    assert first == (
        f"{run.path}: {count} broken; restore the folder from a copy, or search again into "
        "another one:"
    )
    return [rule.removeprefix("  ") for rule in rules]


# Runs that keep every rule


def test_a_finished_run_keeps_every_rule(run):
    """Complete, stopped, diverged and failed trials are all as they may be."""
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    assert check(run.path) == CheckedRun(num_trials=5, num_epochs=8)
    assert {file.name: file.read_bytes() for file in run.path.iterdir()} == before


def test_a_run_is_checked_while_a_search_writes_it(folder):
    """Running, waiting and parked trials are as they may be until the last event."""
    with closing(Ledger.create(folder.ledger, meta_of(folder))) as ledger:
        assert check(folder.path) == CheckedRun(0, 0)
        ledger.event("started")
        ledger.hand_out(0, dict.fromkeys(range(4), CONFIG))
        assert check(folder.path) == CheckedRun(4, 0)
        ledger.record(0, [Report(n, 1, METRICS) for n in (0, 1)])
        ledger.record(0, [Report(2, 1, METRICS, State.PARKED, 1)])
        ledger.finish([1], State.WAITING)
        assert check(folder.path) == CheckedRun(4, 3)
        ledger.finish([0, 3], State.WAITING)
        ledger.event("ended", reason="stopped by SIGINT")
        assert check(folder.path) == CheckedRun(4, 3)


def test_a_cluster_that_was_lost_leaves_trials_running(run):
    """The search could not say what became of them, and a resume trains them again."""
    sealed(run, TRIALS, (4,), state="RUNNING", rung=None)
    sealed(run, EVENTS, (2,), detail='{"reason": "lost"}')
    assert check(run.path) == CheckedRun(5, 8)


def test_a_run_in_a_database_is_checked_too(folder, postgresql):
    """By the same rules."""
    folder.place_ledger(ServerLocation.choose(postgresql.url, "checked"))
    with closing(Ledger.create(folder.ledger, meta_of(folder))) as ledger:
        fill(ledger)
    assert check(folder.path) == CheckedRun(5, 8)
    sealed(folder, TRIALS, (0,), error="odd")
    assert broken(folder) == [
        "table trials, number 0: is COMPLETE, but has a reason to fail: 'odd'"
    ]


def test_trials_of_another_kind_of_run_need_not_be_of_the_space(folder):
    """Fixed lists of trials may stop early by patience, and bring test-set results."""
    meta = meta_of(folder) | {"kind": "remedies"}
    test = FinalTest(1.0, 0.75, ((3, 1), (1, 3)))
    config = replace(CONFIG, l1=0.5)
    with closing(Ledger.create(folder.ledger, meta)) as ledger:
        ledger.event("started")
        ledger.hand_out(0, dict.fromkeys(range(9), config))
        ledger.event("test_opened", command="remedies")
        ledger.record(0, [Report(n, 1, METRICS, State.COMPLETE, test=test) for n in range(9)])
        ledger.event("ended", reason="finished")
    assert check(folder.path) == CheckedRun(9, 9)


# Each rule by itself: the row that breaks it, and what is said of it.

T, E = "table trials, number", "table epochs, number"
TEST = {"loss": 1.0, "accuracy": 0.75, "confusion": "[[3, 1], [1, 3]]"}
UNOPENED = "table tests: has rows, but no event says that the test set was opened"
RULES = {
    "gap": (
        (TRIALS, (6,)),
        {"like": (4,), "rung": None},
        [
            "table trials: has no number 5, though there is 6",
            f"{T} 6: is PRUNED after 0 of 5 epochs",
        ],
    ),
    "pack": (
        (TRIALS, (0,)),
        {"pack": -1},
        [f"{T} 0: must have a pack >= 0 and attempts >= 1, got -1 and 1"],
    ),
    "attempts": (
        (TRIALS, (0,)),
        {"attempts": 0},
        [f"{T} 0: must have a pack >= 0 and attempts >= 1, got 0 and 0"],
    ),
    "rung": (
        (TRIALS, (0,)),
        {"rung": 4},
        [f"{T} 0: must be on a rung within its 3 epochs, got 4"],
    ),
    "reason": ((TRIALS, (2,)), {"error": None}, [f"{T} 2: is FAIL without a reason"]),
    "no reason": (
        (TRIALS, (4,)),
        {"error": "x"},
        [f"{T} 4: is PRUNED, but has a reason to fail: 'x'"],
    ),
    "complete": (
        (TRIALS, (0,)),
        {"config": config_text(num_epochs=4)},
        [f"{T} 0: is COMPLETE after 3 of 4 epochs"],
    ),
    "too many": (
        (TRIALS, (0,)),
        {"config": config_text(num_epochs=2)},
        [
            f"{T} 0: has 3 epochs, but its configuration asks for 2",
            f"{T} 0: is COMPLETE after 3 of 2 epochs",
        ],
    ),
    "pruned late": (
        (TRIALS, (0,)),
        {"state": "PRUNED"},
        [f"{T} 0: is PRUNED after 3 of 3 epochs"],
    ),
    "pruned between": (
        (EPOCHS, (4, 2)),
        {"like": (4, 1)},
        [f"{T} 4: is PRUNED after 2 epochs, but on the rung of 1"],
    ),
    "never ended": (
        (TRIALS, (4,)),
        {"state": "RUNNING"},
        [f"{T} 4: is RUNNING, though the last event says that the search has ended (finished)"],
    ),
    "parked": (
        (TRIALS, (4,)),
        {"state": "PARKED"},
        [f"{T} 4: is PARKED, though the last event says that the search has ended (finished)"],
    ),
    "waiting": (
        (TRIALS, (0,)),
        {"state": "WAITING"},
        [
            f"{T} 0: is WAITING after 3 of 3 epochs",
            f"{T} 0: is WAITING, though the last event says that the search has ended (finished)",
        ],
    ),
    "gap in epochs": (
        (EPOCHS, (4, 4)),
        {"like": (4, 1)},
        [
            f"{T} 4: has epoch 4, but not 2, 3",
            f"{T} 4: is PRUNED after 4 epochs, but on the rung of 1",
        ],
    ),
    "epoch zero": (
        (EPOCHS, (0, 0)),
        {"like": (0, 1)},
        [f"{T} 0: has epoch 0, but epochs begin with 1"],
    ),
    "not finite": (
        (EPOCHS, (1, 2)),
        {"train_loss": None, "seconds": math.inf},
        [f"{E} 1, epoch 2: cannot have train_loss nan, seconds inf"],
    ),
    "negative": (
        (EPOCHS, (1, 2)),
        {"validation_loss": -0.5},
        [f"{E} 1, epoch 2: cannot have validation_loss -0.5"],
    ),
    "accuracy": (
        (EPOCHS, (0, 1)),
        {"validation_accuracy": 1.5},
        [f"{E} 0, epoch 1: cannot have validation_accuracy 1.5"],
    ),
    "outside": (
        (TRIALS, (4,)),
        {"config": config_text(learning_rate=2.0)},
        [f"{T} 4: has learning_rate 2.0, which is not in the space"],
    ),
    "constant": (
        (TRIALS, (4,)),
        {"config": config_text(l1=0.5, batch_size=48)},
        [
            f"{T} 4: has batch_size 48, which is not in the space",
            f"{T} 4: has l1 0.5, which is not in the space",
        ],
    ),
    "type": (
        (TRIALS, (4,)),
        {"config": config_text(num_epochs="5")},
        [
            f"{T} 4: cannot be read (num_epochs is '5')",
            "table epochs, number 4: belongs to no trial",
        ],
    ),
    "test opened": ((TESTS, (0,)), TEST, [UNOPENED]),
    "test of a stopped trial": (
        (TESTS, (4,)),
        TEST,
        ["table tests, number 4: must belong to a COMPLETE trial, got PRUNED", UNOPENED],
    ),
    "test loss": (
        (TESTS, (0,)),
        TEST | {"loss": None},
        ["table tests, number 0: cannot have loss nan and accuracy 0.75", UNOPENED],
    ),
    "test accuracy": (
        (TESTS, (0,)),
        TEST | {"accuracy": 0.5},
        [
            "table tests, number 0: has an accuracy of 0.5, but its confusion matrix another",
            UNOPENED,
        ],
    ),
    "confusion": (
        (TESTS, (0,)),
        TEST | {"confusion": "[[3, 1], [1]]"},
        [
            "table tests, number 0: must have a square confusion matrix of numbers of images",
            UNOPENED,
        ],
    ),
    "empty confusion": (
        (TESTS, (0,)),
        TEST | {"confusion": "[]"},
        [
            "table tests, number 0: must have a square confusion matrix of numbers of images",
            UNOPENED,
        ],
    ),
    "time": ((EVENTS, (1,)), {"at": "noon"}, ["table events, id 1: must have a time, got 'noon'"]),
    "ended twice": (
        (EVENTS, (3,)),
        {"like": (2,)},
        ["table events, id 3: ends what was not started"],
    ),
    "experiment": (
        (META, ("experiment",)),
        {"value": parse(EXPERIMENT.replace("64", "16"), "run.yaml").to_yaml()},
        [
            "experiment.yaml: its space or model is not that of the ledger's table meta",
            *(f"{T} {n}: has batch_size 64, which is not in the space" for n in range(4)),
        ],
    ),
    "checksum": (
        (META, ("dataset_checksum",)),
        {"value": "abd"},
        ["environment.json: has dataset_checksum abc, the ledger's table meta abd"],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_named_with_its_place(run, name):
    """Exactly that rule, and nothing else is objected to."""
    (table, key), changes, expected = RULES[name]
    sealed(run, table, key, **changes)
    assert broken(run) == expected


def test_an_experiment_that_cannot_be_read_is_named(run):
    """In the ledger or in its file, with what is wrong."""
    sealed(run, META, ("experiment",), value="space: 7")
    (rule,) = broken(run)
    assert rule.startswith("table meta, key experiment")
    run.experiment.unlink()
    (rule,) = broken(run)
    assert "experiment.yaml: cannot be read: No such file" in rule


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "environment.json: cannot be read (No such file or directory)"),
        ("{", "environment.json: is not what a search writes (JSONDecodeError"),
        ("[]", "environment.json: is not what a search writes (TypeError"),
        ("{}", "environment.json: is not what a search writes (KeyError"),
    ],
)
def test_a_damaged_description_of_the_environment_is_named(run, content, expected):
    """It is part of what a run says of itself."""
    run.environment.unlink()
    if content is not None:
        run.environment.write_text(content)
    (rule,) = broken(run)
    assert rule.startswith(expected)


def test_more_trials_than_were_asked_for_are_named(run):
    """And what the experiment asks for."""
    for number in range(5, 8):
        sealed(run, TRIALS, (number,), like=(3,))
    assert broken(run) == ["table trials: has 8 rows, the experiment asks for 7"]


def test_a_search_without_asha_stops_no_trial_early(run):
    """A PRUNED trial contradicts its experiment."""
    text = parse(EXPERIMENT.replace("7}", "7, asha: none}"), "run.yaml").to_yaml()
    sealed(run, META, ("experiment",), value=text)
    rule = "is PRUNED, but the experiment stops no trial early"
    assert broken(run) == [f"{T} 1: {rule}", f"{T} 4: {rule}"]


def test_a_ledger_that_does_not_know_its_data_or_experiment_is_named(folder):
    """Nobody could resume it."""
    Ledger.create(folder.ledger, {}).close()
    assert broken(folder) == [
        "table meta: has no dataset_checksum",
        "table meta: has no experiment",
    ]


def test_what_is_altered_and_what_contradicts_itself_are_named_together(run):
    """Checksums first, then the rules, all at once."""
    with closing(sqlite3.connect(run.ledger)) as connection, connection:
        connection.execute("UPDATE trials SET attempts = 0 WHERE number = 0")
        connection.execute("DELETE FROM epochs WHERE number = 0 AND epoch = 2")
    assert broken(run) == [
        "table trials, number 0: is not what was written, its checksum differs",
        "table epochs: has 7 rows where 8 were written",
        f"{T} 0: must have a pack >= 0 and attempts >= 1, got 0 and 0",
        f"{T} 0: has epoch 3, but not 2",
    ]


def test_what_sqlites_own_check_finds_is_named(run):
    """An index that does not fit its table is damage that no row shows."""
    with closing(sqlite3.connect(run.ledger)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'config TEXT NOT', 'config TEXT')"
        )
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'rung INTEGER', 'rung INTEGER NOT NULL')"
        )
    assert all(rule.startswith("run.db: SQLite's integrity check: ") for rule in broken(run))


def test_a_list_that_would_be_endless_is_cut(run):
    """A hundred rules, and how many more."""
    with closing(Ledger.open(run.ledger, writable=True)) as ledger:
        ledger.hand_out(9, dict.fromkeys(range(5, 255), CONFIG))
    with pytest.raises(DamagedRunError) as caught:
        check(run.path)
    lines = str(caught.value).splitlines()
    assert "251 rules are broken" in lines[0]
    assert (len(lines), lines[-1]) == (102, "  and 151 more")


# The command


@pytest.fixture
def command(monkeypatch, capsys):
    """Return the function that runs a command line, and gives its exit code and its output."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tune-softmax", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as left:
            return left.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def test_the_command_says_how_much_it_checked(run, command):
    """Exit code 0 and one line."""
    assert command("check", run.path) == (0, "5 trials, 8 epochs: all rules hold\n", "")


def test_the_command_names_what_is_broken(run, command):
    """Exit code 5, all of it on the error output."""
    sealed(run, TRIALS, (2,), error=None)
    code, output, error = command("check", run.path)
    assert (code, output) == (5, "")
    assert error.startswith(f"error: {run.path}: one rule is broken; ")
    assert error.endswith("\n  table trials, number 2: is FAIL without a reason\n")


def test_there_is_nothing_to_check_where_there_is_no_run(tmp_path, command):
    """Exit code 2."""
    assert command("check", tmp_path)[0] == 2
    with pytest.raises(ResultsError, match="there is no such folder"):
        check(tmp_path / "nowhere")


def test_a_lost_end_is_given_up_by_the_command_alone(folder, command, in_child):
    """Every command refuses the run, naming this one, until it was told to go on."""

    def write_and_die():
        fill(Ledger.create(folder.ledger, meta_of(folder)))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == -signal.SIGKILL
    assert command("check", folder.path) == (0, "5 trials, 8 epochs: all rules hold\n", "")
    log = folder.path / "run.db-wal"
    os.truncate(log, log.stat().st_size // 2)
    for name in ("check", "results", "resume"):
        code, _, error = command(name, folder.path)
        assert (code, error.count("\n")) == (5, 1)
        assert f"`tune-softmax check {folder.path} --accept-loss`" in error
    code, output, error = command("check", folder.path, "--accept-loss")
    assert (code, error) == (0, "")
    assert output.endswith("all rules hold\n")
    assert command("check", folder.path) == (0, output, "")
    assert command("results", folder.path)[0] in {0, 2}


def test_nothing_is_given_up_while_somebody_writes(run, command):
    """Exit code 6, as for every command that writes."""
    with run.writing():
        code, _, error = command("check", run.path, "--accept-loss")
    assert code == RunInUseError.exit_code
    assert "writes this run" in error
