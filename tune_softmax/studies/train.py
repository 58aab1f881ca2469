"""`train`: one configuration without a search, to its curves, its weights and its test result."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from safetensors.torch import save_file

from tune_softmax import files
from tune_softmax.data.dataset import load_for, load_test_for
from tune_softmax.engine import reference
from tune_softmax.engine.tensors import to_images, to_tensors
from tune_softmax.errors import StorageError
from tune_softmax.run import environment
from tune_softmax.run.folder import RunFolder, free_folder
from tune_softmax.run.notebook import html
from tune_softmax.studies.pictures import save_curves, save_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from tune_softmax.config import Config
    from tune_softmax.engine.reference import Evaluation
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import EpochMetrics

__all__ = ["Trained", "small_model_settings", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """One trained configuration.

    Attributes:
        config: Its hyperparameters.
        model: The trained module, on the CPU.
        epochs: Metrics from the first epoch on.
        test: The evaluation on the test set.
        class_names: What each output is.
        image_shape: (H, W).
        folder: Where everything was saved.
    """

    config: Config
    model: nn.Sequential = field(repr=False)
    epochs: list[EpochMetrics] = field(repr=False)
    test: Evaluation = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    image_shape: tuple[int, int]
    folder: Path

    def _repr_html_(self) -> str:
        last = self.epochs[-1]
        values = " and ".join(
            f"{split} loss {getattr(last, f'{name}_loss'):.4f}, accuracy "
            f"{getattr(last, f'{name}_accuracy'):.4f}"
            for split, name in (("training", "train"), ("validation", "validation"))
        )
        num_images = int(self.test.confusion.sum())
        test = f"loss {self.test.loss:.4f}, accuracy {self.test.accuracy:.4f}"
        lines = [
            f"After epoch {len(self.epochs)}: {values}.",
            f"On the {num_images:,} test images: {test}.",
            f"Saved in {self.folder}.",
        ]
        return html(lines)

    @property
    def curves(self) -> pd.DataFrame:
        """The metrics as one row an epoch: `epoch`, the four curves, `seconds`."""
        frame = pd.DataFrame([asdict(metrics) for metrics in self.epochs])
        frame.insert(0, "epoch", range(1, len(frame) + 1))
        return frame

    @property
    def first_weights(self) -> NDArray[np.float32]:
        """The first layer's weights as images, float32, (outputs, H, W)."""
        weight = self.model[1].get_parameter("weight").detach()
        array: NDArray[np.float32] = weight.view(-1, *self.image_shape).numpy()
        return array

    @property
    def output_names(self) -> list[str]:
        """What each image of `first_weights` is."""
        if self.config.hidden_units:
            return [f"unit {unit}" for unit in range(self.config.hidden_units)]
        return list(self.class_names)


def train(
    experiment: Experiment,
    config: Config | None = None,
    folder: Path | str | None = None,
    *,
    number: int = 0,
    data_dir: Path | str | None = None,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda _epoch, _metrics: None,
    before_test: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one configuration, evaluate it on the test set, and save it.

    Args:
        experiment: Where dataset, model options and seed come from.
        config: The hyperparameters; by default the only ones that the experiment's space holds.
        folder: Where to save: `experiment.yaml`, `environment.json`, `evaluation.json`,
            `curves.csv`, `weights.safetensors`, `curves.png`, `weights.png`. By default the first
            free one of runs/NAME-train, runs/NAME-train-2, and so on.
        number: The trial's number, which decides the initial weights.
        data_dir: Where datasets are; see `data.load_dataset`.
        on_epoch: Called after every epoch with its number, from 1, and its metrics.
        before_test: Called before the test set is opened, to record that.

    Returns:
        The trained model and what was measured.

    Raises:
        ExperimentError: No configuration is given, and the experiment leaves a choice open.
        DataError: The dataset cannot be had.
        ResultsError: There is a run in the folder already.
        StorageError: The folder cannot be written.
    """
    config = config or experiment.single_config()
    place = Path(folder) if folder else free_folder(f"{experiment.name}-train")
    RunFolder(place).check_free()
    dataset = load_for(experiment.dataset, data_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = to_tensors(dataset, device)
    epochs: list[EpochMetrics] = []

    def note(epoch: int, metrics: EpochMetrics) -> None:
        epochs.append(metrics)
        on_epoch(epoch, metrics)

    with small_model_settings():
        model = reference.train(
            config,
            data,
            seed=experiment.search.seed,
            number=number,
            reduction=experiment.model.reduction,
            initial_std=experiment.model.initial_std,
            on_epoch=note,
        )
    before_test()
    split = load_test_for(experiment.dataset, data_dir)
    test = reference.evaluate(model, to_images(split, device), data)
    trained = Trained(
        config, model.cpu(), epochs, test, dataset.class_names, dataset.image_shape, place
    )
    _save(trained, experiment, number, dataset.checksum)
    return trained


@contextmanager
def small_model_settings() -> Iterator[None]:
    """Compute as suits so small a model, and put torch back as it was.

    A second thread gains nothing, and threads that spin for one another on a busy machine made
    an epoch thirty times slower. Weights of pixels that are always zero decay through denormal
    numbers, which are slow.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(num_threads)


def _save(trained: Trained, experiment: Experiment, number: int, checksum: str) -> None:
    folder = trained.folder
    description = {
        **environment.describe(),
        "seed": experiment.search.seed,
        "trial": number,
        "dataset_checksum": checksum,
    }
    evaluation = {
        "config": asdict(trained.config),
        "test_loss": trained.test.loss,
        "test_accuracy": trained.test.accuracy,
        "class_names": trained.class_names,
        "confusion": trained.test.confusion.tolist(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "experiment.yaml": experiment.to_yaml(),
            "environment.json": json.dumps(description, indent=2) + "\n",
            "evaluation.json": json.dumps(evaluation, indent=2) + "\n",
        }.items():
            files.write_atomically(folder / name, text)
        trained.curves.to_csv(folder / "curves.csv", index=False)
        save_file(trained.model.state_dict(), folder / "weights.safetensors")
        save_curves(folder / "curves.png", trained.epochs)
        save_weights(folder / "weights.png", trained.first_weights, trained.output_names)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot save there ({error}); choose another --run-dir"
        ) from error
