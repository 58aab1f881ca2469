"""Syne Tune's ASHA on its local backend: the script of one trial, on resident tensors."""

from __future__ import annotations

import argparse
import os

import torch
from syne_tune import Reporter
from torch import nn

from tune_softmax.bench.peers import resident
from tune_softmax.bench.task import Task
from tune_softmax.config import Config

__all__ = ["main"]


def main() -> None:
    """Train the configuration that the command line holds, and report after every epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--momentum", type=float)
    parser.add_argument("--weight_decay", type=float)
    parser.add_argument("--num_epochs", type=int)
    parser.add_argument("--task")
    options, _ = parser.parse_known_args()
    task = Task.read(options.task)
    values = {key: value for key, value in vars(options).items() if key != "task"}
    task.trace.describe(os.getpid(), Config(**values))
    report = Reporter()
    data = resident.load(task)
    model = nn.Linear(data.train_images.shape[1], 10)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    for epoch in range(1, options.num_epochs + 1):
        resident.train_epoch(model, optimizer, data, options.batch_size)
        loss = resident.evaluate(model, data)
        task.trace.add(os.getpid(), loss)
        report(epoch=epoch, validation_loss=loss)


if __name__ == "__main__":
    main()
