"""The oracle: its path, what it keeps, the command, and the report that shows it."""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from run_folders import finished, train
from typer.testing import CliRunner

from tune_softmax.cli import app
from tune_softmax.errors import DataError, ExperimentError, StorageError
from tune_softmax.experiment.experiment import parse
from tune_softmax.oracle import path as oracles
from tune_softmax.oracle.cache import PathPoint
from tune_softmax.report.inputs import gather
from tune_softmax.report.page import compose
from tune_softmax.run.ledger import Ledger

TEXT = """
dataset: {name: digits}
space:
  batch_size: 32
  num_epochs: 4
  learning_rate: {log_uniform: [1e-2, 1]}
  weight_decay: {log_uniform: [1e-6, 1e-1]}
"""
PATH = (1e-1, 1e-2, 1e-3)


def experiment(**space):
    """Return an experiment on digits, with other hyperparameters if given."""
    lines = "".join(f"  {name}: {value}\n" for name, value in space.items())
    kept = [line for line in TEXT.splitlines() if line.split(":")[0].strip() not in space]
    return parse("\n".join(kept) + "\n" + lines, "small.yaml")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep the cache in the test's own folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# --- The path -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_decay", "ends"),
    [
        ("{log_uniform: [1e-4, 1e-1]}", (1e-1, 1e-4)),
        ("{log_uniform: [1e-7, 1e-2]}", (1e-2, 1e-6)),
        ("{log_uniform: [1e-9, 1e-6]}", (1e-6, 1e-8)),
        ("{uniform: [0, 0.5]}", (0.5, 1e-6)),
        ("{choice: [0, 1e-3]}", (1e-1, 1e-6)),
        ("0.01", (1e-1, 1e-6)),
    ],
)
def test_the_path_spans_what_is_searched(weight_decay, ends):
    """Twelve penalties, evenly on a logarithmic scale, not below 1e-6 unless all of it is."""
    found = oracles.penalties(experiment(weight_decay=weight_decay))
    assert (found[0], found[-1]) == ends
    assert len(found) == 12
    assert np.diff(np.log(found)) == pytest.approx(math.log(ends[1] / ends[0]) / 11)


def test_the_path_may_be_another():
    """As many penalties as asked, between the ends asked for."""
    found = oracles.penalties(experiment(), number=3, low=1e-8, high=1.0)
    assert found == pytest.approx((1.0, 1e-4, 1e-8))


@pytest.mark.parametrize(
    "wrong", [{"low": 0.0}, {"low": 1.0}, {"high": math.nan}, {"high": math.inf}, {"number": 1}]
)
def test_a_path_that_is_none_is_refused(wrong):
    """Ends in order, above zero; two penalties at least."""
    with pytest.raises(ExperimentError, match="path"):
        oracles.penalties(experiment(), **wrong)


@pytest.mark.parametrize("path", [(), (0.0,), (-1.0, 1.0), (math.inf,), (math.nan,)])
def test_penalties_are_numbers_above_zero(path):
    """Without one there is no optimum to know of."""
    with pytest.raises(ExperimentError, match="numbers > 0"):
        oracles.oracle(experiment(), path=path)


@pytest.mark.parametrize(
    "space",
    [{"l1": "1e-3"}, {"hidden_units": "{choice: [8, 16]}"}, {"augmentation": "0.5"}],
    ids=str,
)
def test_what_is_not_convex_is_refused(space):
    """The message names what it is, and what the oracle covers."""
    (name,) = space
    with pytest.raises(ExperimentError, match=rf"weight decay alone: .*got space\.{name} is "):
        oracles.oracle(experiment(**space))


def test_a_sum_of_losses_is_refused():
    """One weight decay would be another penalty in every batch size."""
    summed = parse(TEXT + "model: {reduction: sum}\n", "small.yaml")
    with pytest.raises(ExperimentError, match=r"got model\.reduction is sum"):
        oracles.oracle(summed)


def test_a_search_that_can_do_without_l1_is_covered():
    """Zero need only be among what is searched."""
    experiment(l1="{choice: [0, 1e-3]}", hidden_units="{int: [0, 8]}").check_convex()


# --- Finding and keeping ------------------------------------------------------------------------


