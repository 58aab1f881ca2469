"""Save a search's confirmed winner: its model, its test results and its worst mistakes."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tune_softmax import files
from tune_softmax.data import dataset as data
from tune_softmax.engine.model import from_layers
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.reference import evaluate
from tune_softmax.engine.tensors import scale, to_images, to_tensors
from tune_softmax.errors import StorageError
from tune_softmax.studies import pictures
from tune_softmax.studies.picture_input import measure_ranges
from tune_softmax.studies.train import small_model_settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from tune_softmax.data.dataset import Split
    from tune_softmax.engine.tensors import TensorData
    from tune_softmax.run.results import Results

__all__ = ["save"]

MAX_WRONG = 24

logger = logging.getLogger("tune_softmax")


def save(found: Results, trial: int, *, seed: int, data_dir: Path | str | None) -> None:
    """Train a trial once more on training and validation images, and save it as the winner.

    The model is the confirmation's own of that seed: the same seed, weights, order and precision
    (but tf32 becomes float32 where there is no GPU). Beside it
    trains the same configuration without weight decay, L1 and augmentation, where it has any of
    them: the baseline with which the winner's confusion matrix is compared.

    Raises:
        DataError: The dataset cannot be had.
        StorageError: The folder cannot be written.
    """
    experiment = found.experiment
    dataset = data.load_for(experiment.dataset, data_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = to_tensors(data.view(dataset, seed=seed, with_validation=True), device)
    config = found.config(trial)
    precision = experiment.model.precision
    if precision == "tf32" and device == "cpu":  # the search had its GPUs elsewhere
        precision = "float32"
        logger.warning("model.precision: no GPU here has tf32; the winner trains in float32")
    baseline = replace(config, weight_decay=0.0, l1=0.0, augmentation=0.0)
    configs = {0: config} if baseline == config else {0: config, 1: baseline}
    with small_model_settings():
        pack = Pack(
            configs,
            tensors,
            seed=seed,
            reduction=experiment.model.reduction,
            initial_std=experiment.model.initial_std,
            precision=precision,
            draws=dict.fromkeys(configs, 0),
        )
        for _ in range(config.num_epochs):
            pack.train_epoch()
    models = {number: from_layers(pack.weights(number)).to(device) for number in configs}
    test = data.load_test_for(experiment.dataset, data_dir)
    content = _evaluation(models, test, tensors, dataset.class_names)
    configuration = {
        "trial": trial,
        "seed": seed,
        "trained_on": "training and validation images",
        "hyperparameters": asdict(config),
        "class_names": dataset.class_names,
        "image_shape": dataset.image_shape,
        "training_images": measure_ranges(dataset.train.images, dataset.pixel_max),
    }
    _write(found, models[0].cpu(), configuration, content)


def _evaluation(
    models: dict[int, nn.Sequential], test: Split, tensors: TensorData, names: tuple[str, ...]
) -> dict[str, Any]:
    images = to_images(test, tensors.device)
    measured = {number: evaluate(model, images, tensors) for number, model in models.items()}
    content: dict[str, Any] = {
        "loss": measured[0].loss,
        "accuracy": measured[0].accuracy,
        "class_names": names,
        "confusion": measured[0].confusion.tolist(),
        "wrong": _wrong(models[0], test, tensors),
    }
    if 1 in measured and math.isfinite(measured[1].loss):  # one that diverged says nothing
        content["baseline_confusion"] = measured[1].confusion.tolist()
        content["baseline"] = "the same configuration without weight decay, L1 and augmentation"
    return content


@torch.no_grad()
def _wrong(model: nn.Sequential, test: Split, tensors: TensorData) -> list[dict[str, object]]:
    """Return the test images on which the model is wrong, the most confident mistakes first."""
    images = to_images(test, tensors.device)
    inputs = scale(images.pixels, tensors.pixel_max).view(-1, *tensors.image_shape)
    probability, predicted = (part.cpu() for part in model(inputs).softmax(1).max(1))
    is_wrong = predicted != images.labels.cpu()
    order = torch.where(is_wrong, probability, -1.0).argsort(descending=True, stable=True)
    brightness = 255 / tensors.pixel_max
    return [
        {
            "image": (test.images[index] * brightness).round().astype(int).tolist(),
            "label": int(test.labels[index]),
            "predicted": int(predicted[index]),
            "probability": float(probability[index]),
        }
        for index in order[: min(MAX_WRONG, int(is_wrong.sum()))].tolist()
    ]


def _write(
    found: Results, model: nn.Sequential, configuration: dict[str, Any], content: dict[str, Any]
) -> None:
    best = found.folder.best
    try:
        best.path.mkdir(exist_ok=True)
        files.write_atomically(best.configuration, json.dumps(configuration, indent=2) + "\n")
        save_file(model.state_dict(), best.weights)
        matrix = pictures.draw_confusion(content["confusion"], content["class_names"])
        pictures.save(matrix, best.confusion)
        files.write_atomically(best.evaluation, json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        raise StorageError(f"{best.path}: cannot save there ({error})") from error
