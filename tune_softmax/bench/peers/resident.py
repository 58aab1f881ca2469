"""Softmax regression as plain PyTorch on tensors that stay in memory, for peers that have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision.datasets import FashionMNIST

if TYPE_CHECKING:
    from torch import Tensor

    from tune_softmax.bench.task import Task

__all__ = ["Resident", "evaluate", "load", "train_epoch"]


@dataclass(frozen=True, slots=True)
class Resident:
    """Images and labels of both splits: float32, (N, 784), from 0 to 1; int64, (N,)."""

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def load(task: Task) -> Resident:
    """Read Fashion-MNIST and split it."""
    source = FashionMNIST(str(task.images), train=True)
    images = source.data.flatten(1).float() / 255
    train, validation = map(torch.from_numpy, task.split())
    return Resident(
        images[train], source.targets[train], images[validation], source.targets[validation]
    )


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Resident, batch_size: int
) -> None:
    """Walk the training images once, in a new order."""
    for indices in torch.randperm(len(data.train_images)).split(batch_size):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(data.train_images[indices]), data.train_labels[indices]
        )
        loss.backward()
        optimizer.step()


def evaluate(model: nn.Module, data: Resident) -> float:
    """Return the mean cross-entropy on the validation images."""
    with torch.no_grad():
        logits = model(data.validation_images)
        return nn.functional.cross_entropy(logits, data.validation_labels).item()
