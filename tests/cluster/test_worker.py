"""A worker's steps, without Ray: they end on rungs, and parked trials continue elsewhere."""

import numpy as np
import pytest

from tune_softmax.cluster import worker
from tune_softmax.cluster.worker import PackTrainable, Settings
from tune_softmax.config import Config
from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.arrays import to_arrays
from tune_softmax.engine.pack import Pack
from tune_softmax.experiment.sections import Asha
from tune_softmax.metrics import State
from tune_softmax.scheduler.agenda import DataView, Task
from tune_softmax.scheduler.asha import Rungs
from tune_softmax.scheduler.messages import Decision, PackTask

CONFIGS = {n: Config(batch_size=64, num_epochs=4, learning_rate=0.1 * (n + 1)) for n in range(3)}
TASKS = {n: Task(config, DataView(seed=0), draw=n) for n, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def dataset():
    """Load a small dataset."""
    return load_dataset("digits", validation=0.25)


@pytest.fixture
def begin(dataset, monkeypatch):
    """Return a function that has a worker begin a pack."""
    monkeypatch.setattr(worker, "_device", lambda: "cpu")  # which Ray would say

    def of(task):
        made = PackTrainable.__new__(PackTrainable)
        rungs = Rungs(Asha(grace_period=1, reduction_factor=2), max_epochs=4, seed=0)
        made.setup({"task": task}, dataset, None, Settings(1, "mean", 0.01, "float32", rungs))
        return made

    return of


def run(made):
    """Take steps until the pack waits on a rung or is over; return all reports, and the end."""
    reports, is_over = [], False
    while not is_over and not (reports and reports[-1].epoch in {1, 2}):
        step = made.step()
        result, is_over = step["result"], step["done"]
        assert result.error is None
        reports += result.reports
    return reports, result, is_over


def losses(reports):
    """Return validation losses by epoch and trial."""
    return {(r.epoch, r.number): r.metrics.validation_loss for r in reports}


def unbroken(dataset):
    """Return the losses of a pack that nobody interrupts."""
    pack = Pack(CONFIGS, to_arrays(dataset), seed=0)
    return {
        (epoch, n): metrics.validation_loss
        for epoch in range(1, 5)
        for n, metrics in pack.train_epoch().items()
    }


def test_a_pack_waits_on_rungs_and_another_continues_where_it_parked(begin, dataset):
    """A stopped trial trains no more, and the others' curves are those of one whole pack."""
    first = begin(PackTask(0, TASKS))
    one, _, is_over = run(first)
    assert {(r.epoch, r.number, r.state) for r in one} == {(1, n, State.RUNNING) for n in CONFIGS}
    assert not is_over
    first.apply(Decision(frozenset({1})))
    two, _, _ = run(first)
    assert losses(two).keys() == {(2, 0), (2, 2)}
    first.apply(Decision(parks=True))
    reports, parked, is_over = run(first)
    assert (reports, sorted(parked.states), is_over) == ([], [0, 2], True)

    second = begin(PackTask(1, {n: TASKS[n] for n in (0, 2)}, epoch=2, recorded=2))
    second.start_from(parked.states)
    rest, _, is_over = run(second)
    assert is_over
    assert {r.state for r in rest if r.epoch == 4} == {State.COMPLETE}
    found = losses([*one, *two, *rest])
    assert found == {key: loss for key, loss in unbroken(dataset).items() if key in found}
    assert len(found) == 3 + 2 + 4


def test_a_pack_starts_from_the_states_that_it_is_given(begin, dataset):
    """Other weights lead elsewhere: it does not train again what was trained before."""
    made = begin(PackTask(1, TASKS, epoch=2, recorded=2))
    shape = (65, 10)
    made.start_from({n: [(np.zeros(shape, np.float32),) * 2] for n in CONFIGS})
    found = losses(run(made)[0])
    expected = unbroken(dataset)
    assert found.keys() == {(epoch, n) for epoch in (3, 4) for n in CONFIGS}
    assert all(found[key] != expected[key] for key in found)


def test_a_pack_whose_states_are_lost_trains_again(begin, dataset):
    """From the first epoch, and reports what comes after those that are recorded."""
    found = losses(run(begin(PackTask(1, TASKS, epoch=2, recorded=2)))[0])
    expected = unbroken(dataset)
    assert found == {key: expected[key] for key in found}
    assert found.keys() == {(epoch, n) for epoch in (3, 4) for n in CONFIGS}
