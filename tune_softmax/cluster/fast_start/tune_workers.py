"""How Ray Tune comes by the workers that its trials run in, and keeps them.

A worker takes a second of processor time to start, a pack often less than that to train. What
Ray Tune has no options for is replaced for the length of a search; a Ray that has no such names
does as it likes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tune_softmax.cluster.fast_start.lean_tune import tune

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Patient", "in_running_workers", "keeping_idle_workers"]

MANY = 10**6


class Patient(tune.schedulers.FIFOScheduler):
    """Leaves a pack to the worker that is starting for it.

    Ray Tune's own scheduler names a pack that waits, and a worker that is free takes it at once;
    the one that was starting is ended, and a new one started for the next pack. Where packs take
    less time than workers to start, that goes on to the end, and one place does the work of two.
    """

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """Name none: Ray Tune then starts packs in their order, each where there is room."""


@contextmanager
def in_running_workers() -> Iterator[None]:
    """Let Ray Tune's trials, as long as the context lasts, run in workers that Ray has started.

    It asks for workers of their own, with a variable set that keeps PyTorch Lightning from
    forking, and with credentials for S3 and options of Ray Train where the driver has them. A
    pack uses none of these, and a local cluster could not make such workers at all.
    """
    from ray.tune.execution import class_cache

    names = ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")
    variables = [getattr(class_cache, name) for name in names if hasattr(class_cache, name)]
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

    It keeps one. Where several places wait for what a pack leaves behind, as in the end of a
    search, it would end their workers and soon start others.
    """
    from ray.tune.execution import tune_controller

    made = getattr(tune_controller, "_ObjectCache", None)
    if made is None:
        yield
        return

    class KeepsAll(made):  # type: ignore[valid-type, misc]
        """Ray Tune's cache of workers, which keeps as many as somebody has asked for."""

        def __init__(self, **options: Any) -> None:  # noqa: ANN401 - whatever Ray Tune gives
            super().__init__(**options)
            self._asked: set[object] = set()

        def cache_object(self, key: object, obj: object) -> bool:
            if key not in self._asked:
                self._asked.add(key)
                self.increase_max(key, MANY)
            return bool(super().cache_object(key, obj))

    tune_controller._ObjectCache = KeepsAll  # noqa: SLF001
    try:
        yield
    finally:
        tune_controller._ObjectCache = made  # noqa: SLF001
