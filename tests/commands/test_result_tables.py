"""What is printed of results: tables for people, and files for programs."""

import io
import json
import math
import sys
from contextlib import closing

import pandas as pd
import pytest
from rich.console import Console

from tune_softmax import cli
from tune_softmax.commands.result_tables import (
    confusion_table,
    export,
    most_confused,
    summary,
    trial_table,
)
from tune_softmax.config import Config
from tune_softmax.errors import ResultsError
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.results import load

EXPERIMENT = """
dataset: {name: digits}
space:
  batch_size: {choice: [16, 64]}
  num_epochs: {int: [1, 8]}
  learning_rate: {log_uniform: [1e-3, 1]}
  learning_rate_schedule: {choice: [constant, cosine]}
search: {num_trials: 4}
"""
LOSSES = {
    0: (State.COMPLETE, 0.1 + 0.2),
    1: (State.PRUNED, 1 / 3),
    2: (State.FAIL, math.inf),
    3: (State.FAIL, math.nan),
}


@pytest.fixture
def make_run(tmp_path):
    """Return the function that makes a run whose trials had one loss each, or several."""

    def make(losses=LOSSES, name="run", text=EXPERIMENT):
        folder = RunFolder(tmp_path / name)
        folder.create()
        folder.experiment.write_text(parse(text, "x.yaml").to_yaml())
        config = Config(batch_size=16, num_epochs=2, learning_rate=1 / 30)
        with closing(Ledger.create(folder.ledger, {})) as ledger:
            if losses:
                ledger.hand_out(0, dict.fromkeys(losses, config))
            for number, (state, loss) in losses.items():
                error = "Traceback\n  ...\nValueError: [/odd] bad" if state is State.FAIL else None
                for epoch, value in enumerate(
                    curve := [loss] if isinstance(loss, float) else loss, 1
                ):
                    metrics = EpochMetrics(value, 0.5, value, 0.75, 0.5)
                    now = state if epoch == len(curve) else State.RUNNING
                    ledger.record(0, [Report(number, epoch, metrics, now, epoch, error)])
        return load(folder.path)

    return make


def shown(*things):
    """Return what a console without markup prints."""
    console = Console(file=io.StringIO(), width=140, markup=False)
    console.print(*things)
    return console.file.getvalue()


def test_csv_holds_every_number_exactly(make_run):
    """Read back, the file gives the dataframe."""
    found = make_run()
    read = pd.read_csv(
        io.StringIO(export(found.trials, "csv")),
        dtype=found.trials.dtypes.to_dict(),
    )
    pd.testing.assert_frame_equal(read, found.trials, check_exact=True)


def test_parquet_holds_every_number_and_type(make_run):
    """Read back, the bytes give the dataframe."""
    found = make_run()
    read = pd.read_parquet(io.BytesIO(export(found.trials, "parquet")))
    pd.testing.assert_frame_equal(read, found.trials, check_exact=True)


def test_json_is_a_list_of_rows_that_any_reader_takes(make_run):
    """Values are exact, whole numbers are whole, and what is missing or infinite is null."""
    found = make_run()

    def refuse(word):
        raise AssertionError(word)

    rows = json.loads(export(found.trials, "json"), parse_constant=refuse)
    assert [list(row) for row in rows] == [list(found.trials)] * 4
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["last_validation_loss"] == 0.1 + 0.2
    assert rows[0]["learning_rate"] == 1 / 30
    assert (type(rows[0]["batch_size"]), rows[0]["rung"], rows[0]["error"]) == (int, 1, None)
    assert [row["last_validation_loss"] for row in rows[2:]] == [None, None]
    assert rows[3]["best_epoch"] is None
    assert rows[2]["state"] == "FAIL"


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_run_without_trials_can_be_exported(make_run, form):
    """No rows, but every column where the form has columns."""
    found = make_run({})
    text = export(found.trials, form)
    if form == "json":
        assert json.loads(text) == []
    else:
        read = (
            pd.read_csv(io.StringIO(text)) if form == "csv" else pd.read_parquet(io.BytesIO(text))
        )
        assert list(read) == list(found.trials)
        assert read.empty


def test_another_form_is_refused(make_run):
    """The message lists those there are."""
    with pytest.raises(ResultsError, match="'xml': allowed are table, csv, json, parquet"):
        export(make_run({}).trials, "xml")


