"""Ray Tune, imported without what it names in annotations alone: pandas and Ray Data.

The two take most of the time of `import ray.tune`, in the driver and in every worker, and memory
besides. So while Ray Tune is imported, something else stands for them; whatever uses more of
them than these names gets the real module, then and later.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tune_softmax.lasting import lasting

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["tune", "without_ray_data"]


class _Annotation(ModuleType):
    """Stands for a module of which annotations name one class.

    Args:
        module: Its name.
        named: The class; what is given for it makes objects of the real one.
    """

    def __init__(self, module: str, named: str) -> None:
        super().__init__(module)
        self._named: str | None = named

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module holds
        if name == self._named:
            return type(
                name, (), {"__new__": lambda _, *args, **kwargs: self._real(name)(*args, **kwargs)}
            )
        if name == "__path__":  # asked for by every `from MODULE import NAME`
            raise AttributeError(name)
        return self._real(name)

    def _real(self, name: str) -> Any:  # noqa: ANN401
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)

    def leave(self) -> None:
        """Let the real module be imported from now on."""
        self._named = None
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextmanager
def _only_named(module: str, named: str) -> Iterator[None]:
    """Put off importing a module as long as the context lasts, if that has not happened yet."""
    if module in sys.modules:
        yield
        return
    stand_in = sys.modules[module] = _Annotation(module, named)
    try:
        yield
    finally:
        stand_in.leave()


@contextmanager
def without_ray_data() -> Iterator[None]:
    """Let Ray Tune run without Ray Data, of which it asks whether a trial was given a dataset."""
    with _only_named("ray.data", "Dataset"):
        yield


with lasting(), without_ray_data(), _only_named("pandas", "DataFrame"):
    from ray import tune
