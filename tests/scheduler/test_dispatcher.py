"""The dispatcher, with a real ledger and a real study, in any order of events."""

import random
from contextlib import closing

import pytest
import run_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import Report, State
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.dispatcher import Dispatcher, Job
from tune_softmax.scheduler.messages import PackResult
from tune_softmax.scheduler.study import Study

EXPERIMENT = """
name: dealt
dataset: {{name: digits, validation: 0.25}}
space: {{batch_size: 64, num_epochs: 16, learning_rate: {{log_uniform: [1e-2, 1]}}}}
search: {{num_trials: {num_trials}, pack_size: {pack_size}, sampler: random}}
"""


def begin(ledger, num_places, num_trials=24, pack_size=8):
    """Return a dispatcher over an empty ledger."""
    experiment = experiments.parse(
        EXPERIMENT.format(num_trials=num_trials, pack_size=pack_size), "dealt.yaml"
    )
    return Dispatcher(
        Job(
            experiment=experiment,
            agenda=Study(experiment.space, experiment.search),
            ledger=ledger,
            dataset=None,
            num_places=num_places,
            should_stop=lambda: False,
            observe=lambda _snapshot: None,
            asha=experiment.search.asha,
        )
    )


@pytest.fixture
def ledger(tmp_path):
    """Make an empty ledger."""
    with closing(Ledger.create(tmp_path / "run.db", {})) as ledger:
        yield ledger


def report(dispatcher, ray_id, task, states, epoch):
    """Report an epoch of a pack; `states` are by trial number."""
    reports = [
        Report(number, epoch, run_folders.metrics(number, epoch), state, rung=1)
        for number, state in states.items()
    ]
    dispatcher.take(ray_id, PackResult(task.pack, reports))


def park(dispatcher, ray_id, num_parked):
    """Hand out a pack, park its first trials on the first rung, and stop the others."""
    task = dispatcher.next_pack(ray_id)
    parked = sorted(task.tasks)[:num_parked]
    states = {n: State.PARKED if n in parked else State.PRUNED for n in task.tasks}
    report(dispatcher, ray_id, task, states, task.epoch + 1)
    dispatcher.end(ray_id, "over")
    return parked


def test_trials_that_wait_go_on_together_while_there_are_new_ones(ledger):
    """A place takes all that wait on a rung, before anything new."""
    dispatcher = begin(ledger, num_places=2)
    first = dispatcher.next_pack("busy")
    waiting = park(dispatcher, "a", 3)
    task = dispatcher.next_pack("b")
    assert sorted(task.tasks) == waiting
    assert task.epoch == 1
    assert not task.tasks.keys() & first.tasks.keys()


def test_a_few_wait_for_company_while_there_are_new_ones(ledger):
    """Until a quarter of a pack waits on a rung, or nothing new is left."""
    dispatcher = begin(ledger, num_places=1, num_trials=80, pack_size=32)
    assert (dispatcher.parks_at, dispatcher.waits_for) == (4, 8)
    waiting = park(dispatcher, "a", 4)
    waiting += park(dispatcher, "b", 3)  # a new pack, though four wait
    assert len(waiting) == 7
    waiting += park(dispatcher, "c", 0)  # the last new one
    together = dispatcher.next_pack("d")
    assert (together.epoch, sorted(together.tasks)) == (1, waiting)


def test_a_quarter_of_a_pack_goes_on(ledger):
    """They are company enough, though there are new ones."""
    dispatcher = begin(ledger, num_places=1, num_trials=96, pack_size=32)
    waiting = park(dispatcher, "a", 4) + park(dispatcher, "b", 4)
    together = dispatcher.next_pack("c")
    assert (together.epoch, sorted(together.tasks)) == (1, waiting)


