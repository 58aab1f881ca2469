"""Syne Tune's ASHA on its local backend: the launcher, beside the script that it launches.

After https://syne-tune.readthedocs.io/en/latest/getting_started.html. Its tuner looks for news
every 0.1 s instead of every 5, which would be longer than a trial.
"""

from __future__ import annotations

from pathlib import Path

from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, uniform
from syne_tune.optimizer.baselines import ASHA

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

__all__ = ["main"]


def main() -> None:
    """Run the task that the command line names."""
    task = Task.from_command_line()
    scheduler = ASHA(
        {
            "batch_size": choice(list(BATCH_SIZES)),
            "learning_rate": loguniform(*LEARNING_RATES),
            "momentum": uniform(*MOMENTA),
            "weight_decay": loguniform(*WEIGHT_DECAYS),
            "num_epochs": NUM_EPOCHS,
            "task": str(task.file),
        },
        metric="validation_loss",
        time_attr="epoch",
        max_t=NUM_EPOCHS,
        grace_period=GRACE_PERIOD,
        reduction_factor=REDUCTION_FACTOR,
        random_seed=task.seed,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(entry_point=str(Path(__file__).with_name("syne_trial.py"))),
        scheduler=scheduler,
        # "Once more than this number": the last one is let in, and waited for.
        stop_criterion=StoppingCriterion(max_num_trials_started=task.num_trials - 1),
        wait_trial_completion_when_stopping=True,
        n_workers=NUM_WORKERS,
        sleep_time=0.1,
    )
    tuner.run()


if __name__ == "__main__":
    main()
