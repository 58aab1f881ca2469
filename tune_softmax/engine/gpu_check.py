"""Whether a GPU trains packs by the fused kernels, found out once in a process by trying."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from math import nan

import numpy as np
import torch

from tune_softmax.config import Config
from tune_softmax.engine.plan import Trial
from tune_softmax.engine.products import AMPERE
from tune_softmax.engine.tensors import Images, TensorData
from tune_softmax.engine.torch_group import LinearGroup

__all__ = ["disagreement", "gpu_engine", "why_not"]

# Both ways round otherwise; after the few steps of a trial here, by less than this.
TOLERANCE = 1e-4
# More than one tile of images and of pixels, the last ones not full; multiples of 16 as those of
# Fashion-MNIST, so that what is compiled here serves there.
NUM_IMAGES, IMAGE_SHAPE, NUM_CLASSES = 160, (8, 10), 3
CONFIGS = (
    Config(batch_size=32, num_epochs=1, learning_rate=0.1, momentum=0.9),
    Config(batch_size=70, num_epochs=1, learning_rate=0.3, weight_decay=0.1),
    Config(batch_size=NUM_IMAGES, num_epochs=2, learning_rate=0.5, l1=0.01),
)


@cache
def why_not(device: torch.device) -> str | None:
    """Say why packs on a GPU train by torch's operations instead; None: there is no reason.

    The first call compiles the kernels, a matter of seconds, and trains three small trials both
    ways: a compiler, or a GPU, that these kernels were never tried on is found out here.
    """
    if find_spec("triton") is None:
        return "Triton, which torch brings along on Linux, is not installed"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return "its compute capability is below 8.0"
    from triton.errors import TritonError

    try:
        difference = disagreement(device)
    except TritonError as error:
        return f"Triton could not compile the fused kernels ({str(error).splitlines()[0]})"
    if not difference <= TOLERANCE:  # NaN too
        return f"the fused kernels' weights differ from theirs by {difference:.1e} here"
    return None


def gpu_engine(device: torch.device) -> str:
    """Return in words how softmax regression trains on a GPU, and why."""
    reason = why_not(device)
    return f"torch's operations, for {reason}" if reason else "an epoch in one launch"


def disagreement(device: torch.device) -> float:
    """Return by how much trained weights differ between both ways, relative to their norm."""
    from tune_softmax.engine.gpu_group import FusedGroup

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
    for group_of in (LinearGroup, FusedGroup):
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
