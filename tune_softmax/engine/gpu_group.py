"""A group of trials whose epoch is one launch of a kernel on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import pad
from triton import cdiv, next_power_of_2

from tune_softmax.engine import gpu_kernels
from tune_softmax.engine.plan import batch_coefficients, effective_batch_size
from tune_softmax.engine.products import NUM_TERMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tune_softmax.config import Precision, Reduction
    from tune_softmax.engine.plan import Trial
    from tune_softmax.engine.tensors import TensorData

__all__ = ["GpuGroup", "launch_options"]

MIN_COLUMNS = 16  # the narrowest product that a tensor core computes
# Warps of a program: enough threads to hold a tile's sums in registers.
NUM_WARPS, NUM_WARPS_WIDE = 4, 8


class GpuGroup:
    """Softmax regression: P trials, D pixels, C classes; weights are (P, D + 1, columns)."""

    def __init__(
        self,
        trials: Sequence[Trial],
        data: TensorData,
        reduction: Reduction,
        precision: Precision = "float32",
    ) -> None:
        """Copy the trials' weights and velocities into the group's.

        Args:
            trials: Without a hidden layer and without augmentation.
            data: The images, on the GPU to train on.
            reduction: Whether a mini-batch's loss is the mean or the sum over its images.
            precision: In which to multiply; one of NUM_TERMS.
        """
        self.trials = trials
        self.data = data
        self._configs = [trial.config for trial in trials]
        self._num_columns = max(MIN_COLUMNS, next_power_of_2(data.num_classes))
        self._weights, self._velocity = (
            pad(
                torch.stack([self._tensor(trial.layers[0][part]) for trial in trials]),
                (0, self._num_columns - data.num_classes),
            )
            for part in (0, 1)
        )
        sizes = [effective_batch_size(config, data) for config in self._configs]
        self._batch_sizes = self._tensor(np.array(sizes, np.int32))
        self._residuals = self._weights.new_empty(
            len(trials), gpu_kernels.SLICE_ROWS.value, self._num_columns
        )
        self._shape = {
            "pixel_max": float(data.pixel_max),
            "D": data.num_features,
            "C": data.num_classes,
            "COLUMNS": self._num_columns,
            "TERMS": NUM_TERMS[precision],
            **launch_options(self._num_columns),
        }
        self._is_mean = reduction == "mean"

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocity, (D + 1, C) each."""
        weights, velocity = (
            tensor[p, :, : self.data.num_classes].clone()
            for tensor in (self._weights, self._velocity)
        )
        return [(weights, velocity)]

    def train_epoch(
        self, order: NDArray[np.int64], epoch: int, inputs: Tensor | None
    ) -> list[tuple[float, float]]:
        """Train for one epoch, number `epoch`; return each trial's loss and accuracy.

        Args:
            order: The images' order, int64, (N,).
            epoch: From 1.
            inputs: None; augmented images are trained elsewhere.
        """
        assert inputs is None, "augmented images are not integers"
        train = self.data.train
        num_trials = len(self.trials)
        coefficients = batch_coefficients(self._configs, len(train), epoch)
        losses = torch.empty(num_trials, dtype=torch.float64, device=self.data.device)
        num_correct = torch.empty_like(losses, dtype=torch.int64)
        with torch.cuda.device_of(losses):  # Triton launches on the current device
            gpu_kernels.train_epoch[(num_trials,)](
                train.pixels,
                train.labels,
                self._tensor(order),
                self._weights,
                self._velocity,
                self._batch_sizes,
                self._tensor(coefficients),
                self._residuals,
                losses,
                num_correct,
                N=len(train),
                IS_MEAN=self._is_mean,
                **self._shape,
            )
        return _means(losses, num_correct, len(train))

    def evaluate(self) -> list[tuple[float, float]]:
        """Return each trial's loss and accuracy on the validation set."""
        images = self.data.validation
        grid = (len(self.trials), cdiv(len(images), gpu_kernels.BLOCK_ROWS.value))
        losses = torch.empty(grid, device=self.data.device)
        num_correct = torch.empty_like(losses, dtype=torch.int32)
        with torch.cuda.device_of(losses):
            gpu_kernels.evaluate[grid](
                images.pixels,
                images.labels,
                self._weights,
                losses,
                num_correct,
                N=len(images),
                **self._shape,
            )
        return _means(losses.sum(1, dtype=torch.float64), num_correct.sum(1), len(images))

    def _tensor(self, values: NDArray[np.generic] | Tensor) -> Tensor:
        return torch.as_tensor(values, device=self.data.device)


def launch_options(num_columns: int) -> dict[str, int | bool]:
    """Return how Triton is to compile for weights of so many columns."""
    num_warps = NUM_WARPS if num_columns == MIN_COLUMNS else NUM_WARPS_WIDE
    return {"num_warps": num_warps, "enable_fp_fusion": True}


def _means(losses: Tensor, num_correct: Tensor, num_images: int) -> list[tuple[float, float]]:
    by_trial = torch.stack([losses, num_correct.to(torch.float64)], 1) / num_images
    return [(loss, accuracy) for loss, accuracy in by_trial.tolist()]
