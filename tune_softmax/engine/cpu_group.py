"""A group of trials that the compiled kernels train on one CPU core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tune_softmax.engine.cpu_kernels import PANEL, empty
from tune_softmax.engine.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tune_softmax.config import Reduction
    from tune_softmax.engine.arrays import ArrayData, ArrayImages
    from tune_softmax.engine.cpu_kernels import Kernels
    from tune_softmax.engine.plan import Trial

    Array = NDArray[np.floating]
    Tally = tuple[NDArray[np.float64], NDArray[np.int64]]

__all__ = ["CpuGroup"]

# Products skip pixels that are zero unless more of them than this are not, or a row of weights has
# no more panels than this: then the search for nonzero pixels takes longer than it saves.
MAX_NONZERO_FRACTION = 0.6
MAX_NARROW_PANELS = 2


class CpuGroup:
    """Softmax regression: P trials, D pixels, C classes.

    Column c*P + p is class c of trial p, as in `torch_group.LinearGroup`. Columns of zeros fill
    the last panel, and columns are stored in the order in which the kernels read them.
    """

    def __init__(
        self, trials: Sequence[Trial], data: ArrayData, reduction: Reduction, kernels: Kernels
    ) -> None:
        self.trials = trials
        self.data = data
        self.plan = Plan([trial.config for trial in trials], data, reduction)
        self._kernels = kernels
        self._shape = (data.num_classes, len(trials))
        is_wide = len(trials) * data.num_classes > MAX_NARROW_PANELS * PANEL
        is_plain = not trials[0].config.augmentation  # augmented images are not bytes
        self._skips_zeros = is_wide and is_plain and data.nonzero_fraction < MAX_NONZERO_FRACTION
        shape = (data.num_features + 1, -(-len(trials) * data.num_classes // PANEL) * PANEL)
        self._weights, self._velocity = (empty(shape, data.real) for _ in range(2))
        for i, arrays in enumerate((self._weights, self._velocity)):
            arrays[:] = 0
            for p, trial in enumerate(trials):
                own = np.ascontiguousarray(trial.layers[0][i], arrays.dtype)
                self._copy(arrays, own, p, out=False)
        self._scratch = kernels.scratch(
            data.real,
            num_features=data.num_features,
            num_classes=data.num_classes,
            num_trials=len(trials),
            num_columns=self._weights.shape[1],
        )

    def layers(self, p: int) -> list[tuple[Array, Array]]:
        """Return a copy of trial p's weights and velocity, (D + 1, C) each."""
        return [(self._of_trial(self._weights, p), self._of_trial(self._velocity, p))]

    def train_epoch(
        self, order: NDArray[np.int64], epoch: int, inputs: Array | None
    ) -> list[tuple[float, float]]:
        """Train for one epoch, number `epoch`; return each trial's loss and accuracy.

        Args:
            order: The images' order, int64, (N,).
            epoch: From 1.
            inputs: (N, D + 1) in place of the images; None to train on the images.
        """
        plan = self.plan
        arrays, numbers, tally = self._arguments(self.data.train)
        arrays |= {
            "inputs": inputs,
            "order": order,
            "velocity": self._velocity,
            "loss_weights": plan.loss_weights,
            "coefficients": plan.coefficients(epoch),
        }
        numbers |= {"num_rows": plan.rows, "has_l1": plan.has_l1}
        self._kernels.train_epoch(arrays, numbers)
        return _means(*tally, len(order))

    def evaluate(self) -> list[tuple[float, float]]:
        """Return each trial's loss and accuracy on the validation set."""
        arrays, numbers, tally = self._arguments(self.data.validation)
        self._kernels.evaluate(arrays, numbers)
        return _means(*tally, len(self.data.validation))

    def _arguments(
        self, images: ArrayImages
    ) -> tuple[dict[str, NDArray[np.generic] | None], dict[str, float], Tally]:
        """Return the arguments of both kernels, and the arrays of the sums that they add to."""
        num_classes, num_trials = self._shape
        loss = np.zeros(num_trials, np.float64)
        num_correct = np.zeros(num_trials, np.int64)
        arrays: dict[str, NDArray[np.generic] | None] = {
            "pixels": images.pixels,
            "labels": images.labels,
            "weights": self._weights,
            "scratch": self._scratch,
            "loss": loss,
            "num_correct": num_correct,
        }
        numbers: dict[str, float] = {
            "pixel_max": self.data.pixel_max,
            "num_images": len(images),
            "num_features": self.data.num_features,
            "num_classes": num_classes,
            "num_trials": num_trials,
            "num_columns": self._weights.shape[1],
            "skips_zeros": self._skips_zeros,
        }
        return arrays, numbers, (loss, num_correct)

    def _of_trial(self, arrays: Array, p: int) -> Array:
        trial = np.empty((len(arrays), self._shape[0]), arrays.dtype)
        self._copy(arrays, trial, p, out=True)
        return trial

    def _copy(self, arrays: Array, trial: Array, p: int, *, out: bool) -> None:
        num_trials = self._shape[1]
        self._kernels.copy_trial(arrays, trial, p, num_trials, skips=self._skips_zeros, out=out)


def _means(
    loss: NDArray[np.float64], num_correct: NDArray[np.int64], num_images: int
) -> list[tuple[float, float]]:
    return list(
        zip((loss / num_images).tolist(), (num_correct / num_images).tolist(), strict=True)
    )
