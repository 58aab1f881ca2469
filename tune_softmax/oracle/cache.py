"""The points of regularization paths in the user's cache: one file for each dataset and split.

A file holds every point that was ever computed for its images, so that paths share points, and a
report finds them by the checksum that its run recorded. It needs neither torch nor the dataset.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pandas as pd

from tune_softmax import files
from tune_softmax.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ForeignFileError", "PathFile", "PathPoint", "frame"]

# Changes with what the columns mean; a file of another format is computed anew.
FORMAT = 1
INTEGERS = {"num_iterations"}
# Infinite where a point could not be certified; JSON has null for it.
BOUNDS = {"suboptimality_bound", "distance_bound", "validation_loss_bound"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPoint:
    """The convex optimum for one penalty, as nearly as it was found.

    Attributes:
        weight_decay: lambda, the penalty being lambda/2 * ||W||^2.
        train_loss: Mean cross-entropy in nats, without the penalty.
        objective: The same with the penalty.
        validation_loss: Mean cross-entropy in nats.
        validation_accuracy: In [0, 1].
        gradient_norm: Of the objective.
        suboptimality_bound: How far above the optimum the objective can be at most, in nats.
        distance_bound: How far the weights can be from the optimum's at most, Euclidean.
        validation_loss_bound: How far the validation loss can be from the optimum's at most, to
            either side, in nats.
        num_iterations: Newton steps.
        seconds: Wall clock.
    """

    weight_decay: float
    train_loss: float
    objective: float
    validation_loss: float
    validation_accuracy: float
    gradient_norm: float
    suboptimality_bound: float
    distance_bound: float
    validation_loss_bound: float
    num_iterations: int
    seconds: float


class ForeignFileError(Exception):
    """A file in the cache has another format or is damaged; the message says which."""


@dataclass(frozen=True, slots=True)
class PathFile:
    """The file of one dataset's points.

    Attributes:
        dataset: The dataset's name, of which the scale of its pixels follows.
        checksum: Of the training and validation images, as `data.dataset.Dataset.checksum`.
    """

    dataset: str
    checksum: str

    @property
    def path(self) -> Path:
        """Where it is.

        Raises:
            StorageError: There is no home folder to put it in.
        """
        try:
            folder = Path("~/.cache/tune_softmax/oracle").expanduser()
        except RuntimeError as error:
            raise StorageError(f"the oracle's cache needs a home folder: {error}") from error
        return folder / f"{self.dataset}-{self.checksum}.json"

    def read(self) -> list[PathPoint]:
        """Return the points that are known, by ascending penalty; none where there is no file.

        Raises:
            ForeignFileError: There is a file, but not one that says what is known.
        """
        try:
            content = files.read_json(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ForeignFileError(f"cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ForeignFileError("is not whole") from error
        return self._points(content)

    def _points(self, content: Any) -> list[PathPoint]:  # noqa: ANN401 - whatever a file holds
        about = {"format": FORMAT, "dataset": self.dataset, "checksum": self.checksum}
        if not isinstance(content, dict) or {k: content.get(k) for k in about} != about:
            raise ForeignFileError("is about something else, or of another release")
        rows = content.get("points")
        if not isinstance(rows, list):
            raise ForeignFileError("holds no list of points")
        return sorted(map(_point, rows), key=lambda point: point.weight_decay)

    def check_writable(self) -> None:
        """Raise StorageError unless points can be added, before they are computed."""
        with self._locked():
            pass

    def add(self, points: Iterable[PathPoint]) -> None:
        """Add points, in place of those for the same penalties.

        Processes that add at once wait for one another, and whatever happens the file is whole.

        Raises:
            StorageError: It cannot be written.
        """
        with self._locked():
            try:
                known = self.read()
            except ForeignFileError:
                known = []
            merged = {point.weight_decay: point for point in (*known, *points)}
            content = {
                "format": FORMAT,
                "dataset": self.dataset,
                "checksum": self.checksum,
                "points": [_row(merged[decay]) for decay in sorted(merged)],
            }
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            files.write_atomically(self.path, text)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path.with_suffix(".lock")):
                yield
        except OSError as error:
            raise StorageError(
                f"{path.parent}: the oracle's cache cannot be written ({error.strerror}); give "
                "write access, or set HOME to a folder that has it"
            ) from error


def frame(points: Iterable[PathPoint]) -> pd.DataFrame:
    """Return points as a dataframe, one row a penalty, ascending; columns as in `PathPoint`."""
    names = [field.name for field in fields(PathPoint)]
    rows = sorted((asdict(point) for point in points), key=lambda row: row["weight_decay"])
    types = {name: "int64" if name in INTEGERS else "float64" for name in names}
    return pd.DataFrame(rows, columns=names).astype(types)


def _row(point: PathPoint) -> dict[str, float | None]:
    row = asdict(point)
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _point(row: Any) -> PathPoint:  # noqa: ANN401 - whatever a file holds
    names = {field.name for field in fields(PathPoint)}
    if not isinstance(row, dict) or set(row) != names:
        raise ForeignFileError("holds a point that lacks something")
    values: dict[str, Any] = {
        name: math.inf if value is None and name in BOUNDS else value
        for name, value in row.items()
    }
    for name, value in values.items():
        kinds = int if name in INTEGERS else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= (math.inf if name in BOUNDS else sys.float_info.max):
            raise ForeignFileError(f"holds a point whose {name} is {value!r}")
    if not values["weight_decay"] > 0:
        raise ForeignFileError("holds a point without a penalty")
    return PathPoint(**values)
