"""Defer a module's import until something of the module is used."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["deferred"]


class _Placeholder(ModuleType):
    """Stands for a module, and imports it as soon as something of it is used."""

    def __init__(self, module: str, annotation: str) -> None:
        super().__init__(module)
        self._annotation: str | None = annotation

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module holds
        if name == self._annotation:
            return type(
                name, (), {"__new__": lambda _, *args, **kwargs: self._real(name)(*args, **kwargs)}
            )
        if name == "__path__":  # asked for by every `from MODULE import NAME`
            raise AttributeError(name)
        return self._real(name)

    def _real(self, name: str) -> Any:  # noqa: ANN401
        self.remove()
        return getattr(importlib.import_module(self.__name__), name)

    def remove(self) -> None:
        """Let the real module be imported from now on."""
        self._annotation = None
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextmanager
def deferred(module: str, annotation: str) -> Iterator[None]:
    """Import a placeholder for as long as the context lasts, if the module is not there yet.

    Args:
        module: The module's name.
        annotation: A class of it that may be named, in annotations, without importing it.
    """
    if module in sys.modules:
        yield
        return
    placeholder = sys.modules[module] = _Placeholder(module, annotation)
    try:
        yield
    finally:
        placeholder.remove()
