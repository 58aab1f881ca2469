"""Plain Optuna with its successive-halving pruner, on resident tensors, in two processes.

After https://optuna.readthedocs.io/en/stable/tutorial/10_key_features/003_efficient_optimization_algorithms.html
and, for several processes, 004_distributed.html beside it.
"""

from __future__ import annotations

from multiprocessing import Pool

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn

from tune_softmax.bench.peers import resident
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

__all__ = ["main", "optimize"]


def optimize(task: Task, worker: int) -> None:
    """Run one process's share of the trials, in the study that all of them have in common."""
    torch.set_num_threads(1)
    torch.manual_seed(task.seed + worker)
    data = resident.load(task)

    def objective(trial: optuna.Trial) -> float:
        batch_size = trial.suggest_categorical("batch_size", BATCH_SIZES)
        model = nn.Linear(data.train_images.shape[1], 10)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=trial.suggest_float("learning_rate", *LEARNING_RATES, log=True),
            momentum=trial.suggest_float("momentum", *MOMENTA),
            weight_decay=trial.suggest_float("weight_decay", *WEIGHT_DECAYS, log=True),
        )
        task.trace.describe(trial.number, Config(num_epochs=NUM_EPOCHS, **trial.params))
        loss = float("inf")
        for epoch in range(1, NUM_EPOCHS + 1):
            resident.train_epoch(model, optimizer, data, batch_size)
            loss = resident.evaluate(model, data)
            trial.report(loss, epoch)
            task.trace.add(trial.number, loss)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study = optuna.create_study(
        study_name="bench",
        storage=JournalStorage(JournalFileBackend(str(task.folder / "journal.log"))),
        sampler=optuna.samplers.TPESampler(seed=task.seed + worker),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=GRACE_PERIOD, reduction_factor=REDUCTION_FACTOR
        ),
        load_if_exists=True,
    )
    share = task.num_trials // NUM_WORKERS + (worker < task.num_trials % NUM_WORKERS)
    study.optimize(objective, n_trials=share)


def main() -> None:
    """Run the task that the command line names."""
    task = Task.from_command_line()
    with Pool(NUM_WORKERS) as pool:
        pool.starmap(optimize, [(task, worker) for worker in range(NUM_WORKERS)])


if __name__ == "__main__":
    main()
