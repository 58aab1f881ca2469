"""Nothing is lost: the fault suite's short form, and that its oracle sees what it is for.

`make faults` runs the long one, which is in `faults/`; docs/explanation/faults.md has its table.
"""

import os
import random
import shutil
import signal
from contextlib import closing
from functools import partial

import pytest
import run_folders
from faults import clusters, drivers, resuming, storage, workers  # noqa: F401 - enter theirs
from faults.command import Run
from faults.oracle import Oracle, compare, events, read, trained_after_final
from faults.scenarios import SCENARIOS, digits

from tune_softmax.metrics import State
from tune_softmax.run.ledger import Ledger

# Of the write points of a search: its first epochs are committed, and not counted yet.
FIRST_EPOCHS = 8


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a search that was killed as it had written its first epochs, and its unbroken twin.

    They run side by side, because half of a start is waiting.
    """
    folder = tmp_path_factory.mktemp("killed")
    faults = {"epoch_s": drivers.WHOLE_REPORT_S}
    run, twin = Run(folder / "killed", faults), Run(folder / "twin", faults)
    experiment = digits(folder, trials=12, pack=4, most=4)
    run.search(experiment, kill_at=FIRST_EPOCHS)
    twin.search(experiment)
    run.finish(-signal.SIGKILL)
    twin.finish()
    return run, twin


@pytest.mark.ray
def test_a_killed_driver_and_a_killed_worker_change_nothing(killed, tmp_path):
    """The driver dies thrice, its resume loses a worker: the same trials and values as unbroken.

    No trial fails: only those do whose worker was lost three times.
    """
    first, twin = killed
    run = first.copy(tmp_path / "resumed")
    shutil.copy(first.witness, run.witness)
    oracle = Oracle(run)
    oracle.look()
    assert oracle.num_final < 12
    in_flight = [trial for trial, _ in read(run).values() if not trial.state.is_final]
    with closing(Ledger.open(run.path / "run.db", writable=True)) as ledger:
        for pack in (1, 2):  # as if resumed, and killed once more
            ledger.hand_out(pack, {trial.number: trial.config for trial in in_flight})
    run.resume()
    assert run.await_epochs(2)
    victims = workers.trainers(run)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    run.finish()
    oracle.complete(12)
    assert victims
    (died,) = events(run, "worker_died")
    assert set(died["trials"]) & {trial.number for trial in in_flight}
    assert compare(run, twin) <= 1e-6
    assert "12 of 12 trials" in run.last_text()


@pytest.mark.ray
def test_one_of_two_drivers_wins(killed, tmp_path):
    """Of two resumes started at one moment one goes on, and the other exits with 6."""
    run, _ = killed
    storage.race(run.copy(tmp_path / "raced"))


@pytest.mark.ray
def test_a_killed_search_with_a_damaged_ledger_loses_nothing_in_silence(killed, tmp_path):
    """Cut or with a bit flipped, the ledger is as it was, or `check` exits with 5."""
    run, _ = killed
    draw = random.Random(2)  # noqa: S311 - no secret
    damages = [
        (name, what, change)
        for name in ("run.db", "run.db-wal")
        for what, change in (
            ("cut at 0 %", partial(storage.cut, percent=0)),
            ("cut at 75 %", partial(storage.cut, percent=75)),
            ("with a bit flipped", partial(storage.flip, draw=draw)),
            ("with a bit flipped", partial(storage.flip, draw=draw)),
        )
    ]
    assert storage.damage(run, tmp_path, damages) >= 2


def test_every_scenario_says_what_must_hold():
    """The table has a row of its own for every fault, in words."""
    names = [one.name for one in SCENARIOS]
    assert len(set(names)) == len(names) >= 15
    assert all(one.times and one.holds and one.run.__doc__ for one in SCENARIOS)


# --- The oracle sees what it is for -------------------------------------------------------------


def begun(folder, name="run"):
    """Return a run of three complete trials, and its open ledger."""
    run = Run(folder / name)
    _, ledger = run_folders.begin(run.path)
    run_folders.train(ledger, range(3))
    run.witness.write_text("epoch 1 7 1 0,1\nfinal 0,1\nepoch 1 7 1 2\nfinal 2\n")
    return run, ledger


def test_the_oracle_sees_a_finished_trial_trained_again(tmp_path):
    """An epoch of a trial after its final commit is a fault, unless a thawed worker's."""
    run, ledger = begun(tmp_path)
    ledger.close()
    assert not trained_after_final(run)
    with run.witness.open("a") as witness:
        witness.write("epoch 9 7 2 1,2\n")
    assert trained_after_final(run) == {1, 2}
    assert not trained_after_final(run, besides={9})
    with pytest.raises(AssertionError, match=r"\[1, 2\] were trained after they were final"):
        Oracle(run).complete(3)


def test_the_oracle_sees_a_lost_trial(tmp_path):
    """A trial that was final at one death must be there, as it was, at the next."""
    run, ledger = begun(tmp_path)
    ledger.close()
    oracle = Oracle(run)
    oracle.look()
    assert oracle.num_final == 3
    shutil.rmtree(run.path)
    _, ledger = run_folders.begin(run.path)
    with closing(ledger):
        run_folders.train(ledger, range(2))
    with pytest.raises(AssertionError, match="trial 2 was final and is gone"):
        oracle.look()


def test_the_oracle_sees_an_unfinished_or_missing_trial(tmp_path):
    """A run is complete only with all its trials, all of them final."""
    run, ledger = begun(tmp_path)
    with closing(ledger):
        with pytest.raises(AssertionError, match="numbers"):
            Oracle(run).complete(4)
        ledger.hand_out(1, {3: run_folders.config(3)})
        with pytest.raises(AssertionError, match="left in"):
            Oracle(run).complete(4)


def test_the_oracle_tells_twins_from_others(tmp_path):
    """Runs with the same trials differ by 0; with another state or another epoch they do not."""
    (run, ledger), (twin, its_ledger) = begun(tmp_path), begun(tmp_path, "twin")
    with closing(ledger), closing(its_ledger):
        assert compare(run, twin) == 0
        assert read(run).keys() == {0, 1, 2}
        run_folders.train(ledger, [3])
        run_folders.train(its_ledger, [3], state=State.PRUNED, last=1)
        with pytest.raises(AssertionError):
            compare(run, twin)
