"""Ray Tune as its PyTorch tutorial uses it: a function trainable, `DataLoader`, Optuna and ASHA.

After https://docs.ray.io/en/latest/tune/examples/tune-pytorch-cifar.html, for another dataset
and model, and without its checkpoints, which would cost it time.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from tune_softmax.bench.task import (
    BATCH_SIZES,
    GRACE_PERIOD,
    LEARNING_RATES,
    MOMENTA,
    NUM_EPOCHS,
    NUM_WORKERS,
    REDUCTION_FACTOR,
    WEIGHT_DECAYS,
    Task,
)
from tune_softmax.config import Config

__all__ = ["main", "train_fashion_mnist"]


def train_fashion_mnist(config: dict[str, Any], task: Task) -> None:
    """Train one configuration, and report after every epoch."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    images = FashionMNIST(str(task.images), train=True, transform=ToTensor())
    train, validation = (Subset(images, indices.tolist()) for indices in task.split())
    # Without processes of its own for loading: a trial has one core.
    train_loader = DataLoader(train, batch_size=config["batch_size"], shuffle=True)
    validation_loader = DataLoader(validation, batch_size=1024)
    trial = tune.get_context().get_trial_id()
    values = {key: value for key, value in config.items() if key != "lr"}
    described = Config(num_epochs=NUM_EPOCHS, learning_rate=config["lr"], **values)
    task.trace.describe(trial, described)
    for _epoch in range(NUM_EPOCHS):
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
        total = 0.0
        with torch.no_grad():
            for inputs, labels in validation_loader:
                total += criterion(model(inputs), labels).item() * len(labels)
        mean = total / len(validation)
        task.trace.add(trial, mean)
        tune.report({"loss": mean})


def main() -> None:
    """Run the task that the command line names."""
    task = Task.from_command_line()
    ray.init(num_cpus=NUM_WORKERS, include_dashboard=False, _temp_dir=str(task.folder / "ray"))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_fashion_mnist, task=task), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            search_alg=OptunaSearch(seed=task.seed),
            scheduler=ASHAScheduler(
                max_t=NUM_EPOCHS, grace_period=GRACE_PERIOD, reduction_factor=REDUCTION_FACTOR
            ),
            num_samples=task.num_trials,
        ),
        param_space={
            "batch_size": tune.choice(BATCH_SIZES),
            "lr": tune.loguniform(*LEARNING_RATES),
            "momentum": tune.uniform(*MOMENTA),
            "weight_decay": tune.loguniform(*WEIGHT_DECAYS),
        },
        run_config=tune.RunConfig(name="tutorial", storage_path=str(task.folder / "results")),
    )
    tuner.fit().get_best_result()


if __name__ == "__main__":
    main()
