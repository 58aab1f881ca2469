"""What every trial of a group does at every micro-batch of an epoch.

A group walks micro-batches of the greatest common divisor of its batch sizes. Tables of
coefficients say when a trial's batch begins and ends, so that whoever trains the group applies
them without asking which trial is where.
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

__all__ = ["Plan", "Trial", "TrialState", "effective_batch_size", "step_sizes"]

TrialState: TypeAlias = list[tuple[NDArray[Any], NDArray[Any]]]
"""Per layer a trial's weights and velocity, float32, (in + 1, out) each."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial between two groupings.

    Attributes:
        number: The trial's number.
        config: Its hyperparameters.
        layers: Per layer its weights and its velocity, float32, (in + 1, out) each: arrays, or
            tensors on the device of the group that it comes from.
    """

    number: int
    config: Config
    layers: list[tuple[NDArray[Any], NDArray[Any]]] | list[tuple[Tensor, Tensor]]


def effective_batch_size(config: Config, data: ArrayData | TensorData) -> int:
    """Return a trial's batch size; one beyond the training set means all of it."""
    return min(config.batch_size, len(data.train))


class Plan:
    """What every trial of a group does at each micro-batch of an epoch, as tables (steps, P).

    Tables are arrays of the data's type of number; one whose rows are all the same has them once,
    with a stride of 0.

    Attributes:
        rows: Images in a micro-batch, the greatest common divisor of the batch sizes.
        loss_weights: What an image's loss counts in its mini-batch: 1/B for the mean, 1 for the
            sum; an epoch's last batch divides by its own length.
        momentum: The trial's where its batch begins, 1 within a batch.
        weight_decay: The trial's where its batch begins, 0 within a batch.
        l1: Likewise.
    """

    def __init__(
        self, configs: Sequence[Config], data: ArrayData | TensorData, reduction: Reduction
    ) -> None:
        self._configs = configs
        self._num_samples = len(data.train)
        self._real = data.real
        sizes = [effective_batch_size(config, data) for config in configs]
        self.rows = gcd(*sizes)
        self.num_steps = ceil(self._num_samples / self.rows)
        starts = np.arange(self.num_steps)[:, np.newaxis] * self.rows  # (steps, 1)
        batch_sizes = np.array(sizes)  # (P,)
        ends = np.minimum(starts + self.rows, self._num_samples)
        begins = starts % batch_sizes == 0  # (steps, P)
        self._updates = (ends % batch_sizes == 0) | (ends == self._num_samples)
        self._batches = starts // batch_sizes
        lengths = np.minimum(self._num_samples - self._batches * batch_sizes, batch_sizes)
        weights = 1.0 / lengths if reduction == "mean" else np.ones(lengths.shape)
        self.loss_weights = weights.astype(self._real)
        self.momentum = self._coefficients("momentum", begins, within=1.0)
        self.weight_decay = self._coefficients("weight_decay", begins, within=0.0)
        self.l1 = self._coefficients("l1", begins, within=0.0)

    def _coefficients(
        self, name: str, begins: NDArray[np.bool_], *, within: float
    ) -> NDArray[Any] | None:
        """Return the table of one hyperparameter, or None where it is 0 everywhere."""
        values = np.array([getattr(config, name) for config in self._configs], self._real)
        if begins.all():  # one row serves every step
            table = np.broadcast_to(values, begins.shape)
        else:
            table = np.where(begins, values, self._real.type(within))
        return table if table.any() else None

    def learning_rates(self, epoch: int) -> NDArray[Any]:
        """Return the epoch's step sizes, (steps, P): 0 where a trial does not update."""
        sizes = step_sizes(self._configs, self._num_samples, epoch)
        rates = np.stack([sizes[p][batches] for p, batches in enumerate(self._batches.T)], axis=1)
        table: NDArray[Any] = (rates * self._updates).astype(self._real)
        return table


def step_sizes(
    configs: Sequence[Config], num_samples: int, epoch: int
) -> list[NDArray[np.float64]]:
    """Return each trial's learning rates in the mini-batches of an epoch, by its schedule.

    Args:
        configs: The trials'.
        num_samples: Training images.
        epoch: From 1.
    """
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
