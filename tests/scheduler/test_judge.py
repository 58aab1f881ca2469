"""What a pack's reports bring its trials, against the referee's own word."""

from dataclasses import replace

import pytest
import run_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.experiment.experiment import Asha
from tune_softmax.metrics import Report, State
from tune_softmax.scheduler.asha import Referee, Rungs
from tune_softmax.scheduler.judge import Judge, Verdict
from tune_softmax.scheduler.messages import PackResult, PackTask

RUNGS = Rungs(Asha(grace_period=1, reduction_factor=2), max_epochs=8, seed=0)


def judge_of(*, parks_at=0, rungs=RUNGS, curves=None):
    """Return the judge of a search."""
    return Judge(
        rungs, metric="validation_loss", mode="min", parks_at=parks_at, curves=curves or {}
    )


def task_of(numbers, *, pack=0, recorded=0):
    """Return a pack of these trials."""
    return PackTask(pack, dict.fromkeys(numbers), recorded=recorded)


def report(number, epoch, loss, state=State.RUNNING):
    """Return what a worker reports of a trial."""
    metrics = replace(run_folders.metrics(number, epoch), validation_loss=loss)
    return Report(number, epoch, metrics, state, RUNGS.reached(number, epoch))


def hear(judge, task, reports, **more):
    """Return states by trial number as they are recorded, and what the pack hears."""
    judged, verdict = judge.hear(task, PackResult(task.pack, reports, **more))
    return {found.number: found.state for found in judged.reports}, verdict


@given(
    losses=st.lists(st.floats(0, 9) | st.just(float("nan")), min_size=1, max_size=40),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_who_ends_is_who_the_referee_stops(losses, data):
    """Over packs of any sizes; who fails or is complete stays so, and is told nothing."""
    judge, referee = judge_of(), Referee(RUNGS, "min")
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
            stopped = referee.judge(epoch, values, final)
            found, verdict = hear(
                judge, task_of(members), [report(n, epoch, live[n], states[n]) for n in members]
            )
            assert verdict == Verdict(frozenset(stopped))
            assert found == states | dict.fromkeys(stopped, State.PRUNED)
            for n in members:
                if found[n] is not State.RUNNING:
                    del live[n]


def test_between_rungs_nothing_is_to_hear():
    """A pack goes on at once, however poor its trials."""
    judge = judge_of(parks_at=4)
    hear(judge, task_of([0]), [report(0, 4, 0.1)])
    found, verdict = hear(judge, task_of([1], pack=1), [report(1, 3, 9.0)])
    assert found == {1: State.RUNNING}
    assert not verdict


def test_without_rungs_nothing_is_judged():
    """Neither stopped nor parked."""
    judge = judge_of(rungs=None, parks_at=4)
    for n, loss in enumerate((0.1, 9.0)):
        found, verdict = hear(judge, task_of([n]), [replace(report(n, 1, loss), rung=None)])
        assert found == {n: State.RUNNING}
        assert not verdict


def test_parked_trials_are_recorded_once_their_states_are_here():
    """With all that came with them, the stopped one too; then another pack has the states."""
    judge, task = judge_of(parks_at=2), task_of([0, 1, 2])
    reports = [report(0, 1, 0.1), report(1, 1, 0.1), report(2, 1, 9.0)]
    found, verdict = hear(judge, task, reports)
    assert found == {}
    assert verdict == Verdict(frozenset({2}), parks=True)
    assert judge.states([0, 1]) == {}
    result = PackResult(0, [], states={0: "zero", 1: "one"})
    judged, verdict = judge.hear(task, result)
    assert {r.number: r.state for r in judged.reports} == {
        0: State.PARKED,
        1: State.PARKED,
        2: State.PRUNED,
    }
    assert not verdict
    assert result.states == {}  # Ray Tune keeps the result
    assert judge.states([1, 5]) == {1: "one"}
    assert judge.states([0, 1]) == {0: "zero"}


def test_epochs_on_the_way_to_the_rung_are_recorded_as_they_were():
    """A parked trial trained in them."""
    judge, task = judge_of(parks_at=2), task_of([0])
    hear(judge, task, [report(0, 3, 0.1), report(0, 4, 0.1)])
    judged, _ = judge.hear(task, PackResult(0, [], states={0: "zero"}))
    assert [(r.epoch, r.state) for r in judged.reports] == [
        (3, State.RUNNING),
        (4, State.PARKED),
    ]


@pytest.mark.parametrize(
    ("num_left", "recorded", "parks"), [(3, 0, True), (4, 0, False), (3, 1, False)]
)
def test_a_pack_parks_few_trials_and_no_rung_twice(num_left, recorded, parks):
    """One that is trained again parked nothing on a rung that was recorded before it was lost."""
    task = task_of(range(num_left), recorded=recorded)
    _, verdict = hear(judge_of(parks_at=3), task, [report(n, 1, 0.5) for n in task.tasks])
    assert verdict.parks == parks


def test_a_search_that_goes_on_judges_as_if_it_had_not_been_interrupted():
    """The recorded values count; epochs that a lost pack reports again count once."""
    curves = {n: [0.1 * n, 0.1 * n] for n in range(4)}
    unbroken, resumed = judge_of(), judge_of(curves=curves)
    for epoch in (1, 2):
        for n in range(4):
            hear(unbroken, task_of([n]), [report(n, epoch, 0.1 * n)])
    for judge in (unbroken, resumed):
        for again in range(2):
            found, _ = hear(judge, task_of([9], pack=again), [report(9, 1, 0.25)])
            assert found == {9: State.PRUNED}
            found, _ = hear(judge, task_of([8], pack=again), [report(8, 2, 0.05)])
            assert found == {8: State.RUNNING}
