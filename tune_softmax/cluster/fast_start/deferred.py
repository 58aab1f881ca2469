"""Putting an import off until something of the module is used, or leaving it out."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["leave_out", "put_off"]


class _StandIn(ModuleType):
    """Stands for a module, and brings it as soon as something of it is used.

    Args:
        module: Its name.
        named: A class that annotations name; what is given for it makes objects of the real one.
    """

    def __init__(self, module: str, named: str | None) -> None:
        super().__init__(module)
        self._named = named

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
def put_off(module: str, named: str | None = None) -> Iterator[None]:
    """Import a stand-in for as long as the context lasts, if the module is not there yet.

    Args:
        module: Its name.
        named: A class that may be named, in annotations, without being used.
    """
    if module in sys.modules:
        yield
        return
    stand_in = sys.modules[module] = _StandIn(module, named)
    try:
        yield
    finally:
        stand_in.leave()


@contextmanager
def leave_out(module: str) -> Iterator[None]:
    """Let an import fail for as long as the context lasts, if the module is not there yet.

    Args:
        module: Its name; whoever imports it can do without.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
