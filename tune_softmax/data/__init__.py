"""Examples in, checked and split into training, validation and test images.

`load_dataset`, `load_test`, `view` and the classes that they return are offered here too. They
are imported when they are first used (PEP 562), for a worker needs `seeding` alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_softmax.data.dataset import DATASETS, Dataset, Split, load_dataset, load_test, view

__all__ = ["DATASETS", "Dataset", "Split", "load_dataset", "load_test", "view"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tune_softmax.data import dataset

    return getattr(dataset, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
