"""Read `best/evaluation.json`: the winner's results on the test images.

The file may come from a stranger, so shapes, types and pictures are checked before they reach a
page.
"""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tune_softmax import files
from tune_softmax.errors import DamagedRunError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["WinnerEvaluation", "WrongImage", "read_evaluation"]

_PNG = b"\x89PNG\r\n\x1a\n"
MAX_WRONG = 24  # pictures on the page
MAX_PICTURE_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class WrongImage:
    """A test image that the winner classifies wrong.

    Attributes:
        png: The image, as base64 text of a PNG file.
        label: Its true class.
        predicted: The class that the winner predicts.
        probability: The winner's probability of that class, in [0, 1].
    """

    png: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class WinnerEvaluation:
    """The winner's results on the test images.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: In [0, 1].
        class_names: The C classes.
        confusion: Counts, int64, (C, C): rows are true classes, columns predicted ones.
        baseline_confusion: The same of the baseline, if it was evaluated.
        wrong: Its mistakes, the most confident first.
    """

    loss: float
    accuracy: float
    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    baseline_confusion: NDArray[np.int64] | None = None
    wrong: tuple[WrongImage, ...] = ()


def read_evaluation(path: Path) -> WinnerEvaluation | None:
    """Read an evaluation.

    Args:
        path: The JSON file: `loss`, `accuracy`, `class_names`, `confusion`, and where there are
            such `baseline_confusion` and `wrong`, a list of `image` (rows of bytes, or a PNG in
            base64), `label`, `predicted`, `probability`.

    Returns:
        What it holds, or None where there is no such file.

    Raises:
        DamagedRunError: It is not such a file.
    """
    if not path.is_file():
        return None
    try:
        content = files.read_json(path)
        names = tuple(map(str, content["class_names"]))
        other = content.get("baseline_confusion")
        return WinnerEvaluation(
            loss=float(content["loss"]),
            accuracy=float(content["accuracy"]),
            class_names=names,
            confusion=_counts(content["confusion"], len(names)),
            baseline_confusion=None if other is None else _counts(other, len(names)),
            wrong=tuple(_wrong(image, names) for image in content.get("wrong", ())[:MAX_WRONG]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DamagedRunError(
            f"{path}: not an evaluation that can be read ({type(error).__name__}: {error}); "
            "restore the file from a copy, or remove it"
        ) from error


def _counts(rows: Any, num_classes: int) -> NDArray[np.int64]:  # noqa: ANN401 - any JSON
    counts = np.array(rows)
    if counts.shape != (num_classes, num_classes) or counts.dtype.kind != "i" or counts.min() < 0:
        raise ValueError(
            f"a confusion matrix must hold {num_classes} rows of {num_classes} counts, "
            f"got {counts.dtype} of shape {counts.shape}"
        )
    return counts.astype(np.int64)


def _wrong(image: dict[str, Any], class_names: tuple[str, ...]) -> WrongImage:
    label, predicted = (
        class_names[image[key]] if isinstance(image[key], int) else str(image[key])
        for key in ("label", "predicted")
    )
    picture = image["image"]
    data = _png_given(picture) if isinstance(picture, str) else _png_of(picture)
    if len(data) > MAX_PICTURE_BYTES:
        raise ValueError(f"a picture must have at most {MAX_PICTURE_BYTES} bytes, got {len(data)}")
    return WrongImage(
        base64.b64encode(data).decode(), label, predicted, float(image["probability"])
    )


def _png_given(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"an image must be a PNG in base64 ({error})") from error
    if not data.startswith(_PNG):
        raise ValueError("an image must be a PNG in base64, got another file")
    return data


def _png_of(rows: Any) -> bytes:  # noqa: ANN401 - any JSON
    values = np.array(rows)
    if values.ndim != 2 or values.dtype.kind != "i" or values.min() < 0 or values.max() > 255:  # noqa: PLR2004 - (H, W) bytes
        raise ValueError(f"an image must hold rows of bytes, got shape {values.shape}")
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()
