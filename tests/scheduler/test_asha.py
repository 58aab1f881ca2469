"""ASHA's rule: it stops the trials that Ray Tune's own ASHA stops, also after a restart."""

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune_softmax.experiment.sections import Asha
from tune_softmax.scheduler.asha import AshaRule, Rungs


@dataclass(frozen=True)
class Entrant:
    """What Ray Tune's scheduler looks at in a trial."""

    trial_id: str


def rule_of(asha, mode="min", max_epochs=8, seed=0):
    """Return the rule of a search."""
    return AshaRule(Rungs(asha, max_epochs, seed), mode)


def curves(num_trials, num_epochs, seed=0):
    """Return random curves that fall, each to a level of its own."""
    draw = random.Random(seed)  # noqa: S311 - test data
    return {
        number: [draw.random() + draw.random() / epoch for epoch in range(1, num_epochs + 1)]
        for number in range(num_trials)
    }


def run(rule, values, num_epochs, order=None):
    """Let trials run in packs of four until each is stopped or done; return epochs trained."""
    trained = {}
    for start in range(0, len(values), 4):
        live = (order or sorted(values))[start : start + 4]
        for epoch in range(1, num_epochs + 1):
            final = live if epoch == num_epochs else ()
            stopped = rule.stopped(epoch, {n: values[n][epoch - 1] for n in live}, final)
            assert stopped <= set(live)
            trained |= dict.fromkeys(live, epoch)
            live = [n for n in live if n not in stopped]
    return trained


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("grace_period", "factor", "max_epochs"), [(1, 4, 30), (2, 3, 20), (1, 2.5, 16), (5, 2, 5)]
)
def test_the_rule_agrees_with_ray_tunes_own_scheduler(mode, grace_period, factor, max_epochs):
    """Fed the same results in the same order, both stop the same trials at the same epochs."""
    values = curves(40, max_epochs)
    asha = Asha(grace_period=grace_period, reduction_factor=factor)
    trained = run(rule_of(asha, mode, max_epochs), values, max_epochs)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=mode,
        max_t=max_epochs,
        grace_period=grace_period,
        reduction_factor=factor,
    )
    expected = {}
    for start in range(0, 40, 4):
        live = list(range(start, start + 4))
        for number in live:
            scheduler.on_trial_add(None, Entrant(str(number)))
        for epoch in range(1, max_epochs + 1):
            for number in tuple(live):
                result = {"epoch": epoch, "value": values[number][epoch - 1]}
                expected[number] = epoch
                action = scheduler.on_trial_result(None, Entrant(str(number)), result)
                if action == TrialScheduler.STOP:
                    live.remove(number)
    assert trained == expected
    if grace_period < max_epochs:
        assert len(set(trained.values())) > 1


def test_a_trial_that_is_worse_is_stopped_on_the_rung():
    """Between rungs none is stopped, and neither is one whose last epoch this is."""
    rule = rule_of(Asha(grace_period=2, reduction_factor=2))
    assert rule.stopped(1, {0: 1.0, 1: 9.0}, ()) == set()
    assert rule.stopped(2, {0: 1.0, 1: 9.0, 2: 9.0}, [2]) == {1}
    assert rule.stopped(3, {0: 99.0}, ()) == set()


def test_values_between_rungs_change_nothing():
    """Workers report on rungs, and a resume replays every epoch."""
    values = curves(40, 16)
    asha = Asha(reduction_factor=2)
    every, on_rungs = rule_of(asha, max_epochs=16), rule_of(asha, max_epochs=16)
    for start in range(0, 40, 4):
        for epoch in range(1, 17):
            found = {n: values[n][epoch - 1] for n in range(start, start + 4)}
            stopped = every.stopped(epoch, found, ())
            if epoch in {1, 2, 4, 8, 16}:
                assert on_rungs.stopped(epoch, found, ()) == stopped
            else:
                assert not stopped


