"""`train`: train one configuration, evaluate it on the test set, and save it.

The configuration is the only one of an experiment, or a trial of a run.
"""

from __future__ import annotations

import json
import math
from contextlib import closing, contextmanager
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
from tune_softmax.errors import ExperimentError, ResultsError, StorageError
from tune_softmax.experiment import Experiment, as_experiment
from tune_softmax.run import environment, results
from tune_softmax.run.folder import RunFolder, free_folder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.notebook import html
from tune_softmax.studies import pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from tune_softmax.config import Config
    from tune_softmax.engine.reference import Evaluation
    from tune_softmax.metrics import EpochMetrics

__all__ = ["Trained", "small_model_settings", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """One trained configuration.

    Attributes:
        config: Its hyperparameters.
        model: The trained module, on the CPU.
        epochs: Metrics from the first epoch on.
        test: The evaluation on the test set; None if training diverged, for then there is
            nothing to evaluate and the test set stays closed.
        class_names: What each output is.
        image_shape: (H, W).
        folder: Where everything was saved.
    """

    config: Config
    model: nn.Sequential = field(repr=False)
    epochs: list[EpochMetrics] = field(repr=False)
    test: Evaluation | None = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    image_shape: tuple[int, int]
    folder: Path

    def _repr_html_(self) -> str:
        return html([*self.summary, f"Saved in {self.folder}."])

    @property
    def summary(self) -> list[str]:
        """What came of it, in sentences."""
        if self.test is None:
            where = f"epoch {len(self.epochs)} of {self.config.num_epochs}"
            return [
                f"Training diverged in {where}: the loss is not finite; lower the learning rate.",
                "The test set was not opened.",
            ]
        last = self.epochs[-1]
        values = " and ".join(
            f"{split} loss {getattr(last, f'{name}_loss'):.4f}, accuracy "
            f"{getattr(last, f'{name}_accuracy'):.4f}"
            for split, name in (("training", "train"), ("validation", "validation"))
        )
        num_images = int(self.test.confusion.sum())
        test = f"loss {self.test.loss:.4f}, accuracy {self.test.accuracy:.4f}"
        return [
            f"After epoch {len(self.epochs)}: {values}.",
            f"On the {num_images:,} test images: {test}.",
        ]

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
    source: Experiment | Mapping[str, object] | Path | str,
    config: Config | None = None,
    folder: Path | str | None = None,
    *,
    trial: int | None = None,
    data_dir: Path | str | None = None,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda _epoch, _metrics: None,
) -> Trained:
    """Train one configuration, evaluate it on the test set, and save it.

    A run's lock is held meanwhile, and its ledger records that the test set is opened before it
    is.

    Args:
        source: An experiment, the path of an experiment file, a mapping with the keys of one, or
            a run folder. Dataset, model options and seed come from there.
        config: The hyperparameters; by default the only ones that an experiment's space holds,
            or those of the trial.
        folder: Where to save: `experiment.yaml`, `environment.json`, `evaluation.json`,
            `curves.csv`, `weights.safetensors`, `curves.png`, `weights.png`. By default the first
            free one of NAME-train, NAME-train-2 and so on: in `runs/` under the experiment's
            name, or beside a run under the run's.
        trial: Which trial of a run, by default its best. Its number decides the initial weights;
            an experiment has trial 0.
        data_dir: Where datasets are; see `data.load_dataset`.
        on_epoch: Called after every epoch with its number, from 1, and its metrics.

    Returns:
        The trained model and what was measured.

    Raises:
        ExperimentError: The file is wrong; no configuration is given and the experiment leaves a
            choice open; or a batch is larger than the training set.
        DataError: The dataset cannot be had.
        ResultsError: There is no such run or trial, or the folder to save in holds something.
        RunInUseError: Another process writes the run.
        StorageError: A folder cannot be written.
    """
    if isinstance(source, Path | str) and Path(source).is_dir():
        return _train_of_run(Path(source), config, folder, trial, data_dir, on_epoch)
    if trial is not None and isinstance(source, Path | str):
        raise ResultsError(f"--trial {trial}: {source} is not a run folder")
    experiment = as_experiment(source)
    return _train(
        experiment,
        config or experiment.single_config(),
        Path(folder) if folder else free_folder(f"{experiment.name}-train"),
        trial=trial or 0,
        data_dir=data_dir,
        on_epoch=on_epoch,
        before_test=lambda: None,
    )


