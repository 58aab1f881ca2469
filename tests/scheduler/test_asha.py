"""The referee: it stops whom Ray Tune's own ASHA would stop, and stands so after a restart."""

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tune_softmax.experiment.experiment import Asha
from tune_softmax.scheduler.asha import Referee, Rungs


@dataclass(frozen=True)
class Entrant:
    """What Ray Tune's scheduler looks at in a trial."""

    trial_id: str


def referee_of(asha, mode="min", max_epochs=8, seed=0):
    """Return the referee of a search."""
    return Referee(Rungs(asha, max_epochs, seed), mode)


def curves(num_trials, num_epochs, seed=0):
    """Return random curves that fall, each to a level of its own."""
    draw = random.Random(seed)  # noqa: S311 - test data
    return {
        number: [draw.random() + draw.random() / epoch for epoch in range(1, num_epochs + 1)]
        for number in range(num_trials)
    }


def run(referee, values, num_epochs, order=None):
    """Let trials run in packs of four until each is stopped or done; return epochs trained."""
    trained = {}
    for start in range(0, len(values), 4):
        live = (order or sorted(values))[start : start + 4]
        for epoch in range(1, num_epochs + 1):
            final = live if epoch == num_epochs else ()
            stopped = referee.judge(epoch, {n: values[n][epoch - 1] for n in live}, final)
            assert stopped <= set(live)
            trained |= dict.fromkeys(live, epoch)
            live = [n for n in live if n not in stopped]
    return trained


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("grace_period", "factor", "max_epochs"), [(1, 4, 30), (2, 3, 20), (1, 2.5, 16), (5, 2, 5)]
)
def test_the_referee_agrees_with_ray_tunes_own_scheduler(mode, grace_period, factor, max_epochs):
    """Fed the same results in the same order, both stop the same trials at the same epochs."""
    values = curves(40, max_epochs)
    asha = Asha(grace_period=grace_period, reduction_factor=factor)
    trained = run(referee_of(asha, mode, max_epochs), values, max_epochs)
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
    """Between rungs nobody is stopped, and a trial's last epoch ends it without a stop."""
    referee = referee_of(Asha(grace_period=2, reduction_factor=2))
    assert referee.judge(1, {0: 1.0, 1: 9.0}, ()) == set()
    assert referee.judge(2, {0: 1.0, 1: 9.0, 2: 9.0}, [2]) == {1}
    assert referee.judge(3, {0: 99.0}, ()) == set()


def test_what_is_heard_between_rungs_changes_nothing():
    """Workers ask on rungs alone, and a resume hears of every epoch."""
    values = curves(40, 16)
    asha = Asha(reduction_factor=2)
    every, on_rungs = referee_of(asha, max_epochs=16), referee_of(asha, max_epochs=16)
    for start in range(0, 40, 4):
        for epoch in range(1, 17):
            heard = {n: values[n][epoch - 1] for n in range(start, start + 4)}
            stopped = every.judge(epoch, heard, ())
            if epoch in {1, 2, 4, 8, 16}:
                assert on_rungs.judge(epoch, heard, ()) == stopped
            else:
                assert not stopped


def test_a_final_epoch_counts_for_the_others():
    """The value of a trial that was ending anyway still fills the rung."""
    referee = referee_of(Asha(grace_period=1, reduction_factor=2))
    referee.judge(1, {0: 1.0}, [0])
    assert referee.judge(1, {1: 2.0}, ()) == {1}


def test_the_rung_is_the_highest_one_reached():
    """Rungs are at 1, 3, 9 epochs for a grace period of 1 and a factor of 3."""
    rungs = Rungs(Asha(reduction_factor=3), 20, seed=0)
    assert rungs.of(0) == [1, 3, 9]
    reached = [rungs.reached(0, epoch) for epoch in range(21)]
    assert reached == [None, 1, 1, *[3] * 6, *[9] * 12]


def test_a_verdict_stands():
    """Epochs heard before get the same verdicts, although the rungs have filled since."""
    values = curves(12, 9)
    referee = referee_of(Asha(reduction_factor=3), max_epochs=9)
    first = {n: [] for n in values}
    for number, curve in values.items():
        for epoch, value in enumerate(curve, 1):
            first[number].append(referee.judge(epoch, {number: value}, ()))
            if first[number][-1]:
                break
    assert any(verdicts[-1] for verdicts in first.values())
    for number, verdicts in first.items():
        for epoch, verdict in enumerate(verdicts, 1):
            assert referee.judge(epoch, {number: 0.0}, ()) == verdict


def test_a_replay_fills_the_rungs_and_stops_nobody():
    """Recorded trials may train again to the end of what is recorded; new ones meet full rungs."""
    values = curves(30, 16)
    asha = Asha(reduction_factor=2)
    unbroken = referee_of(asha, max_epochs=16)
    trained = run(unbroken, values, 16)
    replayed = referee_of(asha, max_epochs=16)
    replayed.replay({n: dict(enumerate(curve[: trained[n]], 1)) for n, curve in values.items()})
    for number, last in trained.items():
        for epoch in range(1, last + 1):
            assert not replayed.judge(epoch, {number: 0.0}, ())
    fresh = {n + 30: curve for n, curve in curves(20, 16, seed=1).items()}
    assert run(replayed, fresh, 16, sorted(fresh)) == run(unbroken, fresh, 16, sorted(fresh))


def test_a_replay_leaves_out_what_a_search_never_shows_the_referee():
    """A diverged trial's values fill no rung, so a resumed search judges as an unbroken one."""
    asha = Asha(reduction_factor=2)
    replayed, unbroken = (referee_of(asha) for _ in range(2))
    unbroken.judge(1, {0: 1.0}, ())
    replayed.replay({0: {1: 1.0}, 1: {1: math.inf}, 2: {1: math.nan}, 3: {1: math.inf}})
    for number, value in ((4, 1.5), (5, 0.5), (6, 0.75)):
        assert replayed.judge(1, {number: value}, ()) == unbroken.judge(1, {number: value}, ())


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
