"""Let Ray Tune use workers that Ray has started already, and keep those without a trial.

A worker takes a second of processor time to start, and a pack often less than that to train. Ray
Tune has no options for this.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["in_running_workers", "keeping_idle_workers"]

MANY = 10**6


@contextmanager
def in_running_workers() -> Iterator[None]:
    """Let Ray Tune's trials, as long as the context lasts, run in workers that are there.

    Ray Tune asks for workers with a runtime environment of their own: a variable that keeps
    PyTorch Lightning from forking, credentials for S3, options of Ray Train. A pack uses none of
    these, and a node without agents, see `local_node`, cannot make runtime environments.
    """
    from ray.tune.execution import class_cache

    variables = [class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE]
    kept = [found.copy() for found in variables]
    for found in variables:
        found.clear()
    try:
        yield
    finally:
        for found, before in zip(variables, kept, strict=True):
            found.update(before)


@contextmanager
def keeping_idle_workers() -> Iterator[None]:
    """Let Ray Tune, as long as the context lasts, keep every worker that has no pack for now.

    Ray Tune keeps one. Where several places wait for another pack to leave them trials, as at the
    end of a search, it would end their workers and soon start others.
    """
    from ray.tune.execution import tune_controller

    original = tune_controller._ObjectCache  # noqa: SLF001

    class KeepsAll(original):  # type: ignore[valid-type, misc]
        """Ray Tune's cache of idle workers, with room for all."""

        def __init__(self, **options: Any) -> None:  # noqa: ANN401 - whatever Ray Tune gives
            super().__init__(**options)
            self._enlarged: set[object] = set()

        def cache_object(self, key: object, obj: object) -> bool:
            if key not in self._enlarged:
                self._enlarged.add(key)
                self.increase_max(key, MANY)
            return bool(super().cache_object(key, obj))

    tune_controller._ObjectCache = KeepsAll  # noqa: SLF001
    try:
        yield
    finally:
        tune_controller._ObjectCache = original  # noqa: SLF001
