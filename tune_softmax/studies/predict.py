"""Classify pictures with the confirmed winner of a search, and load it as a model."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tune_softmax.engine.model import build_model
from tune_softmax.errors import DamagedRunError, DataError, ResultsError, command
from tune_softmax.run.folder import RunFolder
from tune_softmax.studies.confirm import stale_winner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Classifier", "Prediction", "load_model", "predict"]

logger = logging.getLogger("tune_softmax")

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L")  # how PIL calls 16 bits a pixel


class Classifier(nn.Module):
    """A trained model that knows its image shape and its classes.

    Attributes:
        class_names: The C outputs.
        image_shape: (H, W).
    """

    def __init__(
        self, layers: nn.Module, class_names: Sequence[str], image_shape: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layers = layers
        self.class_names = tuple(class_names)
        self.image_shape = image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32, (B, C), for images, float32, (B, H, W), in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a picture is classified.

    Attributes:
        path: The file.
        class_name: The likeliest class.
        probability: The model's, in [0, 1].
        size: The picture's own (W, H), where it was resized; None where it had the model's.
    """

    path: Path
    class_name: str
    probability: float
    size: tuple[int, int] | None


def load_model(run: Path | str) -> Classifier:
    """Return the confirmed winner of a search, on the CPU and in evaluation mode.

    A winner that is out of date, because the search has gone on since, is logged as a warning.

    Args:
        run: The search's run folder.

    Raises:
        ResultsError: The search has no confirmed winner.
        DamagedRunError: Its files cannot be read, or contradict each other.
    """
    best = RunFolder(Path(run)).best
    if not best.evaluation.exists():
        raise ResultsError(
            f"{run}: has no confirmed winner yet; make one with: {command('confirm', Path(run))}"
        )
    if stale := stale_winner(run):
        logger.warning("%s: %s", run, stale)
    try:
        content = json.loads(best.configuration.read_text(encoding="utf-8"))
        height, width = map(int, content["image_shape"])
        names = [str(name) for name in content["class_names"]]
        weights = load_file(best.weights)
        hidden_units = len(weights["1.weight"]) if "3.weight" in weights else 0
        layers = build_model(
            (height, width), len(names), hidden_units, seed=0, number=0, initial_std=0.0
        )
        layers.load_state_dict(weights)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, RuntimeError) as error:
        raise DamagedRunError(
            f"{best.path}: cannot be read ({error}); restore it from a copy, or remove the folder "
            f"and repeat `{command('confirm', Path(run))}`"
        ) from error
    return Classifier(layers, names, (height, width)).eval()


def predict(run: Path | str, paths: Sequence[Path]) -> list[Prediction]:
    """Classify pictures with the confirmed winner of a search.

    Pictures become grey, and are resized where they have not the model's shape. Light and dark
    are taken as they are: most datasets show a light object on a dark ground.

    Args:
        run: The search's run folder.
        paths: PNG files.

    Raises:
        ResultsError: As in `load_model`.
        DataError: A file is no PNG file that can be read.
    """
    model = load_model(run)
    pictures = [_read(path, model.image_shape) for path in paths]
    images = torch.tensor(np.stack([pixels for pixels, _ in pictures]))
    with torch.no_grad():
        probabilities = model(images).softmax(1)
    return [
        Prediction(path, model.class_names[int(row.argmax())], float(row.max()), size)
        for path, row, (_, size) in zip(paths, probabilities, pictures, strict=True)
    ]


def _read(path: Path, shape: tuple[int, int]) -> tuple[Any, tuple[int, int] | None]:
    """Return a picture's grey values, float32, (H, W), in [0, 1], and its size if another."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            deep = picture.mode in _DEEP_GREY
            grey = picture.convert("F" if deep else "L")
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path}: must be a PNG file that can be read ({error})") from error
    height, width = shape
    size = None if grey.size == (width, height) else grey.size
    if size is not None:
        grey = grey.resize((width, height), Image.Resampling.BOX if deep else _filter(size, shape))
    return np.asarray(grey, dtype=np.float32) / (65535 if deep else 255), size


def _filter(size: tuple[int, int], shape: tuple[int, int]) -> Image.Resampling:
    """Return how to resize: averages where a picture shrinks, or fine lines would be lost."""
    shrinks = math.prod(size) > math.prod(shape)
    return Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
