"""Classify pictures with the confirmed winner of a search, and load it as a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tune_softmax import files
from tune_softmax.engine.model import build_model
from tune_softmax.errors import DamagedRunError, DataError, ResultsError, command
from tune_softmax.run.folder import RunFolder
from tune_softmax.studies.confirm import stale_winner
from tune_softmax.studies.picture_input import read_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from tune_softmax.studies.picture_input import Ranges

__all__ = ["Classifier", "Prediction", "load_model", "predict"]

logger = logging.getLogger("tune_softmax")

NUM_RANKED = 3  # classes of a prediction


class Classifier(nn.Module):
    """A trained model that knows its image shape and its classes.

    Attributes:
        class_names: The C outputs.
        image_shape: (H, W).
        ranges: What its training images were like, see `picture_input.measure_ranges`; empty for
            a winner that was saved without.
    """

    def __init__(
        self,
        layers: nn.Module,
        class_names: Sequence[str],
        image_shape: tuple[int, int],
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.class_names = tuple(class_names)
        self.image_shape = image_shape
        self.ranges = ranges or {}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32, (B, C), for images, float32, (B, H, W), in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a picture is classified.

    Attributes:
        path: The file.
        ranked: The three most probable classes with their probabilities, the first highest.
        size: The picture's own (W, H), where it was resized; None where it had the model's.
        notes: What was done to the picture, and how it is unlike the training images, in words.
    """

    path: Path
    ranked: tuple[tuple[str, float], ...]
    size: tuple[int, int] | None
    notes: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.ranked[0][0]

    @property
    def probability(self) -> float:
        """The model's probability of that class, in [0, 1]."""
        return self.ranked[0][1]


def load_model(run: Path | str) -> Classifier:
    """Return the confirmed winner of a search, on the CPU and in evaluation mode.

    A winner that is out of date, because the search has gone on since, is logged as a warning.

    Raises:
        ResultsError: The search has no confirmed winner.
        DamagedRunError: Its files cannot be read, or contradict each other.
    """
    best = RunFolder(Path(run)).best
    if not Path(run).is_dir():
        raise ResultsError(
            f"{run}: is not a run folder, which comes first: {command('predict', 'RUN', 'IMAGE')}"
        )
    if not best.evaluation.exists():
        raise ResultsError(
            f"{run}: has no confirmed winner yet; make one with: {command('confirm', Path(run))}"
        )
    if stale := stale_winner(run):
        logger.warning("%s: %s", run, stale)
    try:
        content = files.read_json(best.configuration)
        height, width = map(int, content["image_shape"])
        names = [str(name) for name in content["class_names"]]
        weights = load_file(best.weights)
        hidden_units = len(weights["1.weight"]) if "3.weight" in weights else 0
        layers = build_model(
            (height, width), len(names), hidden_units, seed=0, number=0, initial_std=0.0
        )
        layers.load_state_dict(weights)
        ranges = {
            str(name): (float(low), float(high))
            for name, (low, high) in content.get("training_images", {}).items()
        }
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, RuntimeError) as error:
        raise DamagedRunError(
            f"{best.path}: cannot be read ({error}); restore it from a copy, or remove the folder "
            f"and repeat `{command('confirm', Path(run))}`"
        ) from error
    return Classifier(layers, names, (height, width), ranges).eval()


def predict(
    run: Path | str,
    paths: Sequence[Path | str],
    *,
    invert: bool | None = None,
    on_error: Callable[[Path, DataError], None] | None = None,
) -> list[Prediction]:
    """Classify pictures with the confirmed winner of a search.

    Pictures become grey and keep their proportions in the model's shape. Where a picture is
    unlike the training images its notes say so.

    Args:
        run: The search's run folder.
        paths: PNG or JPEG files.
        invert: Whether to swap light and dark; by default where the border is light and that of
            the training images is dark, or the other way around, which the notes say.
        on_error: Called for each file that cannot be read, which is left out then; by default the
            first one is raised.

    Raises:
        ResultsError: As in `load_model`.
        DataError: A file is not a picture that can be read.
    """
    model = load_model(run)
    found = []
    for path in map(Path, paths):
        try:
            picture = read_picture(path, model.image_shape, model.ranges, invert=invert)
        except DataError as error:
            if on_error is None:
                raise
            on_error(path, error)
            continue
        with torch.no_grad():
            probabilities = model(torch.from_numpy(picture.pixels[None])).softmax(1)[0]
        best = probabilities.topk(min(NUM_RANKED, len(model.class_names)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ranked = tuple((model.class_names[index], probability) for index, probability in pairs)
        found.append(Prediction(path, ranked, picture.size, picture.notes))
    return found
