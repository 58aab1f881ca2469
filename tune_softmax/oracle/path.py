"""The regularization path that a search is compared with: certified optima for many penalties.

Softmax regression with an L2 penalty is convex, so the optimum for a penalty can be computed.
`solver.py` finds it, `cache.py` keeps it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.data.dataset import load_for
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment import as_experiment
from tune_softmax.experiment.space import LogUniform, Uniform
from tune_softmax.oracle.cache import ForeignFileError, PathFile, PathPoint, frame

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from tune_softmax.data.dataset import Dataset
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.oracle.solver import Optimum

__all__ = ["NUM_PENALTIES", "Oracle", "Progress", "oracle", "penalties"]

NUM_PENALTIES = 12
# Where the experiment has no range of its own.
LOWEST, HIGHEST = 1e-6, 1e-1
# Points between the best of the path and its neighbours, each at a parabola's vertex.
NUM_REFINEMENTS = 2
# The least distance of a new point from known ones, in log lambda; below it losses differ by 1e-5.
NEAR = 0.05


@dataclass(frozen=True, slots=True)
class Oracle:
    """A regularization path.

    Attributes:
        path: One row a penalty, ascending, for every point that is known of these images, also
            from earlier paths; columns as in `PathPoint`.
        best: The point with the least validation loss.
        file: Where they are kept.
        num_computed: How many were not known before.
    """

    path: pd.DataFrame
    best: PathPoint
    file: PathFile
    num_computed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an oracle is.

    Attributes:
        number: Which point is concerned, 1 for the first.
        total: How many there will be, unless the last are too near to known ones.
        weight_decay: The point's penalty.
        num_steps: Newton steps so far.
        bound: How far the validation loss can be from the optimum's, in nats.
        point: What was found, at the end.
        is_known: Whether it was known before.
    """

    number: int
    total: int
    weight_decay: float
    num_steps: int = 0
    bound: float = math.inf
    point: PathPoint | None = None
    is_known: bool = False


def penalties(
    experiment: Experiment,
    *,
    number: int = NUM_PENALTIES,
    low: float | None = None,
    high: float | None = None,
) -> tuple[float, ...]:
    """Return the penalties of an experiment's path, descending, evenly on a logarithmic scale.

    They span the range of weight decay that the experiment searches, or 1e-6 to 1e-1 where it
    searches none. Below 1e-6 a path begins only if `low` says so: there points take minutes and
    validation losses are far from the best.

    Args:
        experiment: Whose path.
        number: How many, >= 2.
        low: The least, > 0, instead.
        high: The greatest instead.

    Raises:
        ExperimentError: There are no such penalties.
    """
    place = experiment.space.weight_decay
    lowest, highest = LOWEST, HIGHEST
    if isinstance(place, LogUniform | Uniform):
        highest = place.high
        lowest = max(place.low, min(LOWEST, highest / 100))
    lowest = lowest if low is None else low
    highest = highest if high is None else high
    if not 0 < lowest < highest < math.inf:
        raise ExperimentError(
            f"the path's penalties must have 0 < low < high, got low {lowest:g} and high "
            f"{highest:g}; see --low and --high"
        )
    if number < 2:  # noqa: PLR2004 - both ends
        raise ExperimentError(f"a path has at least 2 penalties, got {number}")
    ratio = math.log(lowest / highest)
    inner = (highest * math.exp(ratio * i / (number - 1)) for i in range(1, number - 1))
    return (highest, *inner, lowest)


