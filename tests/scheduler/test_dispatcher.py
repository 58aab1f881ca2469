"""The dispatcher, with a real ledger and a real study, in any order of events."""

import itertools
import math
import random
from contextlib import closing

import pytest
import run_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.experiment import experiment as experiments
from tune_softmax.experiment.sections import Asha
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.asha import AshaScheduler, Rungs
from tune_softmax.scheduler.dispatcher import Dispatcher, Job
from tune_softmax.scheduler.messages import PackResult, PackTask
from tune_softmax.scheduler.study import Study

EXPERIMENT = """
name: dealt
dataset: {{name: digits, validation: 0.25}}
space: {{batch_size: 64, num_epochs: 16, learning_rate: {{log_uniform: [1e-2, 1]}}}}
search: {{num_trials: {num_trials}, pack_size: {pack_size}, sampler: random{more}}}
"""


def begin(ledger, num_places, num_trials=24, pack_size=8, more=""):
    """Return a dispatcher over a ledger; `more` keys are for the section `search`."""
    experiment = experiments.parse(
        EXPERIMENT.format(num_trials=num_trials, pack_size=pack_size, more=more), "dealt.yaml"
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
            is_deterministic=experiment.search.deterministic,
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


def states(ledger):
    """Return the states of the trials in a ledger, by number."""
    return {trial.number: trial.state for trial in ledger.trials()}


def test_a_stop_marks_all_that_had_not_ended(ledger):
    """Those that train, and those that are to be trained again: `check` calls no other right."""
    dispatcher = begin(ledger, num_places=2)
    for name, task in [(name, dispatcher.next_pack(name)) for name in ("a", "b")]:
        dispatcher.take(name, PackResult(task.pack, [], out_of_memory=True))
        dispatcher.end(name, "over")
    dispatcher.next_pack("c")  # one of the four halves
    dispatcher.release()
    assert states(ledger) == dict.fromkeys(range(16), State.WAITING)


def test_a_resume_at_smaller_packs_parks_by_their_size(ledger):
    """With the size from before, every pack would park on every rung."""
    dispatcher = begin(ledger, num_places=1, num_trials=640, pack_size=64)
    assert (dispatcher.parks_at, dispatcher.waits_for) == (8, 16)
    task = dispatcher.next_pack("a")
    dispatcher.take("a", PackResult(task.pack, [], out_of_memory=True))
    dispatcher.end("a", "over")
    for one in (dispatcher, begin(ledger, num_places=1, num_trials=640, pack_size=64)):
        assert (one.pack_size, one.parks_at, one.waits_for) == (32, 4, 8)


@pytest.mark.parametrize(("pack_size", "num_deaths"), [(1, 3), (2, 3), (8, 5), (24, 6)])
def test_of_a_pack_that_always_dies_the_guilty_trial_alone_fails(ledger, pack_size, num_deaths):
    """It is found by halving, and its neighbours end as if they had never met it."""
    dispatcher = begin(ledger, num_places=1, pack_size=pack_size)
    guilty = 5
    for pack in range(200):
        if dispatcher.is_done:
            break
        task = dispatcher.next_pack(str(pack))
        if guilty not in task.tasks:
            report(dispatcher, str(pack), task, dict.fromkeys(task.tasks, State.PRUNED), 1)
        dispatcher.end(str(pack), "it was killed")
    assert dispatcher.is_done
    assert states(ledger) == dict.fromkeys(range(24), State.PRUNED) | {guilty: State.FAIL}
    deaths = [detail for _, kind, detail in ledger.events() if kind == "worker_died"]
    assert len(deaths) == num_deaths
    assert ledger.trials()[guilty].error == (
        f"its worker was lost {num_deaths} times, the last time: it was killed"
    )


def test_a_resume_shows_asha_no_accuracy_of_a_diverged_trial(ledger):
    """The accuracy of NaN is finite: 0.1 or even 0.9, and would fill a rung."""
    more = ", metric: validation_accuracy"

    def scheduler(dispatcher):
        rungs = Rungs(Asha(reduction_factor=2), max_epochs=16, seed=0)
        return AshaScheduler(
            rungs, metric="validation_accuracy", mode="max", curves=dispatcher.curves
        )

    def outcome(number, accuracy, loss=0.5):
        metrics = EpochMetrics(loss, accuracy, loss, accuracy, 0.1)
        state = State.RUNNING if math.isfinite(loss) else State.FAIL
        return Report(number, 1, metrics, state, rung=1)

    dispatcher = begin(ledger, num_places=1, pack_size=4, more=more)
    unbroken = scheduler(dispatcher)
    task = dispatcher.next_pack("a")
    reports = [outcome(0, 0.5), *(outcome(n, 0.9, loss=math.nan) for n in (1, 2, 3))]
    decided, _ = unbroken.decide(task, PackResult(task.pack, reports), parks_at=0)
    dispatcher.take("a", decided)
    resumed = scheduler(begin(ledger, num_places=1, pack_size=4, more=more))
    fresh = PackResult(9, [outcome(9, 0.6)])
    for asha in (unbroken, resumed):
        _, decision = asha.decide(PackTask(9, {9: None}), fresh, parks_at=0)
        assert not decision.stopped


def search_in_rounds(path, draw, num_places, brackets, *, num_deaths):
    """Search with made-up losses, packs in any order; return what the ledger says in the end.

    Args:
        path: Of the ledger.
        draw: Of the order of events, and of faults.
        num_places: How many packs at a time.
        brackets: ASHA's.
        num_deaths: How many workers die; if any, the driver dies too, to be resumed.
    """
    more = f", deterministic: true, asha: {{reduction_factor: 2, brackets: {brackets}}}"
    with closing(Ledger.create(path, {})) as ledger:
        is_done, deaths = False, [None] * num_deaths
        while not is_done:
            dispatcher = begin(ledger, num_places, num_trials=24, pack_size=4, more=more)
            rungs = Rungs(Asha(reduction_factor=2, brackets=brackets), max_epochs=16, seed=0)
            asha = AshaScheduler(
                rungs,
                metric="validation_loss",
                mode="min",
                curves=dispatcher.curves,
                is_deterministic=True,
            )
            _drive(dispatcher, asha, rungs, draw, deaths if num_deaths else None)
            is_done = dispatcher.is_done
        curves = [(number, epoch, made.validation_loss) for number, epoch, made in ledger.epochs()]
        trials = [(t.number, t.state, t.config, t.rung) for t in ledger.trials()]
        return trials, curves


def _drive(dispatcher, asha, rungs, draw, deaths):
    """Let packs train until all is done, or the driver dies."""
    live = {}  # by Ray's name: the pack, its trials, its epoch
    for step in itertools.count():
        if dispatcher.is_done or (deaths is not None and draw.random() < 0.02):
            return
        task = dispatcher.next_pack(str(step))
        if task is not None:
            live[str(step)] = [task, set(task.tasks), task.epoch]
            continue
        name = draw.choice(sorted(live))
        task, numbers, _ = live[name]
        if deaths and draw.random() < 0.1:
            deaths.pop()
            del live[name]
            dispatcher.end(name, "lost")
        else:
            decided, decision = asha.decide(task, _step(live[name], rungs, draw), parks_at=0)
            dispatcher.take(name, decided)
            if decision.parks:
                parked = PackResult(task.pack, [], states=dict.fromkeys(numbers, "state"))
                decided, _ = asha.decide(task, parked, parks_at=0)
                dispatcher.take(name, decided)
                numbers.clear()
            if numbers:
                continue
            del live[name]
            dispatcher.end(name, "over")
        if dispatcher.is_round_over:
            dispatcher.take_round(asha.end_round())


def _step(pack, rungs, draw):
    """Train epochs, as many as fit into a report and lead to no rung; return the report."""
    task, numbers, epoch = pack
    reports = []
    for _ in range(draw.randint(1, 3)):
        epoch += 1
        for number in sorted(numbers):
            rung = rungs.reached(number, epoch)
            loss = 1 + random.Random(number).random() + 1 / epoch  # noqa: S311 - a curve
            if number % 7 == 3 and epoch > number % 5:
                state, loss = State.FAIL, math.nan
            else:
                state = State.COMPLETE if epoch == 16 - number % 3 else State.RUNNING
            made = EpochMetrics(loss, 0.5, loss, 0.5, 0.1)
            reports.append(Report(number, epoch, made, state, rung))
        last = [one for one in reports if one.epoch == epoch]
        numbers -= {one.number for one in last if one.state is not State.RUNNING}
        if any(one.number in numbers and one.rung == epoch for one in last) or not numbers:
            break
    pack[2] = epoch
    return PackResult(task.pack, reports)


@pytest.mark.parametrize(("num_places", "brackets"), [(1, 1), (2, 1), (3, 2)])
def test_a_deterministic_search_does_not_depend_on_time(tmp_path, num_places, brackets):
    """Whichever packs are faster, die, or are resumed: the same trials, curves and stops."""
    found = [
        search_in_rounds(
            tmp_path / f"{seed}.db",
            random.Random(seed),  # noqa: S311 - events of a test
            num_places,
            brackets,
            num_deaths=2 if seed > 1 else 0,  # a third one could make a trial fail
        )
        for seed in range(4)
    ]
    trials, curves = found[0]
    assert len(trials) == 24
    assert {state for _, state, _, _ in trials} >= {State.COMPLETE, State.PRUNED}
    for others, other_curves in found[1:]:
        assert others == trials
        assert repr(other_curves) == repr(curves)  # NaN is itself there


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