def test_the_table_shows_what_was_searched_and_what_came_of_it(make_run):
    """A row a trial, the hyperparameters searched, the state; one that diverged has no rank."""
    found = make_run()
    text = shown(trial_table(found, found.ranked(), "[/red] all"))
    assert text.startswith("[/red] all")
    assert "momentum" not in text
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows == [
        ["0", "0.3000", "0.7500", "1", "complete", "16", "0.03333", "constant"],
        ["1", "0.3333", "0.7500", "1", "stopped", "early", "16", "0.03333", "constant"],
    ]
    complete = found.ranked().head(1)
    assert "complete" not in shown(trial_table(found, complete, "the best"))


def test_a_mean_that_ranks_trials_is_shown(make_run):
    """A column before the last loss, and the epochs that it is of in the summary."""
    curves = {0: [0.9, 0.9, 0.9, 0.9, 0.1], 1: [0.9, 0.9, 0.9, 0.3, 0.5]}
    found = make_run({number: (State.COMPLETE, curve) for number, curve in curves.items()})
    text = shown(trial_table(found, found.ranked(), "all"))
    assert "mean" in text
    assert [line.split()[:4] for line in text.splitlines()[-2:]] == [
        ["1", "0.4000", "0.5000", "0.7500"],
        ["0", "0.5000", "0.1000", "0.7500"],
    ]
    assert "Best: trial 1, validation loss 0.4000 on average of epochs 4 to 5." in summary(found)


def test_the_summary_says_how_it_went_and_what_to_do_next(make_run):
    """Counts, the commonest reason of failure, the best trial, and commands."""
    lines = summary(make_run())
    assert lines[0] == (
        "4 of 4 trials done: 1 complete, 1 stopped early, 2 failed; 4 epochs in all."
    )
    assert lines[1] == "Failed most often because: ValueError: [/odd] bad"
    assert lines[2] == "Best: trial 0, validation loss 0.3000 after epoch 1."
    for verb in ("report", "confirm", "results", "oracle"):
        assert any(f"tune-softmax {verb} " in line for line in lines)


def test_the_summary_of_a_search_cut_short_names_the_command(make_run):
    """Trials that were not handed out count as left, and so do cut off ones."""
    lines = summary(make_run({0: LOSSES[0], 1: (State.RUNNING, 0.5)}))
    assert lines[1].startswith("The time budget ended with 3 trials left: tune-softmax resume ")


def test_a_finished_grid_is_finished(make_run):
    """A grid of two combinations has none left after two, whatever num_trials says."""
    text = (
        "dataset: {name: digits}\n"
        "space: {batch_size: {choice: [16, 64]}, num_epochs: 1, learning_rate: 0.1}\n"
        "search: {num_trials: 50, sampler: grid}\n"
    )
    losses = {0: LOSSES[0], 1: LOSSES[0]}
    assert not any("left" in line for line in summary(make_run(losses, text=text)))


@pytest.mark.parametrize("losses", [{}, {0: LOSSES[3]}, {0: LOSSES[2], 1: LOSSES[3]}])
def test_a_search_without_a_result_still_has_a_summary(make_run, losses):
    """All trials failed: the reason is there, and no best trial is made up."""
    lines = summary(make_run(losses))
    assert not any(line.startswith("Best") for line in lines)
    assert any(line.startswith("Failed most often") for line in lines) == bool(losses)


def test_the_confusion_matrix_has_a_row_for_each_true_class():
    """Zeros are dots, names are whole, and brackets in a name are no markup."""
    counts, names = [[9, 1], [0, 10]], ["[/cat]", "a long name"]
    text = shown(confusion_table(counts, names))
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows == [["0", "[/cat]", "9", "1"], ["1", "a", "long", "name", "·", "10"]]
    assert most_confused(counts, names) == ["Most frequent mistakes: [/cat] as a long name (1)."]
    assert most_confused([[9, 0], [0, 10]], names) == []


def test_the_best_trials_alone_can_be_exported(make_run, monkeypatch, capsysbinary):
    """`--top` holds for files too, the best first."""
    run = make_run().folder.path
    monkeypatch.setattr(
        sys, "argv", ["tune-softmax", "results", str(run), "--top", "2", "--format", "csv"]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert pd.read_csv(io.BytesIO(capsysbinary.readouterr().out))["number"].tolist() == [0, 1]