def test_a_path_is_found_refined_and_kept():
    """One row a penalty with its bounds; the best is within the path, and found again at once."""
    seen, notes = [], []
    asked = (1e-2, 1e-3, 2e-4, 1e-6)
    found = oracles.oracle(experiment(), path=asked, on_progress=seen.append, on_note=notes.append)
    assert found.num_computed == len(found.path) == 6
    assert found.path["validation_loss_bound"].max() <= 1e-6
    assert found.path["weight_decay"].is_monotonic_increasing
    assert (found.path["num_iterations"] > 0).all()
    assert found.best.validation_loss == found.path["validation_loss"].min()
    assert notes == []
    coarse = found.path[found.path["weight_decay"].isin(asked)]["validation_loss"].min()
    assert found.best.validation_loss < coarse
    points = [progress.point for progress in seen if progress.point]
    assert [point.weight_decay for point in points[:4]] == list(asked)
    assert any(progress.num_steps > 1 for progress in seen)

    again = oracles.oracle(experiment(), path=asked)
    assert again.num_computed == 0
    assert again.path.equals(found.path)
    assert again.best == found.best


def test_what_is_known_needs_no_torch():
    """A second call in a fresh process loads neither torch nor Ray."""
    oracles.oracle(experiment(), path=PATH)
    code = """
import sys
from tune_softmax.experiment import experiment
from tune_softmax.oracle import path
found = path.oracle(experiment.parse(sys.argv[1], "small.yaml"), path=(1e-1, 1e-2, 1e-3))
assert found.num_computed == 0
assert not {"torch", "ray"} & set(sys.modules)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, TEXT], check=True, env=environment)


def test_paths_share_points():
    """Only what another path did not have is computed."""
    oracles.oracle(experiment(), path=PATH)
    found = oracles.oracle(experiment(), path=(1e-1, 1e-3))
    assert found.num_computed == 0
    found = oracles.oracle(experiment(), path=(1e-1, 1e-3, 1.0))
    assert found.num_computed == 1
    assert found.path["weight_decay"].tolist() == [1e-3, 1e-2, 1e-1, 1.0]


def test_other_images_are_another_path():
    """A split, a part of the training images: each has a file of its own."""
    first = oracles.oracle(experiment(), path=(1e-2,))
    for change in ("split_seed: 1", "validation: 100", "train_fraction: 0.5"):
        other = parse(TEXT.replace("digits", f"digits, {change}"), "small.yaml")
        found = oracles.oracle(other, path=(1e-2,))
        assert found.num_computed == 1
        assert found.file != first.file


def test_a_torn_file_is_made_anew_and_said_so():
    """One line names it and why."""
    first = oracles.oracle(experiment(), path=(1e-2,))
    whole = first.file.path.read_text()
    first.file.path.write_text(whole[:100])
    notes = []
    again = oracles.oracle(experiment(), path=(1e-2,), on_note=notes.append)
    assert again.num_computed == 1
    assert notes == [f"{first.file.path}: is not whole; computing anew"]
    assert again.best.validation_loss == pytest.approx(first.best.validation_loss, abs=2e-6)


def test_a_cache_that_cannot_be_written_is_told_at_once(home):
    """Before anything is computed."""
    home.write_text("")
    seen = []
    with pytest.raises(StorageError, match="set HOME"):
        oracles.oracle(experiment(), path=(1e-2,), on_progress=seen.append)
    assert seen == []


def test_an_end_keeps_what_was_found():
    """A computation that was interrupted goes on with the next point."""

    def stop(progress):
        if progress.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracles.oracle(experiment(), path=PATH, on_progress=stop)
    assert oracles.oracle(experiment(), path=PATH[:1]).num_computed == 0


def test_missing_images_are_an_error(tmp_path):
    """As for every command."""
    text = TEXT.replace("digits", f"idx, path: {tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="does not exist"):
        oracles.oracle(parse(text, "small.yaml"))


def bowl(weight_decay, best):
    """Return a point of a path whose validation loss is a parabola in log lambda."""
    loss = 0.5 + 0.01 * math.log(weight_decay / best) ** 2
    numbers = dict.fromkeys(PathPoint.__dataclass_fields__, 0.0)
    return PathPoint(**numbers | {"weight_decay": weight_decay, "validation_loss": loss})


def test_the_vertex_of_a_parabola_is_found():
    """Exactly, from points that are not evenly apart."""
    points = [bowl(decay, 3e-4) for decay in (1e-2, 1e-3, 2e-4, 1e-6)]
    assert oracles._vertex(points) == pytest.approx(3e-4, rel=1e-12)


def test_there_is_nothing_to_refine_at_an_end():
    """Nor where the best point is the vertex."""
    assert oracles._vertex([bowl(decay, 1e-6) for decay in (1e-2, 1e-3, 1e-4)]) is None
    assert oracles._vertex([bowl(decay, 1e-3) for decay in (1e-2, 1e-3, 1e-4)]) is None
    assert oracles._vertex([bowl(1e-2, 1e-3)]) is None


# --- The command and the report -----------------------------------------------------------------


def run_of(tmp_path, checksum):
    """Return a run with six complete trials at weight decay 1e-4, on images of a checksum."""
    folder = finished(tmp_path / "run")
    text = folder.experiment.read_text()
    folder.ledger.unlink()
    folder.experiment.unlink()
    with closing(Ledger.create(folder.ledger, {"dataset_checksum": checksum})) as ledger:
        train(ledger, range(6))
    folder.experiment.write_text(text)
    return folder.path


def call(*arguments):
    """Run a command and return how it ended."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_the_path_then_the_best_then_what_is_next(tmp_path):
    """The first time with a line a penalty; the second time it says that all was known."""
    (tmp_path / "small.yaml").write_text(TEXT)
    options = ["oracle", "small.yaml", "--num-penalties", 3, "--low", 1e-3, "--high", 1e-1]
    done = call(*options)
    assert done.exit_code == 0, done.output
    assert "1 of 5: weight decay 0.1, validation loss 1.2516, certain to " in done.stderr
    assert done.stdout.split("\n\n")[1].startswith("Best on the path: validation loss 0.")
    assert done.stdout.endswith(" nats.\n")
    assert "known already" not in done.stdout
    again = call(*options)
    assert again.stderr.count("weight decay 0.1") == 0
    table = done.stdout.split("\n\n")[0]
    assert again.stdout.startswith(table)
    assert "All points were known already, from " in again.stdout