def test_a_final_epoch_counts_for_the_others():
    """The value of a trial that was ending anyway still fills the rung."""
    rule = rule_of(Asha(grace_period=1, reduction_factor=2))
    rule.stopped(1, {0: 1.0}, [0])
    assert rule.stopped(1, {1: 2.0}, ()) == {1}


def test_the_rung_is_the_highest_one_reached():
    """Rungs are at 1, 3, 9 epochs for a grace period of 1 and a factor of 3."""
    rungs = Rungs(Asha(reduction_factor=3), 20, seed=0)
    assert rungs.of(0) == [1, 3, 9]
    reached = [rungs.reached(0, epoch) for epoch in range(21)]
    assert reached == [None, 1, 1, *[3] * 6, *[9] * 12]


def test_a_decision_is_repeated():
    """Epochs asked for again get the same answers, although the rungs have filled since."""
    values = curves(12, 9)
    rule = rule_of(Asha(reduction_factor=3), max_epochs=9)
    first = {n: [] for n in values}
    for number, curve in values.items():
        for epoch, value in enumerate(curve, 1):
            first[number].append(rule.stopped(epoch, {number: value}, ()))
            if first[number][-1]:
                break
    assert any(answers[-1] for answers in first.values())
    for number, answers in first.items():
        for epoch, answer in enumerate(answers, 1):
            assert rule.stopped(epoch, {number: 0.0}, ()) == answer


def test_a_replay_fills_the_rungs_and_stops_nothing():
    """Recorded trials may train again to the end of what is recorded; new ones meet full rungs."""
    values = curves(30, 16)
    asha = Asha(reduction_factor=2)
    unbroken = rule_of(asha, max_epochs=16)
    trained = run(unbroken, values, 16)
    replayed = rule_of(asha, max_epochs=16)
    replayed.replay({n: curve[: trained[n]] for n, curve in values.items()})
    for number, last in trained.items():
        for epoch in range(1, last + 1):
            assert not replayed.stopped(epoch, {number: 0.0}, ())
    fresh = {n + 30: curve for n, curve in curves(20, 16, seed=1).items()}
    assert run(replayed, fresh, 16, sorted(fresh)) == run(unbroken, fresh, 16, sorted(fresh))


def test_a_replay_leaves_diverged_epochs_out():
    """A diverged trial's values fill no rung, so a resume decides as an unbroken search."""
    asha = Asha(reduction_factor=2)
    replayed, unbroken = (rule_of(asha) for _ in range(2))
    unbroken.stopped(1, {0: 1.0}, ())
    replayed.replay({0: [1.0], 1: [math.inf], 2: [math.nan], 3: [math.inf]})
    for number, value in ((4, 1.5), (5, 0.5), (6, 0.75)):
        assert replayed.stopped(1, {number: value}, ()) == unbroken.stopped(1, {number: value}, ())


def test_brackets_are_drawn_from_seed_and_number():
    """A trial's bracket is the same whoever comes before, and follows Ray Tune's odds."""
    asha = Asha(brackets=3, reduction_factor=2)
    rungs, other = (Rungs(asha, 16, seed=1) for _ in range(2))
    forward = [rungs.bracket(number) for number in range(600)]
    backward = [other.bracket(number) for number in reversed(range(600))]
    assert forward == backward[::-1]
    counts = Counter(forward)
    weights = [math.exp(-bracket) for bracket in range(3)]
    for bracket, weight in enumerate(weights):
        assert counts[bracket] / 600 == pytest.approx(weight / sum(weights), abs=0.06)
    assert forward != [Rungs(asha, 16, seed=2).bracket(n) for n in range(600)]


def test_a_later_bracket_has_its_first_rung_later():
    """Bracket s begins at the grace period times the factor to the s."""
    rungs = Rungs(Asha(brackets=2, grace_period=2, reduction_factor=3), 20, seed=0)
    found = {(rungs.bracket(number), *rungs.of(number)) for number in range(20)}
    assert found == {(0, 2, 6, 18), (1, 6, 18)}
