"""The bench of overhead: searches that never were, and what its table says of real parts."""

import json
import re

import pytest

from tune_softmax.bench import histories, overhead
from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.overhead import Row, bench_overhead, format_table, to_json
from tune_softmax.errors import ExperimentError
from tune_softmax.metrics import State
from tune_softmax.run import results

CONDITIONS = Conditions.now()
ROWS = [
    Row("tune-softmax --help", (0.2, 0.1, 0.3), 0.3),
    Row("import torch", (1.5, 2.5, 1.0)),
]


def test_a_run_that_never_was_is_read_as_one(tmp_path):
    """Of 64 trials, 48 were stopped after one epoch, 12 after four, and 4 are at 16 or more."""
    histories.write_run(tmp_path / "run", 65)
    run = results.load(tmp_path / "run")
    assert len(run.trials) == 65
    epochs = run.epochs.groupby("trial")["epoch"].max().head(64)
    assert epochs.value_counts().to_dict() == {1: 48, 4: 12, 16: 3, 20: 1}
    assert run.count(State.COMPLETE) == 1
    assert run.count(State.PRUNED) == 64


def test_a_study_that_never_was_goes_on():
    """It knows its trials, and asks for a pack's worth of new ones."""
    study = histories.past_study(10)
    assert study.num_asked == 10
    asked = study.ask(histories.PACK_SIZE, {})
    assert list(asked) == list(range(10, 10 + histories.PACK_SIZE))


def test_the_table_is_in_milliseconds_with_targets():
    """What was promised stands beside what was measured."""
    lines = format_table(ROWS, CONDITIONS).split("\n\n")[1].splitlines()
    header, first, second = (re.split("  +", line.rstrip()) for line in lines)
    assert header == ["milliseconds", "median", "min to max", "target"]
    assert first == ["tune-softmax --help", "200.0", "100.0 to 300.0", "300"]
    assert second == ["import torch", "1,500.0", "1,000.0 to 2,500.0"]
    assert "commit " in format_table(ROWS, CONDITIONS)


def test_json_holds_every_repeat():
    """Seconds, as they were measured."""
    content = json.loads(to_json(ROWS, CONDITIONS))
    assert content["rows"][0] == {
        "name": "tune-softmax --help",
        "seconds": [0.2, 0.1, 0.3],
        "target_s": 0.3,
    }
    assert content["conditions"]["packages"]["tune-softmax"]


def test_the_ledger_and_the_sampler_are_the_real_ones(tmp_path):
    """Parts that need no other process take some time, each under its own name."""
    parts = overhead._time_ledger(tmp_path / "run.db") | overhead._time_sampler(100)
    assert list(parts) == [
        "ledger: hand 64 trials out",
        "ledger: record an epoch of 64",
        "Optuna: ask for one, 100 known",
    ]
    assert all(0 < seconds < 5 for seconds in parts.values())


def test_an_import_is_timed_in_a_fresh_process():
    """Modules that this process has loaded already take their time all the same."""
    assert overhead._time_import("statistics") > 1e-4


@pytest.mark.parametrize("name", ["repeats", "num_trials"])
def test_wrong_options_are_refused(name):
    """Before anything is measured."""
    with pytest.raises(ExperimentError, match=f"bench: {name} must be at least 1, got 0"):
        bench_overhead(**{name: 0})


@pytest.mark.slow
@pytest.mark.ray
def test_every_part_is_measured():
    """Commands, imports, Ray, ledger, sampler, and a real search."""
    rows = bench_overhead(repeats=1, num_trials=100)
    names = [row.name for row in rows]
    for begin in ("tune-softmax results, 100 trials", "import ray.tune", "Ray: stop", "ledger: "):
        assert [name for name in names if name.startswith(begin)], begin
    by_name = {row.name: row.seconds[0] for row in rows}
    assert all(seconds > 0 for seconds in by_name.values())
    for way in ("fast", "plain"):
        assert by_name[f"Ray: start, {way}"]
        begin = f"search of 64 on digits, {way} start"
        whole, *parts = (value for name, value in by_name.items() if name.startswith(begin))
        until, training_and_more, training, end = parts
        assert until + training_and_more + end == pytest.approx(whole, abs=0.01)
        assert training < training_and_more
    assert {row.name for row in rows if row.target_s} == {
        "tune-softmax --help",
        "tune-softmax validate",
        "tune-softmax results, 100 trials",
        "tune-softmax results, 100 trials, CSV",
    }
