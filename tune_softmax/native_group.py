"""A group of a pack that the engine's own kernels train on one CPU core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from tune_softmax.native import PANEL
from tune_softmax.steps import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tune_softmax.config import Reduction
    from tune_softmax.native import Kernels
    from tune_softmax.steps import Trial
    from tune_softmax.tensors import Images, TensorData

__all__ = ["NativeGroup"]


class NativeGroup:
    """Softmax regression: P trials, D pixels, C classes.

    Column c*P + p is class c of trial p, as in `torch_groups.LinearGroup`, but columns stand in
    panels of 16, (panels, D + 1, 16), filled up with zeros.
    """

    def __init__(
        self, trials: Sequence[Trial], data: TensorData, reduction: Reduction, kernels: Kernels
    ) -> None:
        self.trials = trials
        self.data = data
        self.plan = Plan([trial.config for trial in trials], data, reduction)
        self._kernels = kernels
        self._shape = (data.num_classes, len(trials))
        self._weights, self._velocity = (
            self._to_panels(torch.stack([trial.layers[0][i] for trial in trials], dim=-1))
            for i in (0, 1)
        )
        self._scratch = kernels.scratch(
            data.num_features, len(trials), self._weights.shape[0] * PANEL
        )

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocity, (D + 1, C) each."""
        return [(self._of_trial(self._weights, p), self._of_trial(self._velocity, p))]

    def train_epoch(
        self, order: Tensor, epoch: int, inputs: Tensor | None
    ) -> list[tuple[float, float]]:
        """Train for one epoch, number `epoch`; return each trial's loss and accuracy.

        Args:
            order: The images' order, int64, (N,).
            epoch: From 1.
            inputs: (N, D + 1) in place of the images; None for these, whose bytes are read.
        """
        plan = self.plan
        tables = {
            "loss_weights": plan.loss_weights,
            "momentum": plan.momentum,
            "weight_decay": plan.weight_decay,
            "l1": plan.l1,
            "rates": plan.learning_rates(epoch),
        }
        strides = {
            f"{name}_stride": 0 if table is None else table.stride(0)
            for name, table in tables.items()
            if name in {"momentum", "weight_decay", "l1"}
        }
        tensors, numbers, tally = self._common(self.data.train)
        tensors |= {**tables, "order": order, "velocity": self._velocity, "inputs": inputs}
        self._kernels.train_epoch(tensors, {**numbers, **strides, "num_rows": plan.rows})
        return _means(*tally, len(order))

    def evaluate(self) -> list[tuple[float, float]]:
        """Return each trial's loss and accuracy on the validation set."""
        tensors, numbers, tally = self._common(self.data.validation)
        self._kernels.evaluate(tensors, numbers)
        return _means(*tally, len(self.data.validation))

    def _common(
        self, images: Images
    ) -> tuple[dict[str, Tensor | None], dict[str, float], tuple[Tensor, Tensor]]:
        """Return what training and evaluation both need, and where they tally."""
        num_classes, num_trials = self._shape
        loss = torch.zeros(num_trials, dtype=torch.float64)
        num_correct = torch.zeros(num_trials, dtype=torch.int64)
        tensors: dict[str, Tensor | None] = {
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
            "num_columns": self._weights.shape[0] * PANEL,
        }
        return tensors, numbers, (loss, num_correct)

    def _to_panels(self, stacked: Tensor) -> Tensor:
        """Turn (D + 1, C, P) into panels."""
        columns = stacked.flatten(1)
        columns = pad(columns, (0, -columns.shape[1] % PANEL))
        panels: Tensor = columns.unflatten(1, (-1, PANEL))
        return panels.transpose(0, 1).contiguous()

    def _of_trial(self, panels: Tensor, p: int) -> Tensor:
        num_classes, num_trials = self._shape
        columns = panels.transpose(0, 1).flatten(1)[:, : num_classes * num_trials]
        by_trial: Tensor = columns.unflatten(1, self._shape)
        return by_trial[..., p].clone()


def _means(loss: Tensor, num_correct: Tensor, num_images: int) -> list[tuple[float, float]]:
    """Return (loss, accuracy) for each trial."""
    accuracy = num_correct.to(torch.float64) / num_images
    return list(zip((loss / num_images).tolist(), accuracy.tolist(), strict=True))
