"""The driver dies: at random moments, at every write, by a signal; and comes back."""

import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from faults.command import Run, alive
from faults.oracle import Oracle, compare, read
from faults.scenarios import digits, fashion, scenario
from tune_softmax.metrics import State
from tune_softmax.run import results

__all__ = ["EPOCH_S", "go_on", "kill_at_random", "kill_at_write", "unbroken"]

# Epochs of such small data are too short to be hit.
EPOCH_S = 0.15
MAX_STOP_S = 15.0  # bounded, though the machine be busy
WHOLE_REPORT_S = 0.6  # longer than `worker.REPORT_SECONDS`


def unbroken(folder, experiment, num_trials, **faults):
    """Search without a fault, and return the run."""
    twin = Run(folder / "twin", faults)
    twin.search(experiment)
    twin.finish()
    Oracle(twin).complete(num_trials)
    return twin


def go_on(run, experiment):
    """Resume a run whose driver died; begin anew where it died before it made its ledger."""
    if (run.path / "run.db").exists():
        run.resume()
    else:
        shutil.rmtree(run.path, ignore_errors=True)
        run.search(experiment)


def kill_at_random(folder, experiment, twin, *, num_trials, num_kills, seed=0):
    """Kill a search's driver at random moments over its resumes, then let it end.

    Every fourth dies at any moment of its first 8 seconds, most of which are its start; the
    others after some epochs of packs, of which a search of 60 trials has about 100.

    Returns:
        What was seen.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    oracle = Oracle(run)
    num_training = 0
    for kill in range(num_kills):
        go_on(run, experiment)
        # No further than three quarters of its share: the last kill must find work left to do.
        is_behind = oracle.num_final / num_trials < 0.75 * kill / num_kills
        if kill % 4 == 3:
            time.sleep(draw.uniform(0.2, 8))
        elif run.await_epochs(draw.randint(*((6, 12) if is_behind else (1, 3)))):
            num_training += 1
            time.sleep(draw.uniform(0, EPOCH_S))
        assert run.process.poll() is None, f"ended before kill {kill + 1}: {run.last_text()}"
        run.kill()
        if (run.path / "run.db").exists():
            oracle.look()
    num_before = oracle.num_final
    run.resume()
    run.finish()
    oracle.complete(num_trials)
    difference = compare(run, twin)
    assert difference <= 1e-6, difference
    num_again = sum(trial.attempts > 1 for trial, _ in read(run).values())
    return (
        f"{num_kills} killed, {num_training} of them while training; {num_before} trials done at "
        f"the last kill, {num_again} in flight at one; {num_trials} of {num_trials} trials, "
        f"lost 0, run again 0, values differ by {difference:g}"
    )


@scenario("20", "the same trials, values and ASHA decisions as unbroken; none finished runs again")
def driver_killed_at_random_moments(folder):
    """SIGKILL, 20 times in one search of 60 trials on Fashion-MNIST."""
    experiment = fashion(folder)
    twin = unbroken(folder, experiment, 60)
    return kill_at_random(folder, experiment, twin, num_trials=60, num_kills=20)


def kill_at_write(folder, experiment, twin, point, num_trials):
    """Kill a search at one write point, resume it, and compare.

    Args:
        folder: Where the run's own is made.
        experiment: Its file.
        twin: The unbroken run.
        point: From 1, of those in `injection/sitecustomize.py`.
        num_trials: Of the search.
    """
    run = Run(folder / f"point-{point}", {"epoch_s": WHOLE_REPORT_S})
    oracle = Oracle(run)
    run.search(experiment, kill_at=point)
    run.finish(-signal.SIGKILL)
    run.resume()
    if point == 1:  # the ledger's file was made, and nothing in it
        run.finish(2)
        assert "remove the folder and search again" in run.last_text(), run.last_text()
        shutil.rmtree(run.path)
        run.search(experiment)
    else:
        oracle.look()
    run.finish()
    oracle.complete(num_trials)
    assert compare(run, twin) <= 1e-6, f"at write {point}"


@scenario("every write", "resumes to the same trials and values, whichever write was cut off")
def driver_killed_at_every_write(folder):
    """SIGKILL before every commit, and between it and the count beside the file."""
    experiment = digits(folder, pack=6, most=3)
    points = folder / "points.txt"
    # Short epochs would share a report, now more of them and now fewer.
    twin = unbroken(folder, experiment, 12, points=str(points), epoch_s=WHOLE_REPORT_S)
    num_points = len(points.read_text().splitlines())
    # Half of a start is waiting.
    with ThreadPoolExecutor(max_workers=2) as executor:
        tasks = [
            executor.submit(kill_at_write, folder, experiment, twin, point, 12)
            for point in range(1, num_points + 1)
        ]
        for task in tasks:
            task.result()
    num_commits = points.read_text().split().count("committed")
    return (
        f"{num_commits} commits, {num_points} points around them, each killed and resumed: the "
        "same 12 trials and values"
    )


@scenario("8", "exit code 143, 130 or 138 within seconds, resumable as unbroken")
def signals(folder):
    """SIGTERM 5 times, SIGINT, SIGUSR1, in one search; SIGINT twice ends at once."""
    experiment = digits(folder, trials=200, pack=10)
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    oracle = Oracle(run)
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}
    times = []
    for number in [*[signal.SIGTERM] * 5, signal.SIGINT, signal.SIGUSR1]:
        run.resume() if oracle.num_final else run.search(experiment)
        assert run.await_epochs(10), run.last_text()
        times.append(_stop(run, number, codes[number]))
        oracle.look()
        assert results.load(run.path).count(State.RUNNING) == 0
        assert f"tune-softmax resume {run.path}" in run.last_text()
    run.resume()
    assert run.await_epochs(2)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    twice = _stop(run, signal.SIGINT, 130)
    oracle.look()
    run.faults["epoch_s"] = 0
    run.resume()
    run.finish()
    oracle.complete(200)
    assert max(*times, twice) < MAX_STOP_S, times
    difference = compare(run, unbroken(folder, experiment, 200))
    assert difference <= 1e-6
    return (
        f"exit codes as stated, within {max(times):.1f} s; twice: {twice:.1f} s; 200 of 200 "
        f"trials, values differ by {difference:g}"
    )


def _stop(run, number, code):
    started = time.monotonic()
    if alive(run.process.pid):
        run.process.send_signal(number)
    run.finish(code, 60)
    return time.monotonic() - started
