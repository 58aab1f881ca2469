"""What every way of searching is asked: one space, one split, one early stopping."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_softmax.bench.trace import Trace
from tune_softmax.data.dataset import choose_validation, default_data_dir
from tune_softmax.data.idx import LABELS, read_idx
from tune_softmax.data.public import PUBLIC_DATASETS, fetch
from tune_softmax.experiment import yaml_reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "BATCH_SIZES",
    "GRACE_PERIOD",
    "LEARNING_RATES",
    "MOMENTA",
    "NUM_EPOCHS",
    "NUM_VALIDATION",
    "NUM_WORKERS",
    "REDUCTION_FACTOR",
    "WEIGHT_DECAYS",
    "Task",
    "our_experiment",
    "prepare_images",
]

# The space: a choice, and ranges that are logarithmic but for the momenta.
BATCH_SIZES = (64, 128, 256, 512, 1024)
LEARNING_RATES = (1e-3, 1.0)
WEIGHT_DECAYS = (1e-7, 1e-2)
MOMENTA = (0.0, 0.95)
# Early stopping: rungs after 1, 4 and 16 epochs.
NUM_EPOCHS = 20
GRACE_PERIOD = 1
REDUCTION_FACTOR = 4
NUM_WORKERS = 2
NUM_VALIDATION = 10_000


@dataclass(frozen=True, slots=True)
class Task:
    """One search that a process is asked for.

    Attributes:
        folder: Whatever it writes goes here.
        images: Where torchvision finds Fashion-MNIST; see `prepare_images`.
        num_trials: Configurations to try.
        seed: Of proposals and all else.
        started: When it was typed, on the monotonic clock.
    """

    folder: Path
    images: Path
    num_trials: int
    seed: int
    started: float

    @property
    def file(self) -> Path:
        """The task itself, for its process to read."""
        return self.folder / "task.json"

    @property
    def trace(self) -> Trace:
        """Where validation losses are reported."""
        return Trace(self.folder / "trace.jsonl", self.started)

    def split(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which of the 60,000 images train and which validate, by index."""
        with np.load(self.images / "split.npz") as arrays:
            return arrays["train"], arrays["validation"]

    def write(self) -> None:
        """Write the task to its file."""
        content = asdict(self) | {"folder": str(self.folder), "images": str(self.images)}
        self.file.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, file: Path | str) -> Task:
        """Return what `write` wrote."""
        task = cls(**json.loads(Path(file).read_text(encoding="utf-8")))
        return replace(task, folder=Path(task.folder), images=Path(task.images))

    @classmethod
    def from_command_line(cls) -> Task:
        """Return the task whose file is this process's only argument."""
        (file,) = sys.argv[1:]
        return cls.read(file)


def our_experiment(
    dataset: Mapping[str, Any],
    num_trials: int,
    *,
    seed: int = 0,
    max_concurrent_packs: int = NUM_WORKERS,
) -> str:
    """Return the task as an experiment file of ours.

    Args:
        dataset: The file's section of that name.
        num_trials: Configurations to try.
        seed: Of proposals and all else.
        max_concurrent_packs: Packs at once.
    """
    content = {
        "name": "bench",
        "dataset": dict(dataset),
        "space": {
            "batch_size": {"choice": list(BATCH_SIZES)},
            "num_epochs": NUM_EPOCHS,
            "learning_rate": {"log_uniform": list(LEARNING_RATES)},
            "weight_decay": {"log_uniform": list(WEIGHT_DECAYS)},
            "momentum": {"uniform": list(MOMENTA)},
        },
        "search": {
            "num_trials": num_trials,
            "asha": {"grace_period": GRACE_PERIOD, "reduction_factor": REDUCTION_FACTOR},
            "seed": seed,
        },
        "resources": {"max_concurrent_packs": max_concurrent_packs},
    }
    return yaml_reader.dump(content)


def prepare_images(folder: Path, data_dir: Path | None, num_validation: int) -> None:
    """Lay Fashion-MNIST out as torchvision reads it, with our split beside it.

    Args:
        folder: A task's `images`, to be made.
        data_dir: Where datasets are or go.
        num_validation: Images held out, as `data.load_dataset` does with its first split.
    """
    dataset = PUBLIC_DATASETS["fashion-mnist"]
    raw = dataset.folder(folder)
    raw.mkdir(parents=True)
    source = data_dir or default_data_dir()
    for names in (dataset.train, dataset.test):  # torchvision wants both to be there
        for path in fetch(dataset, names, source):
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rb") as packed, (raw / path.stem).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
    labels = read_idx(raw / dataset.train[1], LABELS).astype(np.int64)
    validation = choose_validation(labels, num_validation, split_seed=0)
    train = np.setdiff1d(np.arange(len(labels)), validation)
    np.savez(folder / "split.npz", train=train, validation=validation)