def test_a_run_is_told_its_regret_and_the_report_shows_it(tmp_path):
    """The same number in both, with the certificate; before the oracle it says how to get it."""
    found = oracles.oracle(experiment(), path=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5))
    run = run_of(tmp_path, found.file.checksum)
    done = call("oracle", run, "--num-penalties", 3, "--low", 1e-3)
    assert done.exit_code == 0, done.output
    inputs = gather(run)
    assert set(inputs.path["weight_decay"]) >= set(found.path["weight_decay"])
    best = inputs.search.trials["last_validation_loss"].min()
    regret = f"{best - inputs.path['validation_loss'].min():.4f}"
    assert f"the best loss of the search is {regret} nats above that." in done.stdout
    assert done.stdout.endswith(f"tune-softmax report {run}\n")
    (section,) = [s for s in compose(inputs).sections if s.name == "path"]
    facts = dict(next(part for part in section.parts if part.kind == "facts").rows)
    assert facts["regret"] == f"+{regret} nats"
    assert facts["lowest loss of the search"] == f"{best:.4f}"
    assert facts["certain to"].endswith("nats")


def test_a_report_needs_neither_torch_nor_the_images(tmp_path):
    """The path is found by the checksum that the run recorded."""
    found = oracles.oracle(experiment(), path=(1e-2,))
    run = run_of(tmp_path, found.file.checksum)
    code = """
import sys
from pathlib import Path
from tune_softmax.report.inputs import _path
from tune_softmax.run.results import load
assert len(_path(load(Path(sys.argv[1])), sys.argv[2])) == 1
assert not {"torch", "sklearn"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", code, str(run), found.file.checksum]
    subprocess.run(arguments, check=True, env=environment)


def test_a_report_passes_over_other_images_and_torn_files(tmp_path):
    """It says how to compute the path then."""
    found = oracles.oracle(experiment(), path=(1e-2,))
    assert gather(run_of(tmp_path / "other", "4567")).path is None
    run = run_of(tmp_path, found.file.checksum)
    assert len(gather(run).path) == 1
    found.file.path.write_text("{")
    inputs = gather(run)
    assert inputs.path is None
    (section,) = [s for s in compose(inputs).sections if s.name == "path"]
    assert section.parts[0].line == f"tune-softmax oracle {run}/experiment.yaml"


def test_a_report_on_what_is_not_convex_says_why(tmp_path):
    """It names no command that would be refused."""
    run = run_of(tmp_path, "0123")
    path = run / "experiment.yaml"
    path.write_text(path.read_text().replace("hidden_units: 0", "hidden_units: 8"))
    (section,) = [s for s in compose(gather(run)).sections if s.name == "path"]
    assert "got space.hidden_units is 8" in section.parts[0].text


@pytest.mark.slow
def test_the_optimum_of_fashion_mnist_is_where_it_was_measured(fashion_mnist_dir):
    """Near lambda = 2e-4, the least validation loss is 0.406 on the shipped experiment's split."""
    shipped = parse(
        (Path(__file__).parents[2] / "experiments/fashion_mnist.yaml").read_text(), "x.yaml"
    )
    found = oracles.oracle(shipped, path=(1e-3, 2e-4), data_dir=fashion_mnist_dir)
    assert found.best.weight_decay == 2e-4
    assert found.best.validation_loss == pytest.approx(0.406, abs=0.001)
    assert json.loads(found.file.path.read_text())["dataset"] == "fashion-mnist"