def test_in_the_end_every_place_takes_its_share(ledger):
    """Nothing new is left for the other place, so trials are left for it, as many or one fewer."""
    dispatcher = begin(ledger, num_places=2)
    first = dispatcher.next_pack("a")
    second = dispatcher.next_pack("b")
    report(dispatcher, "b", second, dict.fromkeys(second.tasks, State.PRUNED), 1)
    dispatcher.end("b", "over")
    dispatcher.next_pack("last but one")
    report(dispatcher, "a", first, dict.fromkeys(first.tasks, State.PRUNED), 1)
    dispatcher.end("a", "over")
    waiting = park(dispatcher, "last", 3)
    one = dispatcher.next_pack("d")
    assert len(one.tasks) == 2
    left = [trial.number for trial in ledger.trials() if trial.state is State.PARKED]
    assert sorted([*one.tasks, *left]) == waiting


@pytest.mark.parametrize(
    ("num_places", "sizes"),
    [(1, [8, 8, 8]), (2, [8, 8, 4, 4]), (3, [8, 6, 4, 4, 2]), (8, [4, 4, 4, 4, 4, 4])],
)
def test_the_last_new_trials_are_shared_out(ledger, num_places, sizes):
    """In packs of half the size at least: small ones take longer a trial."""
    dispatcher = begin(ledger, num_places)
    given = []
    while not dispatcher.is_done:
        task = dispatcher.next_pack("pack")
        given.append(len(task.tasks))
        report(dispatcher, "pack", task, dict.fromkeys(task.tasks, State.PRUNED), 1)
        dispatcher.end("pack", "over")
    assert given == sizes


def test_one_place_takes_all(ledger):
    """There is nobody to share with."""
    dispatcher = begin(ledger, num_places=1)
    for name in ("a", "b"):
        park(dispatcher, name, 0)
    waiting = park(dispatcher, "c", 5)
    assert sorted(dispatcher.next_pack("d").tasks) == waiting


def test_it_is_done_when_the_last_pack_is_over(ledger):
    """Not before: Ray Tune has still to be told."""
    dispatcher = begin(ledger, num_places=2)
    for name in ("a", "b", "c", "d"):
        assert not dispatcher.is_done
        task = dispatcher.next_pack(name)
        report(dispatcher, name, task, dict.fromkeys(task.tasks, State.PRUNED), 1)
        assert not dispatcher.is_done
        dispatcher.end(name, "over")
    assert dispatcher.is_done
    assert dispatcher.next_pack("e") is None


@given(seed=st.integers(0, 2**32 - 1), num_places=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_whatever_happens_every_trial_ends_once(tmp_path_factory, seed, num_places):
    """Packs report, park, lose workers and end in any order; no trial is in two packs at once."""
    draw = random.Random(seed)  # noqa: S311 - events of a test
    path = tmp_path_factory.mktemp("any") / "run.db"
    with closing(Ledger.create(path, {})) as ledger:
        dispatcher = begin(ledger, num_places)
        live = {}  # by Ray's name: the pack, its trials, its epoch
        for step in range(10_000):
            if dispatcher.is_done:
                break
            task = dispatcher.next_pack(str(step))
            if task is not None:
                assert len(live) < num_places
                for _, numbers, _ in live.values():
                    assert not task.tasks.keys() & numbers
                live[str(step)] = [task, set(task.tasks), task.epoch]
            elif live:
                name = draw.choice(sorted(live))
                task, numbers, epoch = live[name]
                happens = draw.choice(["epoch", "epoch", "epoch", "lost"])
                if happens == "epoch" and numbers:
                    states = {n: _state(draw, epoch + 1) for n in numbers}
                    report(dispatcher, name, task, states, epoch + 1)
                    numbers -= {n for n, state in states.items() if state is not State.RUNNING}
                    live[name][2] = epoch + 1
                if happens == "lost" or not numbers:
                    dispatcher.end(name, "lost")
                    del live[name]
        assert dispatcher.is_done
        trials = ledger.trials()
        assert [trial.number for trial in trials] == list(range(24))
        assert all(trial.state.is_final for trial in trials)
        assert dispatcher.next_pack("after") is None


def _state(draw, epoch):
    if epoch == 16:
        return State.COMPLETE
    return draw.choice([State.RUNNING, State.RUNNING, State.PRUNED, State.PARKED])
