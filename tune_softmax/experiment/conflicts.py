"""Contradictions between a search space and how it is searched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tune_softmax.config import HYPERPARAMETERS
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.space import Choice, IntRange
from tune_softmax.experiment.yaml_reader import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from tune_softmax.experiment.sections import Asha, Search
    from tune_softmax.experiment.space import Space, Value
    from tune_softmax.experiment.yaml_reader import KeyPath

__all__ = ["search_conflicts"]

_MAX_RUNGS = 1_000
_MAX_GP = 1_000_000  # integers, of which Optuna's GP makes several arrays


def search_conflicts(
    space: Space, search: Search, unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong between keys, each with the key to put it on.

    Args:
        space: The search space.
        search: How it is searched.
        unread: Keys of either whose value is only a stand-in, about which nothing is said.
    """
    if unread.isdisjoint({"asha", "num_epochs"}) and search.asha is not None:
        yield from _asha_conflicts(search.asha, int(space.largest("num_epochs")))
    if "sampler" not in unread and not space.is_constant:
        yield from _sampler_conflicts(space, search.sampler, unread)
    if "points" not in unread:
        yield from _point_conflicts(space, search.points, unread)
        if "num_trials" not in unread and len(search.points) > search.num_trials:
            got = f"{len(search.points)} for {search.num_trials} trials"
            yield ("search", "points"), f"must be at most search.num_trials, got {got}"


def _asha_conflicts(asha: Asha, epochs: int) -> Iterator[tuple[KeyPath, str]]:
    if asha.grace_period > epochs:
        text = f"must be <= the most epochs of the space, {epochs}, got {asha.grace_period}"
        yield ("search", "asha", "grace_period"), text
        return
    estimate = math.log(epochs / asha.grace_period) / math.log(asha.reduction_factor) + 1
    if estimate > _MAX_RUNGS:
        text = f"must give at most {_MAX_RUNGS:,} rungs, got {int(estimate):,}; make it larger"
        yield ("search", "asha", "reduction_factor"), text
        return
    # Each bracket begins one rung later; some rungs may round up to one and the same epoch.
    rungs = sum(1 for _ in asha.exact_rungs(epochs))
    if asha.brackets > rungs:
        text = (
            f"must be <= {rungs}, since a later bracket has no rung between grace_period "
            f"{asha.grace_period} and {epochs} epochs, got {asha.brackets}"
        )
        yield ("search", "asha", "brackets"), text


def _sampler_conflicts(
    space: Space, sampler: str, unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    if sampler == "grid":
        try:
            space.check_grid()
        except ExperimentError as error:
            yield ("search", "sampler"), str(error)
    if sampler == "gp":
        for name, domain in space.searched.items():
            if name not in unread and isinstance(domain, IntRange) and domain.size > _MAX_GP:
                text = (
                    f"gp lists every integer of a range: at most {_MAX_GP:,}, got "
                    f"{domain.size:,} for {name}; take tpe, or a larger step"
                )
                yield ("search", "sampler"), text
    if sampler == "cmaes" and unread.isdisjoint(HYPERPARAMETERS):
        numeric = [name for name, d in space.searched.items() if not isinstance(d, Choice)]
        if len(numeric) < 2:  # noqa: PLR2004 - CMA-ES adapts a covariance
            got = ", ".join(numeric) or "none"
            text = f"cmaes needs two or more of int, uniform and log_uniform, got {got}"
            yield ("search", "sampler"), f"{text}; take tpe"


def _point_conflicts(
    space: Space, points: Iterable[Mapping[str, Value]], unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    searched = space.searched
    for index, point in enumerate(points):
        for name, value in point.items():
            if name in unread or (name in searched and space.contains(name, value)):
                continue
            text = "must be left out, since it is a constant of the space"
            if name in searched:
                text = f"must be in the space, {searched[name]}"
            yield ("search", "points", index, name), f"{text}, got {shown(value)}"