def _train_of_run(  # noqa: PLR0917 - as `train`
    run: Path,
    config: Config | None,
    folder: Path | str | None,
    trial: int | None,
    data_dir: Path | str | None,
    on_epoch: Callable[[int, EpochMetrics], None],
) -> Trained:
    """Train a trial of a run, and record in the run's ledger that the test set is opened."""
    found = results.load(run)
    if found.experiment.remedies is not None:
        raise ResultsError(
            f"{run}: is a study of remedies, whose trials differ in more than a configuration; "
            "train takes an experiment or a search"
        )
    number = found.best().number if trial is None else trial
    wanted = config or found.config(number)
    place = run.resolve() if run.name in {"", ".."} else run
    place = Path(folder) if folder else free_folder(f"{place.name}-train", place.parent)
    with (
        found.folder.writing(),
        closing(Ledger.open(found.folder.ledger, writable=True)) as ledger,
    ):
        return _train(
            found.experiment,
            wanted,
            place,
            trial=number,
            data_dir=data_dir,
            on_epoch=on_epoch,
            before_test=lambda: ledger.event("test_opened", command="train", trial=number),
        )


def _train(
    experiment: Experiment,
    config: Config,
    folder: Path,
    *,
    trial: int,
    data_dir: Path | str | None,
    on_epoch: Callable[[int, EpochMetrics], None],
    before_test: Callable[[], None],
) -> Trained:
    RunFolder(folder).check_free()
    dataset = load_for(experiment.dataset, data_dir)
    if config.batch_size > len(dataset.train):
        raise ExperimentError(
            f"{experiment.name}: space.batch_size: at most the {len(dataset.train):,} training "
            f"images of {dataset.name}, got {config.batch_size:,}; lower it, or hold out less"
        )
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
            number=trial,
            reduction=experiment.model.reduction,
            initial_std=experiment.model.initial_std,
            on_epoch=note,
        )
    test = None
    if epochs[-1].is_finite:
        before_test()
        split = load_test_for(experiment.dataset, data_dir)
        test = reference.evaluate(model, to_images(split, device), data)
    trained = Trained(
        config, model.cpu(), epochs, test, dataset.class_names, dataset.image_shape, folder
    )
    _save(trained, experiment, trial, dataset.checksum)
    return trained


@contextmanager
def small_model_settings() -> Iterator[None]:
    """Compute as suits so small a model, and restore torch's settings afterwards.

    A second thread gains nothing, and threads that wait for one another on a busy machine made
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


def _save(trained: Trained, experiment: Experiment, trial: int, checksum: str) -> None:
    folder, test = trained.folder, trained.test
    description = {
        **environment.describe(),
        "seed": experiment.search.seed,
        "trial": trial,
        "dataset_checksum": checksum,
    }
    evaluation = {
        "config": asdict(trained.config),
        "diverged_in_epoch": len(trained.epochs) if test is None else None,
        "test_loss": test.loss if test and math.isfinite(test.loss) else None,
        "test_accuracy": test.accuracy if test else None,
        "class_names": trained.class_names,
        "confusion": test.confusion.tolist() if test else None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "experiment.yaml": experiment.to_yaml(),
            "environment.json": json.dumps(description, indent=2) + "\n",
            "evaluation.json": json.dumps(evaluation, indent=2, allow_nan=False) + "\n",
        }.items():
            files.write_atomically(folder / name, text)
        trained.curves.to_csv(folder / "curves.csv", index=False)
        save_file(trained.model.state_dict(), folder / "weights.safetensors")
        pictures.save(pictures.draw_curves({"": trained.curves}), folder / "curves.png")
        if test is not None:
            weights = pictures.draw_weights(trained.first_weights, trained.output_names)
            pictures.save(weights, folder / "weights.png")
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot save there ({error}); choose another --run-dir"
        ) from error
