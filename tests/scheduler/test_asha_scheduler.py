"""Decisions on packs' reports, against the rule over single trials."""

from dataclasses import replace

import pytest
import run_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.experiment.sections import Asha
from tune_softmax.metrics import Report, State
from tune_softmax.scheduler.asha import AshaRule, AshaScheduler, Rungs
from tune_softmax.scheduler.messages import Decision, PackResult, PackTask

RUNGS = Rungs(Asha(grace_period=1, reduction_factor=2), max_epochs=8, seed=0)


def scheduler_of(*, rungs=RUNGS, curves=None):
    """Return the scheduler of a search."""
    return AshaScheduler(rungs, metric="validation_loss", mode="min", curves=curves or {})


def task_of(numbers, *, pack=0, recorded=0):
    """Return a pack of these trials."""
    return PackTask(pack, dict.fromkeys(numbers), recorded=recorded)


def report(number, epoch, loss, state=State.RUNNING):
    """Return what a worker reports of a trial."""
    metrics = replace(run_folders.metrics(number, epoch), validation_loss=loss)
    return Report(number, epoch, metrics, state, RUNGS.reached(number, epoch))


def decide(asha, task, reports, *, parks_at=0):
    """Return states by trial number as they are recorded, and the decision."""
    decided, decision = asha.decide(task, PackResult(task.pack, reports), parks_at=parks_at)
    return {found.number: found.state for found in decided.reports}, decision


@given(
    losses=st.lists(st.floats(0, 9) | st.just(float("nan")), min_size=1, max_size=40),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_trials_stop_by_the_rule(losses, data):
    """In packs of any sizes; a failed or complete trial keeps its state and is not stopped."""
    asha, rule = scheduler_of(), AshaRule(RUNGS, "min")
    live = dict(enumerate(losses))
    for epoch in (1, 2, 4):
        numbers, pack = sorted(live), 10 * epoch
        while numbers:
            size = data.draw(st.integers(1, len(numbers)))
            members, numbers, pack = numbers[:size], numbers[size:], pack + 1
            states = {
                n: State.FAIL
                if live[n] != live[n]
                else data.draw(st.sampled_from([State.RUNNING, State.RUNNING, State.COMPLETE]))
                for n in members
            }
            values = {n: live[n] for n in members if states[n] is not State.FAIL}
            final = {n for n in members if states[n] is State.COMPLETE}
            stopped = rule.stopped(epoch, values, final)
            found, decision = decide(
                asha, task_of(members), [report(n, epoch, live[n], states[n]) for n in members]
            )
            assert decision == Decision(frozenset(stopped))
            assert found == states | dict.fromkeys(stopped, State.PRUNED)
            for n in members:
                if found[n] is not State.RUNNING:
                    del live[n]


def test_between_rungs_nothing_is_decided():
    """A pack continues at once, however poor its trials."""
    asha = scheduler_of()
    decide(asha, task_of([0]), [report(0, 4, 0.1)], parks_at=4)
    found, decision = decide(asha, task_of([1], pack=1), [report(1, 3, 9.0)], parks_at=4)
    assert found == {1: State.RUNNING}
    assert not decision


def test_without_rungs_nothing_stops():
    """Neither stopped nor parked."""
    asha = scheduler_of(rungs=None)
    for n, loss in enumerate((0.1, 9.0)):
        reports = [replace(report(n, 1, loss), rung=None)]
        found, decision = decide(asha, task_of([n]), reports, parks_at=4)
        assert found == {n: State.RUNNING}
        assert not decision


def test_parked_trials_are_recorded_once_their_states_have_arrived():
    """With their pack's other reports; then another pack gets the states."""
    asha, task = scheduler_of(), task_of([0, 1, 2])
    reports = [report(0, 1, 0.1), report(1, 1, 0.1), report(2, 1, 9.0)]
    found, decision = decide(asha, task, reports, parks_at=2)
    assert found == {}
    assert decision == Decision(frozenset({2}), parks=True)
    assert asha.take_states([0, 1]) == {}
    result = PackResult(0, [], states={0: "zero", 1: "one"})
    decided, decision = asha.decide(task, result, parks_at=2)
    assert {r.number: r.state for r in decided.reports} == {
        0: State.PARKED,
        1: State.PARKED,
        2: State.PRUNED,
    }
    assert not decision
    assert result.states == {}  # Ray Tune keeps the result
    assert asha.take_states([1, 5]) == {1: "one"}
    assert asha.take_states([0, 1]) == {0: "zero"}


def test_epochs_on_the_way_to_the_rung_are_recorded_as_they_were():
    """A parked trial trained in them."""
    asha, task = scheduler_of(), task_of([0])
    decide(asha, task, [report(0, 3, 0.1), report(0, 4, 0.1)], parks_at=2)
    decided, _ = asha.decide(task, PackResult(0, [], states={0: "zero"}), parks_at=2)
    assert [(r.epoch, r.state) for r in decided.reports] == [
        (3, State.RUNNING),
        (4, State.PARKED),
    ]


@pytest.mark.parametrize(
    ("num_left", "recorded", "parks"), [(3, 0, True), (4, 0, False), (3, 1, False)]
)
def test_a_pack_parks_few_trials_and_no_rung_twice(num_left, recorded, parks):
    """One that is trained again parked nothing on a rung that was recorded before it was lost."""
    task = task_of(range(num_left), recorded=recorded)
    reports = [report(n, 1, 0.5) for n in task.tasks]
    _, decision = decide(scheduler_of(), task, reports, parks_at=3)
    assert decision.parks == parks


def test_a_resumed_search_decides_as_an_uninterrupted_one():
    """The recorded values count; epochs that a lost pack reports again count once."""
    curves = {n: [0.1 * n, 0.1 * n] for n in range(4)}
    unbroken, resumed = scheduler_of(), scheduler_of(curves=curves)
    for epoch in (1, 2):
        for n in range(4):
            decide(unbroken, task_of([n]), [report(n, epoch, 0.1 * n)])
    for asha in (unbroken, resumed):
        for again in range(2):
            found, _ = decide(asha, task_of([9], pack=again), [report(9, 1, 0.25)])
            assert found == {9: State.PRUNED}
            found, _ = decide(asha, task_of([8], pack=again), [report(8, 2, 0.05)])
            assert found == {8: State.RUNNING}
