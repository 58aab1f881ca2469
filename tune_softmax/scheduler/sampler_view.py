"""Select the trials that a sampler learns from: comparable ones, and a limited number."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState, create_trial

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_SEEN", "MIN_SEEN", "sampler_view"]

MIN_SEEN = 10
"""So many trials must have reached a rung for it to be the level; TPE starts with as many."""

MAX_SEEN = 256
"""At most so many are selected, because every trial makes TPE's ask slower."""

# So many of them are the best ones, of which TPE takes at most 25 as good; the others are spread
# over the rest of the ranking.
NUM_BEST_SEEN = 64


def sampler_view(
    trials: Sequence[FrozenTrial], rungs: Sequence[int], *, minimize: bool
) -> list[FrozenTrial]:
    """Select what a sampler learns from.

    Where trials are stopped early, values after different numbers of epochs do not compare, and
    short trials end long before long ones: a sampler that sees all of them asks for more and more
    short ones. So the level is the highest rung that at least `MIN_SEEN` trials have reached, as
    in Falkner et al. 2018, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale",
    section 3.2. Trials that have reached it count by their value there, whatever happened later:
    the mean over the second half of the epochs up to the rung, because a single loss is noisy
    (see `metrics.num_averaged`). Unfinished trials below it count as running, and the sampler
    proposes others. Finished trials below it do not count.

    Args:
        trials: All that were asked for, in order; intermediate values are by epoch.
        rungs: Epochs at which trials may be stopped, ascending; empty where none are.
        minimize: Whether less is better.

    Returns:
        Trials in their order, failed ones left out; only running ones can make them more than
        `MAX_SEEN`.
    """
    known = [trial for trial in trials if trial.state is not TrialState.FAIL]
    level = max(
        (rung for rung in rungs if sum(_num_epochs(t) >= rung for t in known) >= MIN_SEEN),
        default=0,
    )
    seen: list[FrozenTrial] = []
    learnt: list[FrozenTrial] = []
    for trial in known:
        if level and _num_epochs(trial) >= level:
            seen.append(_at_rung(trial, level))
            learnt.append(seen[-1])
        elif trial.state is TrialState.RUNNING:
            seen.append(trial)
        elif not level:
            seen.append(trial)
            learnt.append(trial)
    if len(learnt) <= MAX_SEEN:
        return seen
    ranked = sorted(range(len(learnt)), key=lambda i: _rank(learnt[i], minimize=minimize))
    rest, num_spread = ranked[NUM_BEST_SEEN:], MAX_SEEN - NUM_BEST_SEEN
    spread = [rest[i * len(rest) // num_spread] for i in range(num_spread)]
    kept = {id(learnt[i]) for i in (*ranked[:NUM_BEST_SEEN], *spread)}
    return [t for t in seen if t.state is TrialState.RUNNING or id(t) in kept]


def _num_epochs(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=0)


def _at_rung(trial: FrozenTrial, rung: int) -> FrozenTrial:
    """Return a trial as if it had ended on the rung."""
    second_half = range(rung // 2 + 1, rung + 1)
    return create_trial(
        value=fmean(trial.intermediate_values[epoch] for epoch in second_half),
        params=trial.params,
        distributions=trial.distributions,
    )


def _rank(trial: FrozenTrial, *, minimize: bool) -> tuple[bool, int, float]:
    """Return a sort key with TPE's order: complete ones by value, then by epochs and value."""
    assert trial.value is not None
    is_complete = trial.state is TrialState.COMPLETE
    value = trial.value if minimize else -trial.value
    return not is_complete, 0 if is_complete else -_num_epochs(trial), value
