"""Workers die, hang, raise, and run out of memory; the driver lives."""

import os
import signal
import time

from faults.command import Run, await_true, processes
from faults.drivers import EPOCH_S, unbroken
from faults.oracle import Oracle, compare, events, read
from faults.scenarios import digits, scenario
from tune_softmax.metrics import State

__all__ = ["kill_workers", "trainers"]

TITLE = b"Trainable"  # of a worker that trains packs


def kill_workers(folder, *, num_trials, num_kills):
    """Kill the worker that trains, over and over, while one driver lives; return what was seen."""
    experiment = digits(folder, trials=num_trials, pack=10, seed=8)
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    run.search(experiment)
    num_killed = 0
    # A pack has 6 epochs at most: the one that was killed has ended before the next kill.
    while num_killed < num_kills:
        assert run.await_epochs(8), f"ended after {num_killed} kills: {run.last_text()}"
        for victim in trainers(run):
            os.kill(victim, signal.SIGKILL)
            num_killed += 1
    run.finish()
    Oracle(run).complete(num_trials)
    died = events(run, "worker_died")
    assert len(died) >= num_killed, died
    states = {trial.state for trial, _ in read(run).values()}
    assert states <= {State.COMPLETE, State.PRUNED}, states
    most = max(trial.attempts for trial, _ in read(run).values())
    return (
        run,
        f"{num_killed} killed, {num_trials} of {num_trials} trials, at most {most} attempts",
    )


def trainers(run):
    """Return the worker that trained last as a list, empty once it is gone."""
    pids = [int(line.split()[1]) for line in _epochs(run)[-1:]]
    return [pid for pid in pids if pid in processes(TITLE)]


def _epochs(run):
    return [line for line in run.witness.read_text().splitlines() if line.startswith("epoch")]


@scenario("10", "their packs are trained again; values as unbroken")
def workers_killed(folder):
    """SIGKILL the training worker 10 times in one search."""
    run, seen = kill_workers(folder, num_trials=250, num_kills=10)
    twin = unbroken(folder, folder / "faults.yaml", 250)
    difference = compare(run, twin)
    assert difference <= 1e-6, difference
    return f"{seen}; values differ by {difference:g}"


@scenario(
    "4 of one pack", "the trial is found by halving and FAILs with the reason; all others end"
)
def a_pack_that_always_dies(folder):
    """The worker dies whenever trial 5 trains."""
    run = Run(folder / "run", {"dies_with": 5})
    run.search(digits(folder, more="asha: none"))
    run.finish()
    Oracle(run).complete(12)
    trials = read(run)
    failed = {n for n, (trial, _) in trials.items() if trial.state is State.FAIL}
    assert failed == {5}, failed
    guilty = trials[5][0]
    assert "lost 4 times" in guilty.error, guilty.error
    assert guilty.attempts == 4
    return "trial 5 FAILs after 4 attempts, in packs of 4, 4, 2 and 1; its 3 neighbours complete"


@scenario("1", "not retried: its trials FAIL with the traceback, the others end")
def a_pack_that_raises(folder):
    """The pack of trial 5 raises."""
    run = Run(folder / "run", {"raises_with": 5})
    run.search(digits(folder, more="asha: none"))
    run.finish()
    Oracle(run).complete(12)
    trials = read(run)
    failed = {n for n, (trial, _) in trials.items() if trial.state is State.FAIL}
    assert failed == {4, 5, 6, 7}, failed
    assert all("a fault from outside" in trials[n][0].error for n in failed)
    assert {trials[n][0].attempts for n in failed} == {1}
    return "trials 4-7 FAIL after 1 attempt each, 8 complete"


@scenario("every large pack", "trained in halves, and the run keeps to that size, also resumed")
def out_of_memory(folder):
    """A pack of more than 3 trials runs out of memory; the driver is killed on the way."""
    experiment = digits(folder, trials=36, pack=12, more="asha: none")
    run = Run(folder / "run", {"fits": 3, "epoch_s": EPOCH_S})
    run.search(experiment)
    await_true(lambda: "packs of 3 now" in run.log(), "packs of 3")
    assert run.await_epochs(8)
    run.kill()
    oracle = Oracle(run)
    oracle.look()
    before = len(events(run, "out_of_memory"))
    run.resume()
    run.finish()
    oracle.complete(36)
    assert all(trial.state is State.COMPLETE for trial, _ in read(run).values())
    fits = [event["fits"] for event in events(run, "out_of_memory")]
    assert fits[-1] == 3, fits
    assert len(fits) == before, "the resumed run tried a size again that had been too large"
    return f"packs of 12 became {fits}; 36 of 36 complete; the resume began with packs of 3"


@scenario("1", "killed after report_timeout_s and its pack trained again")
def a_worker_freezes(folder):
    """SIGSTOP a worker in its first epoch; reports are due within 12 s."""
    run = Run(folder / "run", {"freezes": str(folder / "frozen")})
    started = time.monotonic()
    run.search(digits(folder, timeout=12))
    run.finish()
    seconds = time.monotonic() - started
    Oracle(run).complete(12)
    reasons = [event["reason"] for event in events(run, "worker_died")]
    assert any("had not reported for 12 s" in reason for reason in reasons), reasons
    await_true(lambda: not processes(TITLE), "the end of the frozen worker")
    return f"killed and trained again, 12 of 12 trials, {seconds:.0f} s in all"
