"""The bench of packs: what it measures, and that it needs torch alone."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from statistics import median

import pytest
import torch

from tune_softmax.bench import floor, packed
from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.packed import (
    Row,
    Workload,
    bench_packed,
    format_table,
    random_data,
    to_json,
)
from tune_softmax.errors import ExperimentError

CONDITIONS = Conditions.now()
TINY = {
    "batch_sizes": (4, 8),
    "pack_sizes": (4, 1, 3),
    "num_images": 30,
    "num_validation": 10,
    "repeats": 2,
}
WORKLOAD = Workload(device="cpu", num_threads=1, **{**TINY, "pack_sizes": (64,)})
ROWS = [
    Row(WORKLOAD, pack_size=0, seconds=(0.4, 0.2, 0.3), floor=(0.1, 0.1, 0.2), speed_up=1.0),
    Row(WORKLOAD, pack_size=64, seconds=(0.03, 0.02, 0.1), floor=(0.02, 0.01, 0.03), speed_up=10),
]


def test_each_way_is_measured_in_turn_and_repeatedly():
    """One row for one at a time, then one a pack size, ascending, with one value a repeat."""
    progress = []
    rows = bench_packed(**TINY, on_progress=progress.append)
    names = ["one at a time", "pack of 1", "pack of 3", "pack of 4"]
    assert [row.name for row in rows] == names
    assert [row.pack_size for row in rows] == [0, 1, 3, 4]
    assert progress == [f"{i + 1} of 8: {names[i % 4]}" for i in range(8)]
    for row in rows:
        assert len(row.seconds) == len(row.floor) == 2
        assert all(value > 0 for value in row.seconds + row.floor)
        assert row.speed_up == median(rows[0].seconds) / median(row.seconds)
        assert row.over_floor == median(row.seconds) / median(row.floor)
        assert row.workload.pack_sizes == (1, 3, 4)
    assert rows[0].speed_up == 1.0


def test_every_batch_size_is_measured_by_every_way(monkeypatch):
    """Packs too small for all batch sizes come in several, so that the ways can be compared."""
    trained = []
    monkeypatch.setattr(
        packed, "_time_products", lambda way, *_: trained.append((way.pack_size, way.packs)) or 1.0
    )
    bench_packed(**{**TINY, "repeats": 1})
    for pack_size, packs in trained:
        assert {config.batch_size for pack in packs for config in pack.values()} == {4, 8}
        assert {len(pack) for pack in packs} == {max(pack_size, 1)}


def test_products_have_the_shapes_of_the_pack(monkeypatch):
    """Batch sizes 4 and 8 make one group of micro-batches of 4; alone each has its own."""
    shapes = {}
    monkeypatch.setattr(
        packed,
        "time_products",
        lambda rows, num_trials, _width, _data: shapes.setdefault((rows, num_trials), 1.0),
    )
    bench_packed(**{**TINY, "pack_sizes": (4,), "repeats": 1})
    assert set(shapes) == {(4, 1), (8, 1), (4, 4)}


def test_a_hidden_layer_is_measured_with_its_own_products():
    """Every trial trains it, and the floor has the second layer's products too."""
    rows = bench_packed(**TINY, hidden_units=3)
    assert [row.name for row in rows] == ["one at a time", "pack of 1", "pack of 3", "pack of 4"]
    assert all(value > 0 for row in rows for value in row.seconds + row.floor)
    assert "3 hidden units" in format_table(rows, CONDITIONS)
    assert json.loads(to_json(rows, CONDITIONS))["workload"]["hidden_units"] == 3


