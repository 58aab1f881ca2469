"""Train one configuration the plain way: the readable reference that packs must agree with.

It needs torch alone, and is the whole of `tune-softmax train`'s arithmetic.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tune_softmax.engine.augmentation import augment
from tune_softmax.engine.draws import sample_order
from tune_softmax.engine.model import build_model
from tune_softmax.engine.tensors import scale
from tune_softmax.metrics import EpochMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tune_softmax.config import Config, Reduction
    from tune_softmax.engine.tensors import Images, TensorData

__all__ = ["Evaluation", "evaluate", "train"]

# Rows per forward pass of an evaluation: large enough to keep the product efficient.
EVALUATION_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model does on one split.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Fraction of images classified right, in [0, 1].
        confusion: int64, (C, C): row the true class, column the predicted one.
    """

    loss: float
    accuracy: float
    confusion: Tensor


def train(
    config: Config,
    data: TensorData,
    *,
    seed: int,
    number: int = 0,
    reduction: Reduction = "mean",
    initial_std: float = 0.01,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda _epoch, _metrics: None,
) -> nn.Sequential:
    """Train one configuration with `torch.optim.SGD`.

    Args:
        config: The hyperparameters.
        data: Training and validation images, on the device to train on.
        seed: The experiment's seed; with `number` it decides the initial weights, and alone the
            order of the images.
        number: The trial's number.
        reduction: Whether a mini-batch's loss is the mean or the sum over its images. Reported
            losses are means either way.
        initial_std: Standard deviation of the initial weights.
        on_epoch: Called after every epoch with its number, from 1, and its metrics.

    Returns:
        The trained model, on the data's device.
    """
    model = build_model(
        data.image_shape,
        data.num_classes,
        config.hidden_units,
        seed=seed,
        number=number,
        initial_std=initial_std,
    ).to(data.device)
    weights = [parameter for name, parameter in model.named_parameters() if "weight" in name]
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases},
    ]
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    num_steps = config.num_steps(len(data.train))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: config.learning_rate_factor(step, num_steps)
    )
    images = scale(data.train.pixels, data.pixel_max).view(-1, *data.image_shape)
    cross_entropy = nn.CrossEntropyLoss(reduction=reduction)
    for epoch in range(1, config.num_epochs + 1):
        started = time.perf_counter()
        loss_sum = torch.zeros((), dtype=torch.float64, device=data.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=data.device)
        order = torch.from_numpy(sample_order(seed, epoch, len(data.train))).to(data.device)
        if config.augmentation:
            moved = augment(
                data.train.pixels,
                data.image_shape,
                strength=config.augmentation,
                seed=seed,
                epoch=epoch,
                pixel_max=data.pixel_max,
            )
            images = moved.view(-1, *data.image_shape)
        for batch in order.split(config.batch_size):
            labels = data.train.labels[batch]
            logits = model(images[batch])
            loss = objective = cross_entropy(logits, labels)
            if config.l1:
                objective = loss + config.l1 * sum(weight.abs().sum() for weight in weights)
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            scheduler.step()
            loss_sum += loss.detach() * (len(batch) if reduction == "mean" else 1)
            num_correct += (logits.argmax(1) == labels).sum()
        validation = evaluate(model, data.validation, data)
        metrics = EpochMetrics(
            train_loss=loss_sum.item() / len(data.train),
            train_accuracy=num_correct.item() / len(data.train),
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            seconds=time.perf_counter() - started,
        )
        on_epoch(epoch, metrics)
        if not metrics.is_finite:
            break
    return model


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, data: TensorData) -> Evaluation:
    """Evaluate a model on one split.

    Args:
        model: Takes images, float32, (B, H, W), in [0, 1]; gives logits, (B, C).
        images: The split, on the model's device.
        data: Where image shape, number of classes and pixel scale come from.
    """
    loss_sum = 0.0
    confusion = torch.zeros(data.num_classes**2, dtype=torch.int64, device=images.labels.device)
    for pixels, labels in zip(
        images.pixels.split(EVALUATION_ROWS), images.labels.split(EVALUATION_ROWS), strict=True
    ):
        logits = model(scale(pixels, data.pixel_max).view(-1, *data.image_shape))
        loss_sum += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        cells = labels * data.num_classes + logits.argmax(1)
        confusion += torch.bincount(cells, minlength=data.num_classes**2)
    confusion = confusion.view(data.num_classes, data.num_classes).cpu()
    return Evaluation(
        loss=loss_sum / len(images),
        accuracy=confusion.diagonal().sum().item() / len(images),
        confusion=confusion,
    )
