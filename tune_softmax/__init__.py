"""Distributed hyperparameter search for softmax regression.

The verbs of the command line are functions here. Each name is imported when it is first used
(PEP 562), so that `import tune_softmax` is quick and loads neither torch, Ray nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tune_softmax.errors import (
    ClusterError,
    ClusterLostError,
    DamagedRunError,
    DataError,
    ExperimentError,
    InterruptedEarlyError,
    PackError,
    ResultsError,
    RunInUseError,
    SearchInterruptedError,
    StorageError,
    TuneSoftmaxError,
)

if TYPE_CHECKING:
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.oracle.path import oracle
    from tune_softmax.run.results import load
    from tune_softmax.studies.confirm import confirm
    from tune_softmax.studies.predict import load_model
    from tune_softmax.studies.remedies import remedies
    from tune_softmax.studies.search import resume, search
    from tune_softmax.studies.train import train

    __version__: str

__all__ = [
    "ClusterError",
    "ClusterLostError",
    "DamagedRunError",
    "DataError",
    "Experiment",
    "ExperimentError",
    "InterruptedEarlyError",
    "PackError",
    "ResultsError",
    "RunInUseError",
    "SearchInterruptedError",
    "StorageError",
    "TuneSoftmaxError",
    "__version__",
    "confirm",
    "load",
    "load_model",
    "oracle",
    "remedies",
    "resume",
    "search",
    "train",
]

_HOMES = {
    "Experiment": "experiment.experiment",
    "confirm": "studies.confirm",
    "load": "run.results",
    "load_model": "studies.predict",
    "remedies": "studies.remedies",
    "resume": "studies.search",
    "search": "studies.search",
    "train": "studies.train",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used."""
    if name == "oracle":  # a folder that can be called, see its docstring
        return import_module("tune_softmax.oracle")
    if name == "__version__":
        from importlib.metadata import version

        return version("tune-softmax")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"tune_softmax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names that are not imported yet too."""
    return sorted({*globals(), *__all__})