def test_the_images_are_like_the_real_ones():
    """28 x 28 bytes, half of them black, ten classes, and the same ones every time."""
    data, again = (random_data(replace(WORKLOAD, num_images=500)) for _ in range(2))
    assert data.train.pixels.shape == (500, 784)
    assert data.train.pixels.dtype == torch.uint8
    assert data.train.pixels.max() == 255
    assert (data.train.pixels == 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert data.train.labels.unique().tolist() == list(range(10))
    assert torch.equal(data.train.pixels, again.train.pixels)


def test_packs_are_measured_in_the_precision_asked_for(monkeypatch):
    """Every pack trains in it, one at a time does not, and the table says so."""
    seen = []
    pack = packed.Pack
    monkeypatch.setattr(
        packed, "Pack", lambda *a, precision, **k: seen.append(precision) or pack(*a, **k)
    )
    rows = bench_packed(**{**TINY, "repeats": 1}, precision="bfloat16x2")
    assert set(seen) == {"bfloat16x2"}
    assert "packs in bfloat16x2" in format_table(rows, CONDITIONS)


def test_the_number_of_threads_is_put_back():
    """The bench computes with its own number of threads, and leaves the caller's."""
    before = torch.get_num_threads()
    seen = []
    bench_packed(
        **{**TINY, "pack_sizes": (1,)},
        num_threads=before + 1,
        on_progress=lambda _: seen.append(torch.get_num_threads()),
    )
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_the_table_is_aligned():
    """Each way has a line with medians, extremes and ratios."""
    text = format_table(ROWS, CONDITIONS).splitlines()[5:]
    header, *lines = (re.split("  +", line) for line in text)
    assert header[1:] == [
        "s per trial-epoch",
        "min to max",
        "products alone",
        "ratio",
        "speed-up",
    ]
    assert lines == [
        ["one at a time", "0.30000", "0.20000 to 0.40000", "0.10000", "3.00", "1.00"],
        ["pack of 64", "0.03000", "0.02000 to 0.10000", "0.02000", "1.50", "10.00"],
    ]
    assert len({len(line) for line in text}) == 1


def test_the_table_says_what_was_measured():
    """Random images are called so, and hardware and versions are named."""
    text = format_table(ROWS, CONDITIONS)
    parts = ("30 training", "random", "28 x 28", "4, 8", "cpu, 1 thread", torch.__version__)
    for part in (*parts, "no hidden layer", "commit ", "load before it"):
        assert part in text


def test_json_holds_what_the_table_holds():
    """It is the workload, and the rows with all measurements and both ratios."""
    content = json.loads(to_json(ROWS, CONDITIONS))
    assert content["workload"]["batch_sizes"] == [4, 8]
    assert content["conditions"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert content["rows"][1] == {
        "name": "pack of 64",
        "pack_size": 64,
        "seconds": [0.03, 0.02, 0.1],
        "floor": [0.02, 0.01, 0.03],
        "over_floor": 1.5,
        "speed_up": 10.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "bench: repeats must be at least 1, got 0"),
        ({"num_images": -5}, "bench: num_images must be at least 1, got -5"),
        ({"batch_sizes": (64, 0)}, "bench: batch_sizes must be at least 1, got"),
        ({"pack_sizes": ()}, "bench: pack_sizes must be at least 1, got"),
        ({"num_threads": 0}, "bench: num_threads must be at least 1, got 0"),
        ({"hidden_units": -1}, "bench: hidden_units must be 0 or more, got -1"),
        ({"device": "tpu"}, "bench: device must be cpu, cuda or cuda:N, got 'tpu'"),
        ({"precision": "float16"}, "bench: precision must be float32, bfloat16x2, bfloat16, tf32"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    """Each is refused before anything is measured, by name and value."""
    with pytest.raises(ExperimentError) as caught:
        bench_packed(**{**TINY, **changes})
    assert message in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    """The reason is torch's, in one line."""
    with pytest.raises(ExperimentError, match="device 'cuda' cannot be used") as caught:
        bench_packed(**TINY, device="cuda")
    assert "\n" not in str(caught.value)


def test_the_module_runs_alone(capsys):
    """`python -m tune_softmax.bench` prints a table or JSON, and refuses in one line."""
    tiny = ["--num-images", "20", "--num-validation", "5", "--repeats", "1", "--pack-sizes", "2"]
    assert packed.main(tiny) == 0
    assert "pack of 2" in capsys.readouterr().out
    assert packed.main([*tiny, "--json", "--batch-sizes", "4"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert packed.main(["--repeats", "0"]) == 2
    assert capsys.readouterr().err == "bench: repeats must be at least 1, got 0\n"


@pytest.mark.slow
def test_it_needs_torch_alone():
    """Importing the bench loads none of the libraries that a GPU machine may lack."""
    code = (
        "import sys, tune_softmax.bench.__main__; "
        "print(*{'ray', 'optuna', 'pandas', 'pydantic', 'rich', 'sklearn', 'typer', 'yaml'}"
        " & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_device_is_measured_too():
    """The same rows come from a GPU."""
    assert len(bench_packed(**TINY, device="cuda")) == 4


@pytest.mark.parametrize(
    ("num_trials", "num_terms", "seconds"),
    [
        (1, 1, 0.03454),  # 220 images of 785 numbers by 10 columns, at 10^8 operations a second
        (4, 3, 0.41448),
        (0, 1, 0.0017248),  # 220 images of 784 bytes at 10^8 bytes a second
    ],
)
def test_a_gpu_s_floor_is_its_work_at_its_peak(monkeypatch, num_trials, num_terms, seconds):
    """By trials and by terms at the rate of one large product; of a large copy at least."""
    data = random_data(replace(WORKLOAD, num_images=100, num_validation=20))
    took = iter([2 * 50**3 / 1e8, 2 * 1000 / 1e8])
    monkeypatch.setattr(floor, "_best", lambda work, _device: [next(took), work()][0])
    found = floor.time_at_peak(num_trials, num_terms, data, rows=50, num_bytes=1000)
    assert found == pytest.approx(seconds)


def test_what_is_timed_is_timed_when_warm():
    """Once more than is counted; and what it takes is positive."""
    calls = []
    assert floor._best(lambda: calls.append(sum(range(1000))), torch.device("cpu")) > 0
    assert len(calls) == 1 + floor.PEAK_REPEATS
