"""Turn a picture file into what a model takes, and say where it is unlike the training images.

A model that was trained on light objects on a dark ground answers with confidence, and wrong,
about a dark object on a light ground, or about a picture that was squeezed into its shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from tune_softmax.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Picture", "Ranges", "measure_ranges", "read_picture"]

FORMATS = ("PNG", "JPEG")
NUM_MEASURED = 10_000  # images; more change the quantiles little
QUANTILES = (0.001, 0.999)
TOLERANCE = 0.05  # of brightness, beyond the quantiles
HALF = 0.5

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L")  # PIL's modes of 16 bits a pixel

Ranges = dict[str, tuple[float, float]]
"""By measure ("border", "brightness", "contrast"): from where to where 99.8 % of images are."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a model takes it.

    Attributes:
        pixels: Grey values, float32, (H, W), in [0, 1].
        size: The file's own (W, H), where that is another; else None.
        notes: What was done to it, and how it is unlike the training images, in words.
    """

    pixels: NDArray[np.float32]
    size: tuple[int, int] | None
    notes: tuple[str, ...]


def measure_ranges(images: NDArray[np.uint8], pixel_max: int) -> Ranges:
    """Measure training images, for pictures to be compared with.

    Args:
        images: uint8, (N, H, W).
        pixel_max: The value of white.
    """
    step = max(1, len(images) // NUM_MEASURED)
    scaled = images[::step].astype(np.float32) / np.float32(pixel_max)
    ranges = {}
    for name, values in _measures(scaled).items():
        low, high = np.quantile(values, QUANTILES)
        ranges[name] = (float(low), float(high))
    return ranges


def _measures(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return for images, (N, H, W), the mean of the outermost pixels, the mean, the spread."""
    _, height, width = images.shape
    edge = np.ones((height, width), dtype=bool)
    edge[1:-1, 1:-1] = False
    return {
        "border": images[:, edge].mean(axis=1),
        "brightness": images.mean(axis=(1, 2)),
        "contrast": images.std(axis=(1, 2)),
    }


def read_picture(
    path: Path,
    shape: tuple[int, int],
    ranges: Mapping[str, tuple[float, float]],
    *,
    invert: bool | None,
) -> Picture:
    """Read a picture file and fit it into a model's shape.

    It becomes grey. Transparent parts are shown on black, or on white where what is opaque is
    dark. It keeps its proportions: what is missing is filled with its border's brightness.

    Args:
        path: A PNG or JPEG file.
        shape: (H, W) of the model.
        ranges: As `measure_ranges` returned it; empty if the model has none, and then nothing is
            inverted by itself or called unlike.
        invert: Whether to swap light and dark; None swaps where the border is light and the
            training images' is dark, or the other way around.

    Raises:
        DataError: The file cannot be read as such a picture.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            picture = ImageOps.exif_transpose(opened)
            grey, notes = _grey(picture)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: must be a PNG or JPEG file that can be read ({error})"
        ) from error
    size = (grey.shape[1], grey.shape[0])
    ground = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    if invert is None and _is_inverted(ground, ranges):
        notes.append(
            f"light and dark were swapped, because its border is {_tone(ground)} and that of the "
            f"training images is {_tone(1 - ground)}; --no-invert keeps them"
        )
        invert = True
    if invert:
        grey, ground = 1 - grey, 1 - ground
    height, width = shape
    is_other = size != (width, height)
    if is_other:
        notes.insert(0, f"resized from {size[0]} x {size[1]}")
        grey = _fitted(grey, shape, ground)
    notes += _differences(grey, ranges)
    return Picture(grey, size if is_other else None, tuple(notes))


def _grey(picture: Image.Image) -> tuple[NDArray[np.float32], list[str]]:
    """Return grey values, float32, (H, W), in [0, 1], and what was done for that."""
    if picture.mode in _DEEP_GREY:
        return _scaled(picture.convert("F"), 65535), []
    if not (picture.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in picture.info):
        return _scaled(picture.convert("L"), 255), []
    whole = picture.convert("RGBA")
    alpha = _scaled(whole.getchannel("A"), 255)
    values = _scaled(whole.convert("RGB").convert("L"), 255)
    if alpha.min() == 1:
        return values, []
    if not alpha.any():
        raise ValueError("every pixel is transparent")
    is_dark = float((values * alpha).sum() / alpha.sum()) < HALF
    shown = values * alpha + (1 - alpha) if is_dark else values * alpha
    tone = "white" if is_dark else "black"
    return shown, [f"transparent parts were shown on {tone}"]


def _scaled(picture: Image.Image, white: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(picture, dtype=np.float32) / np.float32(white)
    return values


def _fitted(
    grey: NDArray[np.float32], shape: tuple[int, int], ground: float
) -> NDArray[np.float32]:
    """Return a picture in another shape, in its own proportions, on its ground."""
    height, width = shape
    scale = min(height / grey.shape[0], width / grey.shape[1])
    inner = (max(1, round(scale * grey.shape[1])), max(1, round(scale * grey.shape[0])))
    # Averages where a picture shrinks, or fine lines would be lost.
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(grey).resize(inner, method))
    fitted = np.full(shape, ground, dtype=np.float32)
    top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
    fitted[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return fitted.clip(0, 1)


def _is_inverted(ground: float, ranges: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a border is of the other tone than the training images', and swapped is not."""
    if "border" not in ranges:
        return False
    low, high = ranges["border"]
    outside = max(low - ground, ground - high)
    swapped = max(low - (1 - ground), (1 - ground) - high)
    return outside > TOLERANCE and swapped < outside and abs(ground - HALF) > TOLERANCE


def _tone(brightness: float) -> str:
    return "light" if brightness > HALF else "dark"


def _differences(grey: NDArray[np.float32], ranges: Mapping[str, Any]) -> list[str]:
    """Return in what a picture is unlike the training images, as one note."""
    measured = {name: float(values[0]) for name, values in _measures(grey[None]).items()}
    parts = [
        f"{name} {measured[name]:.2f} (theirs: {low:.2f} to {high:.2f})"
        for name, (low, high) in ranges.items()
        if name in measured
        and not low - TOLERANCE <= measured[name] <= high + TOLERANCE
        and math.isfinite(measured[name])
    ]
    if not parts:
        return []
    return [f"unlike the training images, so do not trust the answer: {', '.join(parts)}"]
