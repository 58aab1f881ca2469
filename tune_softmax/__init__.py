"""Distributed hyperparameter search for softmax regression."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_softmax.studies.predict import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> object:
    """Import what needs torch once it is asked for (PEP 562)."""
    if name == "load_model":
        from tune_softmax.studies.predict import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
