"""Begin a search with what another run has learnt.

The other run's best configurations are tried first. Where both searched the same space of the
same dataset by the same metric, the sampler takes its trials as history too; they are kept in
the new run's ledger, so that a resume needs the other run no longer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tune_softmax.config import Config
from tune_softmax.errors import ResultsError
from tune_softmax.metrics import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.results import Results

__all__ = ["Past", "from_json", "to_json", "warmed"]

# How many of the other run's best are tried: enough to have one that suits, few of the budget.
NUM_TRIED = 8
TRIED_FRACTION = 8


@dataclass(frozen=True, slots=True)
class Past:
    """A trial of another run, as far as a sampler learns from it.

    Attributes:
        state: COMPLETE or PRUNED.
        config: Its hyperparameters.
        curve: The metric after each epoch.
    """

    state: State
    config: Config
    curve: tuple[float, ...]


def warmed(experiment: Experiment, other: Results) -> tuple[Experiment, list[Past]]:
    """Return the experiment with another run's best among its points, and that run's history.

    Args:
        experiment: The search to begin.
        other: The run to learn from.

    Raises:
        ResultsError: Nothing of it lies in the experiment's space.
    """
    space, search = experiment.space, experiment.search
    num_points = min(NUM_TRIED, max(1, search.num_trials // TRIED_FRACTION))
    points = list(search.points)
    complete = other.ranked(other.trials[other.trials["state"] == State.COMPLETE])
    for number in complete["number"]:
        config = other.config(int(number))
        point = {name: getattr(config, name) for name in space.searched}
        inside = all(space.contains(name, value) for name, value in point.items())
        if inside and point not in points and len(points) < num_points + len(search.points):
            points.append(point)
    if len(points) == len(search.points):
        raise ResultsError(
            f"--from {other.folder.path}: none of its {len(complete)} complete trials lies in the "
            f"space of {experiment.name}; widen the space, or leave --from out"
        )
    points = points[: search.num_trials]
    warm = experiment.model_copy(
        update={"search": search.model_copy(update={"points": tuple(points)})}
    )
    theirs = other.experiment
    agree = (theirs.space, theirs.dataset, theirs.model, theirs.search.metric) == (
        *(experiment.space, experiment.dataset, experiment.model, search.metric),
    )
    return warm, list(_history(other)) if agree else []


def _history(other: Results) -> Iterable[Past]:
    metric = other.experiment.search.metric
    curves = other.epochs.groupby("trial")[metric].apply(list)
    for number, state in zip(other.trials["number"], other.trials["state"], strict=True):
        if state in {State.COMPLETE, State.PRUNED}:
            yield Past(State(state), other.config(int(number)), tuple(curves[number]))


def to_json(history: Iterable[Past]) -> str:
    """Write a history as text."""
    return json.dumps([asdict(past) for past in history])


def from_json(text: str) -> list[Past]:
    """Read what `to_json` wrote."""
    return [
        Past(State(past["state"]), Config(**past["config"]), tuple(past["curve"]))
        for past in json.loads(text)
    ]
