"""The coefficients of every trial's SGD step, as one table a group and epoch.

A group walks micro-batches of the greatest common divisor of its batch sizes. A trial's mini-batch
is one or more micro-batches: momentum and penalties apply with its first, the learning rate with
its last. The table holds for every micro-batch and trial the four coefficients, so that a group
applies one formula to all of its trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tune_softmax.config import Config, Reduction
    from tune_softmax.engine.arrays import ArrayData
    from tune_softmax.engine.tensors import TensorData

__all__ = [
    "COEFFICIENTS",
    "Plan",
    "Trial",
    "TrialState",
    "batch_coefficients",
    "effective_batch_size",
]

COEFFICIENTS = ("learning_rate", "momentum", "weight_decay", "l1")
"""The rows of a step's coefficients, as `cpu_kernels.c` and `gpu_kernels.py` number them."""
# What the last three are within a mini-batch: the gradient adds to the velocity as it is.
WITHIN_BATCH = (1.0, 0.0, 0.0)

TrialState: TypeAlias = list[tuple[NDArray[Any], NDArray[Any]]]
"""Per layer a trial's weights and velocity, float32, (in + 1, out) each."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial's hyperparameters and state, as a group takes and returns them.

    Attributes:
        number: The trial's number.
        config: Its hyperparameters.
        layers: Per layer its weights and its velocity, float32, (in + 1, out) each: arrays, or
            tensors on the device of the group that returned them.
    """

    number: int
    config: Config
    layers: list[tuple[NDArray[Any], NDArray[Any]]] | list[tuple[Tensor, Tensor]]


def effective_batch_size(config: Config, data: ArrayData | TensorData) -> int:
    """Return a trial's batch size; one beyond the training set means all of it."""
    return min(config.batch_size, len(data.train))


class Plan:
    """A group's micro-batches, and the tables of coefficients that they need.

    Attributes:
        rows: Images in a micro-batch, the greatest common divisor of the batch sizes.
        num_steps: Micro-batches in an epoch.
        loss_weights: An image's weight in its mini-batch's loss, (steps, P): 1/B for the mean, 1
            for the sum; an epoch's last mini-batch divides by its own length.
        has_momentum: Whether a momentum of the table is not 0.
        has_weight_decay: Likewise.
        has_l1: Likewise.
    """

    def __init__(
        self, configs: Sequence[Config], data: ArrayData | TensorData, reduction: Reduction
    ) -> None:
        self._configs = configs
        self._num_samples = len(data.train)
        sizes = [effective_batch_size(config, data) for config in configs]
        self.rows = gcd(*sizes)
        self.num_steps = ceil(self._num_samples / self.rows)
        starts = np.arange(self.num_steps)[:, np.newaxis] * self.rows  # (steps, 1)
        batch_sizes = np.array(sizes)  # (P,)
        ends = np.minimum(starts + self.rows, self._num_samples)
        is_first = starts % batch_sizes == 0  # (steps, P)
        self._is_last = (ends % batch_sizes == 0) | (ends == self._num_samples)
        self._batches = starts // batch_sizes
        lengths = np.minimum(self._num_samples - self._batches * batch_sizes, batch_sizes)
        weights = 1.0 / lengths if reduction == "mean" else np.ones(lengths.shape)
        self.loss_weights = weights.astype(data.real)
        self._table = np.empty((self.num_steps, len(COEFFICIENTS), len(configs)), data.real)
        for row, (values, within) in enumerate(
            zip(_constants(configs), WITHIN_BATCH, strict=True), 1
        ):
            self._table[:, row] = np.where(is_first, values, within)
        self.has_momentum, self.has_weight_decay, self.has_l1 = (
            bool(self._table[:, row].any()) for row in range(1, len(COEFFICIENTS))
        )

    def coefficients(self, epoch: int) -> NDArray[Any]:
        """Return the epoch's table, of the data's type, (steps, 4, P), rows as in COEFFICIENTS.

        The learning rate is 0 where a trial does not update. The next call overwrites the table.

        Args:
            epoch: From 1.
        """
        sizes = _step_sizes(self._configs, self._num_samples, epoch)
        rates = np.stack([sizes[p][batches] for p, batches in enumerate(self._batches.T)], axis=1)
        self._table[:, 0] = rates * self._is_last
        return self._table


def batch_coefficients(
    configs: Sequence[Config], num_samples: int, epoch: int
) -> NDArray[np.float32]:
    """Return an epoch's coefficients for trials that walk their own mini-batches.

    Args:
        configs: The trials'.
        num_samples: Training images.
        epoch: From 1.

    Returns:
        (steps, 4, P), rows as in COEFFICIENTS, as many steps as the trial with most mini-batches
        has; after a trial's last one its learning rates are 0.
    """
    sizes = _step_sizes(configs, num_samples, epoch)
    table = np.zeros((max(map(len, sizes)), len(COEFFICIENTS), len(configs)), np.float32)
    for p, rates in enumerate(sizes):
        table[: len(rates), 0, p] = rates
    table[:, 1:] = _constants(configs)
    return table


def _constants(configs: Sequence[Config]) -> NDArray[np.float64]:
    """Return the coefficients that do not change during training, (3, P)."""
    return np.array([[getattr(config, name) for config in configs] for name in COEFFICIENTS[1:]])


def _step_sizes(
    configs: Sequence[Config], num_samples: int, epoch: int
) -> list[NDArray[np.float64]]:
    """Return each trial's learning rates in the mini-batches of an epoch, by its schedule."""
    factors: dict[tuple[str, int, int], NDArray[np.float64]] = {}
    for config in configs:
        key = (config.learning_rate_schedule, config.num_epochs, config.batch_size)
        if key not in factors:
            per_epoch = ceil(num_samples / config.batch_size)
            num_steps = config.num_steps(num_samples)
            steps = range((epoch - 1) * per_epoch, epoch * per_epoch)
            factors[key] = np.array([config.learning_rate_factor(s, num_steps) for s in steps])
    return [
        config.learning_rate
        * factors[config.learning_rate_schedule, config.num_epochs, config.batch_size]
        for config in configs
    ]
