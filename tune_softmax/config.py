"""One sampled set of hyperparameters: what a trial is trained with, and nothing else.

Plain values without a dependency, so that the engine runs where only torch is installed.
Which values an experiment allows is `experiment.py`'s duty.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

__all__ = ["HYPERPARAMETERS", "SCHEDULES", "Config", "Precision", "Reduction", "Schedule"]

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

Reduction = Literal["mean", "sum"]

Precision = Literal["float32", "bfloat16x2", "bfloat16", "tf32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The hyperparameters of one trial.

    Attributes:
        batch_size: Images per mini-batch, at least 1; an epoch's last batch may be shorter.
        num_epochs: Passes over the training set, at least 1.
        learning_rate: Initial step size, positive.
        learning_rate_schedule: How the step size falls to zero over the trial's own epochs.
        weight_decay: lambda >= 0 in lambda/2 * ||W||^2; biases are not penalized.
        l1: Factor >= 0 of ||W||_1; biases are not penalized.
        momentum: 0 <= momentum < 1, torch's form (no dampening, not Nesterov's).
        hidden_units: Width of the hidden ReLU layer; 0 is softmax regression.
        augmentation: How far every image is moved anew in each epoch, in [0, 1]; see
            `augmentation.py`. Validation and test images stay.
    """

    batch_size: int
    num_epochs: int
    learning_rate: float
    learning_rate_schedule: Schedule = "constant"
    weight_decay: float = 0.0
    l1: float = 0.0
    momentum: float = 0.0
    hidden_units: int = 0
    augmentation: float = 0.0

    def num_steps(self, num_samples: int) -> int:
        """Return the number of updates that the whole training makes.

        Args:
            num_samples: Training images per epoch.
        """
        return self.num_epochs * math.ceil(num_samples / self.batch_size)

    def learning_rate_factor(self, step: int, num_steps: int) -> float:
        """Return the fraction of `learning_rate` that update number `step` uses.

        Args:
            step: Updates made so far, 0 <= step < num_steps.
            num_steps: Updates in the whole training.

        Returns:
            1 at step 0; `linear` and `cosine` reach zero after the last step. Loshchilov and
            Hutter 2017, equation 5 with eta_min = 0, for `cosine`.
        """
        progress = step / num_steps
        match self.learning_rate_schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - progress
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))


HYPERPARAMETERS: tuple[str, ...] = tuple(field.name for field in fields(Config))