def oracle(
    experiment: Experiment | Mapping[str, object] | Path | str,
    *,
    path: Sequence[float] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> Oracle:
    """Find the optimum for each penalty of a path, and refine the path around the best.

    Points that are known for the same images are taken from the cache; each new one is kept
    there as soon as it is found.

    Args:
        experiment: Whose dataset and split: an experiment, the path of an experiment file, or a
            mapping with the keys of one.
        path: Penalties, each > 0; by default those of `penalties`.
        data_dir: Folder of the public datasets.
        on_progress: Called before each Newton step and after each point.
        on_note: Called with what is worth knowing besides, one line.

    Raises:
        ExperimentError: The experiment is about another model, or a penalty is out of range.
        DataError: The dataset cannot be had.
        StorageError: The cache cannot be written.
    """
    experiment = as_experiment(experiment)
    experiment.check_convex()
    wanted = sorted(penalties(experiment) if path is None else set(path), reverse=True)
    if not wanted or not all(0 < decay < math.inf for decay in wanted):
        raise ExperimentError(f"penalties must be numbers > 0, got {wanted}")
    dataset = load_for(experiment.dataset, data_dir)
    finder = _Finder(dataset, len(wanted) + NUM_REFINEMENTS, on_progress)
    try:
        finder.known = {point.weight_decay: point for point in finder.file.read()}
    except ForeignFileError as error:
        on_note(f"{finder.file.path}: {error}; computing anew")
    points = [finder.find(decay) for decay in wanted]
    for _ in range(NUM_REFINEMENTS):
        decay = _vertex(points)
        if decay is None:
            break
        points.append(finder.find(decay))
    known = list({**finder.known, **{point.weight_decay: point for point in points}}.values())
    best = min(known, key=lambda point: point.validation_loss)
    return Oracle(frame(known), best, finder.file, finder.num_computed)


class _Finder:
    """Gets points from the cache, or by Newton's method, which it adds to the cache."""

    def __init__(
        self, dataset: Dataset, total: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self.file = PathFile(dataset.name, dataset.checksum)
        self.known: dict[float, PathPoint] = {}
        self.num_computed = 0
        self._dataset = dataset
        self._total = total
        self._on_progress = on_progress
        self._number = 0
        self._solve: Callable[..., Optimum] | None = None

    def find(self, weight_decay: float) -> PathPoint:
        self._number += 1
        point = self.known.get(weight_decay)
        is_known = point is not None
        if point is None:
            point = self._compute(weight_decay)
            self.file.add([point])
            self.num_computed += 1
        self._tell(weight_decay, point=point, is_known=is_known)
        return point

    def _tell(self, weight_decay: float, **details: object) -> None:
        self._on_progress(Progress(self._number, self._total, weight_decay, **details))  # type: ignore[arg-type]

    def _compute(self, weight_decay: float) -> PathPoint:
        if self._solve is None:
            self.file.check_writable()
            # Points from the cache need no torch.
            from tune_softmax.engine.tensors import to_tensors
            from tune_softmax.oracle.objective import Problem
            from tune_softmax.oracle.solver import Solver

            self._solve = Solver(Problem(to_tensors(self._dataset))).solve
        found = self._solve(
            weight_decay,
            on_step=lambda steps, _point, certificate: self._tell(
                weight_decay, num_steps=steps, bound=certificate.validation_loss
            ),
        )
        return PathPoint(
            weight_decay=weight_decay,
            train_loss=found.train_loss,
            objective=found.objective,
            validation_loss=found.validation_loss,
            validation_accuracy=found.validation_accuracy,
            gradient_norm=found.gradient_norm,
            suboptimality_bound=found.certificate.suboptimality,
            distance_bound=found.certificate.distance,
            validation_loss_bound=found.certificate.validation_loss,
            num_iterations=found.num_iterations,
            seconds=found.seconds,
        )


def _vertex(points: Sequence[PathPoint]) -> float | None:
    """Return where a parabola through the best point and its neighbours is least.

    The parabola is of the validation loss over log lambda.

    Returns:
        A penalty between the neighbours, or None where the best point is at an end of the path
        or the vertex is at a known point.
    """
    ordered = sorted(points, key=lambda point: point.weight_decay)
    middle = min(range(len(ordered)), key=lambda i: ordered[i].validation_loss)
    if middle in {0, len(ordered) - 1}:
        return None
    three = ordered[middle - 1 : middle + 2]
    x0, x1, x2 = (math.log(point.weight_decay) for point in three)
    y0, y1, y2 = (point.validation_loss for point in three)
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)  # both >= 0
    if left + right == 0:
        return None
    # The slopes at the middles of both sides are -left and right; the vertex is where it is 0.
    middles = (x0 + x1) / 2, (x1 + x2) / 2
    x = middles[0] + left / (left + right) * (middles[1] - middles[0])
    is_new = min(abs(x - known) for known in (x0, x1, x2)) > NEAR
    return math.exp(x) if is_new else None
