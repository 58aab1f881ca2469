"""Import Ray Tune without what it names in annotations alone: pandas and Ray Data.

The two take most of the time of `import ray.tune`, in the driver and in every worker, and memory
besides. Placeholders stand for them meanwhile; code that uses more of them than these names gets
the real module.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tune_softmax.cluster.fast_start.deferred import deferred

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["without_annotations", "without_ray_data"]


@contextmanager
def without_ray_data() -> Iterator[None]:
    """Let Ray Tune run without Ray Data: it only asks whether a trial was given a dataset."""
    with deferred("ray.data", "Dataset"):
        yield


@contextmanager
def without_annotations() -> Iterator[None]:
    """Let Ray Tune be imported without pandas and Ray Data."""
    with without_ray_data(), deferred("pandas", "DataFrame"):
        yield
