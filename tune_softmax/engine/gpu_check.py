"""Check once in a process whether a GPU compiles and runs the Triton kernels correctly."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import torch

from tune_softmax.config import Config
from tune_softmax.engine.plan import Trial
from tune_softmax.engine.products import AMPERE
from tune_softmax.engine.tensors import Images, TensorData
from tune_softmax.engine.torch_group import LinearGroup

if TYPE_CHECKING:
    from tune_softmax.config import Precision

__all__ = ["disagreement", "fallback_reason", "gpu_engine", "remark_on_fallback"]

# The largest accepted difference to torch's operations, which round differently, after the few
# steps of the trials below.
TOLERANCE = 1e-4
# Several tiles of images and of pixels, the last ones not full. Sizes are multiples of 16, as
# those of Fashion-MNIST, so that the kernels compiled here serve there.
NUM_IMAGES, IMAGE_SHAPE, NUM_CLASSES = 160, (8, 10), 3
CONFIGS = (
    Config(batch_size=32, num_epochs=1, learning_rate=0.1, momentum=0.9),
    Config(batch_size=70, num_epochs=1, learning_rate=0.3, weight_decay=0.1),
    Config(batch_size=NUM_IMAGES, num_epochs=2, learning_rate=0.5, l1=0.01),
)


@cache
def fallback_reason(device: torch.device) -> str | None:
    """Return why packs on a GPU train with torch's operations; None if the kernels train them.

    The first call compiles the kernels, which takes seconds, and trains three small trials with
    the kernels and with torch's operations. Any exception on the way is a reason to fall back:
    Triton needs a C compiler, Python's headers and a driver that suits it, and raises exceptions
    of several unrelated types where one is missing.
    """
    if find_spec("triton") is None:
        return "Triton, which torch installs on Linux, is not there"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return "its compute capability is below 8.0"
    try:
        difference = disagreement(device)
    except Exception as error:  # noqa: BLE001 - a GPU without the kernels must still train
        return f"Triton could not compile or run the kernels ({_one_line(error)})"
    if not difference <= TOLERANCE:  # NaN too
        return f"the Triton kernels' weights differ from theirs by {difference:.1e}"
    return None


def remark_on_fallback(precision: Precision, device: str = "cuda") -> str | None:
    """Return what to tell a search's user if its GPU trains with torch's operations.

    Args:
        precision: In which the search multiplies; TF32 is always torch's.
        device: Where packs train.
    """
    reason = None if precision == "tf32" else fallback_reason(torch.device(device))
    if reason is None:
        return None
    return f"packs train with torch's operations on the GPU, more slowly, because {reason}"


def gpu_engine(device: torch.device) -> str:
    """Return in words how softmax regression trains on a GPU, and why."""
    reason = fallback_reason(device)
    return f"torch's operations, because {reason}" if reason else "an epoch in one launch"


def disagreement(device: torch.device) -> float:
    """Return how far weights trained by the kernels are from torch's, relative to their norm."""
    from tune_softmax.engine.gpu_group import GpuGroup

    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(NUM_IMAGES, IMAGE_SHAPE[0] * IMAGE_SHAPE[1]))
    labels = random.integers(NUM_CLASSES, size=NUM_IMAGES)
    images = Images(
        torch.as_tensor(pixels.astype(np.uint8), device=device),
        torch.as_tensor(labels, device=device),
    )
    data = TensorData(images, images, IMAGE_SHAPE, NUM_CLASSES, pixel_max=255)
    order = random.permutation(NUM_IMAGES)
    trained = []
    for group_of in (LinearGroup, GpuGroup):
        start = np.random.default_rng(1)
        trials = []
        for number, config in enumerate(CONFIGS):
            weights = start.normal(size=(pixels.shape[1] + 1, NUM_CLASSES)).astype(np.float32)
            trials.append(Trial(number, config, [(weights, np.zeros_like(weights))]))
        group = group_of(trials, data, "mean")
        results = torch.tensor(group.train_epoch(order, 1, None) + group.evaluate())
        weights_of = [group.layers(p)[0][0].flatten().cpu() for p in range(len(trials))]
        trained.append(torch.cat([*weights_of, results.flatten()]))
    expected, found = trained
    difference = (found - expected).norm() / expected.norm()
    return float(difference) if torch.isfinite(difference) else nan


def _one_line(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
