"""The bench of scaling: which searches it runs, and what its table says of them."""

import json
import re

import pytest

from tune_softmax.bench import scaling
from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.processes import Memory
from tune_softmax.bench.scaling import Case, Run, Sample, bench_scaling
from tune_softmax.errors import ClusterError, ExperimentError

CONDITIONS = Conditions.now()
MB = 1_000_000


def run(wall_s, driver=(100, 110, 120), run_bytes=2 * MB):
    """Return a search whose driver took so many MB, evenly over its time."""
    samples = tuple(
        Sample(wall_s * i / (len(driver) - 1), Memory(size * MB, 200 * MB, 300 * MB))
        for i, size in enumerate(driver)
    )
    return Run(wall_s, run_bytes, samples)


def measured(*cases):
    """Return rows of the bench from (case, wall seconds) pairs."""
    return scaling._rows(
        [scaling._Measured(case, [run(s) for s in seconds]) for case, seconds in cases]
    )


def trials(number):
    """Return the case of so many trials."""
    return Case("trials", number, number, (), 2)


def test_the_cases_are_those_of_their_parts():
    """Packs share one node's CPUs, nodes have one each, trials run on a Ray of their own."""
    cases = scaling._cases(("trials", "packs", "nodes"), (50, 500))
    assert [case.name for case in cases] == [
        *("1 packs at once", "2 packs at once", "4 packs at once"),
        *("1 nodes", "2 nodes", "3 nodes"),
        *("50 trials", "500 trials"),
    ]
    assert [case.nodes for case in cases] == [(1,), (2,), (4,), (1,), (1, 1), (1, 1, 1), (), ()]
    assert [case.num_trials for case in cases] == [50] * 6 + [50, 500]
    assert [case.max_concurrent_packs for case in cases] == [1, 2, 4, 1, 2, 3, 2, 2]


def test_a_ratio_is_of_seconds_a_trial():
    """Against the part's first row, or the row of 1,000 trials; medians of the repeats."""
    packs = [Case("packs", n, 100, (n,), n) for n in (1, 2)]
    rows = measured((packs[0], [20, 10, 30]), (packs[1], [5]))
    assert [row.ratio for row in rows] == [1.0, 0.25]
    rows = measured((trials(100), [10]), (trials(1_000), [50]), (trials(10_000), [600]))
    assert [row.ratio for row in rows] == pytest.approx([2.0, 1.0, 1.2])
    assert [row.seconds_per_trial for row in rows] == [0.1, 0.05, 0.06]


def test_memory_is_read_around_a_moment():
    """The tenth of the search that ends there; the last sample where none is near."""
    one = run(100, driver=range(100, 201))
    assert one.bytes_at("driver", 0.5) == 145 * MB
    assert one.bytes_at("driver", 0.9) == 185 * MB
    assert one.bytes_at("workers", 0.5) == 200 * MB
    assert run(100, driver=(1, 7)).bytes_at("driver", 0.5) == 7 * MB


def test_the_table_shows_time_disk_and_memory():
    """One line a size, and three curves."""
    rows = measured((trials(100), [10, 12]), (trials(1_000), [60]))
    text = scaling.format_table(rows, CONDITIONS)
    _, table, curves = text.split("\n\n")
    header, first, second = (re.split("  +", line.strip()) for line in table.splitlines())
    assert header[:5] == ["wall s", "min to max", "ms per trial", "ratio", "run folder MB"]
    assert first[:6] == ["100 trials", "11.0", "10.0 to 12.0", "110.0", "1.83", "2.0"]
    assert second[:6] == ["1,000 trials", "60.0", "one run", "60.0", "1.00", "2.0"]
    assert second[6:] == ["110 to 120", "200 to 200", "300 to 300"]
    assert len(curves.splitlines()) == 6
    assert "1,000 trials  driver    ▇▇█  up to 120 MB" in curves


def test_json_holds_every_sample():
    """Times and bytes, every repeat apart."""
    content = json.loads(scaling.to_json(measured((trials(100), [10, 12])), CONDITIONS))
    (row,) = content["rows"]
    assert row["name"] == "100 trials"
    assert [one["wall_s"] for one in row["runs"]] == [10, 12]
    assert row["runs"][1]["samples"][2] == {
        "seconds": 12,
        "memory": {"driver": 120 * MB, "workers": 200 * MB, "others": 300 * MB},
    }


def test_memory_is_drawn(tmp_path):
    """A PNG, with one picture a size."""
    scaling.draw_memory(measured((trials(100), [10]), (trials(200), [20])), tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["gpus"]}, "scaling has no part 'gpus'; known: packs, nodes, trials"),
        ({"repeats": 0}, "repeats and every number of trials must be at least 1"),
        ({"trials": [10, 0]}, "repeats and every number of trials must be at least 1"),
        ({"trials": []}, "repeats and every number of trials must be at least 1"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    """Before anything runs."""
    with pytest.raises(ExperimentError, match=message):
        bench_scaling(**changes)


def test_a_search_that_fails_ends_the_bench():
    """Its last word is the reason."""
    with pytest.raises(ClusterError, match=r"100 trials ended with exit code 2: .*nowhere"):
        bench_scaling(parts=["trials"], trials=[100], dataset="nowhere")


@pytest.mark.slow
@pytest.mark.ray
def test_searches_on_local_nodes_and_alone_are_measured(monkeypatch):
    """Real nodes, real searches, real memory."""
    monkeypatch.setattr(scaling, "NODES", (2,))
    monkeypatch.setattr(scaling, "PACKS", (1,))
    packs, nodes, alone = bench_scaling(trials=[4])
    for row in (packs, nodes, alone):
        (one,) = row.runs
        assert one.wall_s > 1
        assert 10_000 < one.run_bytes < 5 * MB
        assert max(sample.memory.driver for sample in one.samples) > 50 * MB
        assert max(sample.memory.workers for sample in one.samples) > 50 * MB
        assert max(sample.memory.others for sample in one.samples) > 20 * MB
