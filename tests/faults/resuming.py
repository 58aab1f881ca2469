"""What a resume does: how soon it begins, what it refuses, and how a run goes on."""

import shutil
import time

from faults.command import Run, await_true
from faults.drivers import EPOCH_S
from faults.oracle import Oracle, read
from faults.scenarios import digits, fashion, scenario
from tune_softmax.run import results

__all__ = []


@scenario("1", "the first new pack within 8 s of typing, on a quiet machine")
def the_time_to_resume(folder):
    """256 trials on Fashion-MNIST, killed in the middle and resumed."""
    run = Run(folder / "run")
    run.search(fashion(folder, trials=256, pack=16, fraction=1.0))
    assert run.await_epochs(25), run.last_text()
    run.kill()
    oracle = Oracle(run)
    oracle.look()
    num_packs, num_epochs = run.log().count("pack "), run.num_epochs()
    typed = time.monotonic()
    run.resume()
    await_true(lambda: run.log().count("pack ") > num_packs, "a new pack", every_s=0.01)
    handed_out = time.monotonic() - typed
    await_true(lambda: run.num_epochs() > num_epochs, "its first epoch", every_s=0.01)
    begun = time.monotonic() - typed
    run.finish()
    oracle.complete(256)
    seen = f"handed out after {handed_out:.1f} s, its first epoch began after {begun:.1f} s"
    assert handed_out < 8, seen
    return seen


@scenario("1", "under 3 % of a search, on Fashion-MNIST")
def the_cost_of_the_ledger(folder):
    """The seconds within every call of the ledger, while 256 trials train."""
    times = folder / "ledger.txt"
    run = Run(folder / "run", {"ledger_times": str(times)})
    started = time.monotonic()
    run.search(fashion(folder, trials=256, pack=32, most=30, fraction=1.0))
    run.finish()
    wall = time.monotonic() - started
    Oracle(run).complete(256)
    calls = [float(line.split()[1]) for line in times.read_text().splitlines()]
    share = sum(calls) / wall
    seen = f"{len(calls)} calls, {sum(calls):.2f} s of {wall:.0f} s: {share:.1%}"
    assert share < 0.03, seen
    return seen


@scenario("3", "exit code 2 with the difference; a finished run exits 0 and says so")
def a_changed_run(folder):
    """Resume with another space, another seed, other images."""
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    run.search(digits(folder, trials=30))
    assert run.await_epochs(8), run.last_text()
    run.kill()
    oracle = Oracle(run)
    oracle.look()
    text = (run.path / "experiment.yaml").read_text()
    changes = {
        "space.momentum": text.replace("[0.0, 0.9]", "[0.0, 0.8]"),
        "search.seed": text.replace("seed: 5\n", "seed: 6\n"),
        "dataset.validation": text.replace("validation: 0.25", "validation: 0.3"),
    }
    for key, changed in changes.items():
        assert changed != text, key
        (run.path / "experiment.yaml").write_text(changed)
        run.resume()
        run.finish(2)
        assert f"{key} was" in run.last_text(), run.last_text()
    (run.path / "experiment.yaml").write_text(text)
    run.resume()
    run.finish()
    oracle.complete(30)
    run.resume()
    run.finish()
    assert "30 of 30 trials done" in run.last_text(), run.last_text()
    assert "starting Ray" not in run.last_text()
    return "space, seed and images refused with the difference; put back: 30 of 30; again: 0"


@scenario("1", "the first trials stay as they are, the new ones learn from them")
def a_search_extended(folder):
    """A finished search of 24 trials goes on to 48; another begins with its best."""
    run = Run(folder / "run")
    run.search(digits(folder, trials=24, pack=6))
    run.finish()
    oracle = Oracle(run)
    oracle.complete(24)
    before = Run(folder / "before")
    shutil.copytree(run.path, before.path)
    run.resume("--num-trials", 48)
    run.finish()
    oracle.complete(48)
    first = {number: trial for number, trial in read(run).items() if number < 24}
    assert first == read(before), "a trial of before has changed"
    warm = Run(folder / "warm")
    warm.search(folder / "faults.yaml", "--from", run.path, "--num-trials", 12)
    warm.finish()
    Oracle(warm).complete(12)
    best = results.load(run.path).best().config
    assert results.load(warm.path).config(0) == best
    return "24 of 24 unchanged, 24 new; the search --from it tries its best trial first"
