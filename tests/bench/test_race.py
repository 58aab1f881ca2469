"""The race of the engine alone: every configuration ends, and ASHA's counts hold."""

import json
import subprocess
import sys

import pytest
import torch

from tune_softmax.bench import race, task
from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.race import NUM_EPOCHS, bench_race, format_table, to_json
from tune_softmax.engine import cpu_kernels
from tune_softmax.engine.cpu_group import CpuGroup
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.torch_group import LinearGroup
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.sections import Asha
from tune_softmax.scheduler import dispatcher

SMALL = {"num_images": 64, "num_validation": 32}


@pytest.fixture(scope="module")
def measured():
    """Race 200 configurations in packs of 16, and count the packs."""
    lines = []
    return bench_race(num_trials=200, pack_size=16, **SMALL, on_progress=lines.append), lines


def test_every_configuration_ends_once(measured):
    """On a rung or after its last epoch; and their epochs are those that were trained."""
    found, lines = measured
    assert sum(found.ends.values()) == 200
    assert {epochs for epochs, count in found.ends.items() if count} <= {1, 4, 16, NUM_EPOCHS}
    assert sum(epochs * count for epochs, count in found.ends.items()) == found.num_epochs
    assert lines[-1].startswith("200 of 200 trials")
    assert found.seconds > 0


def test_most_end_on_the_first_rung(measured):
    """About three in four, a few more than that being kept before others have come."""
    found, _ = measured
    assert 200 / 2 < found.ends[1] < 200 * 0.8
    assert found.ends[1] > found.ends[4] > found.ends[16]


def test_a_pack_s_size_changes_no_order_of_things():
    """One trial at a time, or all at once: each ends once."""
    for pack_size in (1, 30):
        found = bench_race(num_trials=30, pack_size=pack_size, **SMALL)
        assert sum(found.ends.values()) == 30


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"num_trials": 0}, "num_trials must be"), ({"device": "tpu"}, "device must be cpu, cuda")],
)
def test_what_cannot_be_is_refused(options, reason):
    """With its rule and the value."""
    with pytest.raises(ExperimentError, match=reason):
        bench_race(**options, **SMALL)


def test_the_table_has_what_was_measured(measured):
    """And JSON has it with its conditions."""
    found, _ = measured
    conditions = Conditions.now()
    table = format_table(found, conditions)
    assert "200 configurations through ASHA by the engine alone, packs of 16 in float32" in table
    assert f"{found.num_epochs:,}" in table
    assert json.loads(to_json(found, conditions))["ends"]["1"] == found.ends[1]


def test_it_runs_where_only_torch_is(capsys):
    """As a module, with options of its own; a mistake has its exit code."""
    command = [sys.executable, "-m", "tune_softmax.bench.race", "--num-trials", "5"]
    done = subprocess.run(
        [*command, "--num-images", "64", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["num_trials"] == 5
    assert "5 of 5 trials" in done.stderr
    assert race.main(["--device", "tpu"]) == ExperimentError.exit_code
    assert "device must be" in capsys.readouterr().err


def test_packs_are_those_of_a_search(monkeypatch):
    """On one thread, where our own kernels train if there are any."""
    threads, kinds = set(), set()

    class Watched(Pack):
        def train_epoch(self):
            threads.add(torch.get_num_threads())
            kinds.update(type(group) for group in self._groups)
            return super().train_epoch()

    monkeypatch.setattr(race, "Pack", Watched)
    bench_race(num_trials=3, pack_size=3, **SMALL)
    assert threads == {1}
    assert kinds == {CpuGroup if cpu_kernels.find() else LinearGroup}


def test_it_asks_what_searches_are_asked():
    """What it repeats, for it needs torch alone, is what a search and `bench search` have."""
    assert dispatcher.PARK_FRACTION == race.PARK_FRACTION
    assert tuple(dispatcher.MAX_AUTO_PACK.values()) == tuple(race.PACK_SIZES.values())
    assert (task.BATCH_SIZES, task.NUM_EPOCHS) == (race.BATCH_SIZES, NUM_EPOCHS)
    asked = Asha(grace_period=task.GRACE_PERIOD, reduction_factor=task.REDUCTION_FACTOR)
    halving = race._Halving()
    assert asked.rungs(NUM_EPOCHS) == halving.rungs(NUM_EPOCHS)
    assert asked.reduction_factor == halving.reduction_factor
