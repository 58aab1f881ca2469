"""What the tests of the engine share: small data sets, and both ways to train, side by side."""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from tune_softmax.config import SCHEDULES, Config
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.reference import train
from tune_softmax.engine.tensors import Images, TensorData

# 24 trials in which every hyperparameter meets every other: learning rates from 1e-3 to 1, evenly
# spaced, the larger ones of every four with the larger batches.
MIXED_24 = {
    k: Config(
        batch_size=(64, 128, 256, 512)[k % 4],
        num_epochs=(3, 2, 3, 3, 1)[k % 5],
        learning_rate=10 ** (-3 + 3 * k / 23),
        learning_rate_schedule=SCHEDULES[k % 3],
        weight_decay=(0.0, 1e-3)[k // 3 % 2],
        l1=(0.0, 1e-4)[k // 5 % 2],
        momentum=(0.0, 0.9)[(k + 1) // 3 % 2],
    )
    for k in range(24)
}


@dataclass(frozen=True)
class Trained:
    """The outcome of one trial, however it was trained.

    Attributes:
        weights: All weights and biases in a pack's layout, one after another.
        curves: Per epoch training loss and accuracy, validation loss and accuracy: (epochs, 4).
    """

    weights: Tensor
    curves: Tensor


def random_data(
    num_train=60,
    num_validation=20,
    *,
    image_shape=(2, 3),
    num_classes=3,
    seed=0,
    labels=None,
    nonzero_fraction=1.0,
):
    """Make random images.

    `labels` gives the classes that the training images take in turn, `nonzero_fraction` the
    fraction of pixels that are not set to zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def images(count):
        pixels = torch.randint(256, (count, image_shape[0] * image_shape[1]), generator=generator)
        classes = torch.randint(num_classes, (count,), generator=generator)
        if nonzero_fraction < 1:
            pixels[torch.rand(pixels.shape, generator=generator) >= nonzero_fraction] = 0
        return Images(pixels.to(torch.uint8), classes)

    train_images = images(num_train)
    if labels is not None:
        train_images.labels.copy_(torch.tensor(labels).repeat(num_train)[:num_train])
    return TensorData(train_images, images(num_validation), image_shape, num_classes, 255)


def on_gpu(data):
    """Copy a data set to the current GPU."""
    splits = (
        Images(split.pixels.cuda(), split.labels.cuda()) for split in (data.train, data.validation)
    )
    return TensorData(*splits, data.image_shape, data.num_classes, data.pixel_max)


def train_alone(configs, data, *, seed=0, reduction="mean"):
    """Train every configuration by itself, with `reference.py`."""
    outcomes = {}
    for number, config in configs.items():
        curves = []
        model = train(
            config,
            data,
            seed=seed,
            number=number,
            reduction=reduction,
            on_epoch=lambda _, metrics, curves=curves: curves.append(astuple(metrics)[:4]),
        )
        outcomes[number] = Trained(flat_weights(model), torch.tensor(curves))
    return outcomes


def train_packed(configs, data, *, seed=0, reduction="mean", precision="float32"):
    """Train all configurations as one pack, each to its last epoch."""
    pack = Pack(configs, data, seed=seed, reduction=reduction, precision=precision)
    curves = {number: [] for number in configs}
    while pack.numbers:
        for number, metrics in pack.train_epoch().items():
            curves[number].append(astuple(metrics)[:4])
    return {
        number: Trained(flat_weights(pack.weights(number)), torch.tensor(curves[number]))
        for number in configs
    }


def flat_weights(model):
    """Return a model's or a pack's trial's weights as one vector."""
    if isinstance(model, nn.Module):
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        model = [torch.cat([layer.weight.T, layer.bias[None]]) for layer in linears]
    return torch.cat([torch.as_tensor(layer).detach().cpu().flatten() for layer in model])


def difference(actual, expected):
    """Return how far a trial's weights are from the expected ones, relative to their norm."""
    return float(torch.dist(actual.weights, expected.weights) / expected.weights.norm())
