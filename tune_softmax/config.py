"""The hyperparameters of a trial: their names, types, ranges, defaults and descriptions.

Plain values without a dependency, so that the engine runs where only torch is installed. The
search space, the JSON schema and the documentation take what they say of a hyperparameter here.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, TypedDict, Unpack, get_args

__all__ = [
    "BOUNDS",
    "DEFAULTS",
    "DESCRIPTIONS",
    "HYPERPARAMETERS",
    "SCHEDULES",
    "Bounds",
    "Config",
    "Precision",
    "Reduction",
    "Schedule",
]

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

Reduction = Literal["mean", "sum"]

Precision = Literal["float32", "bfloat16x2", "bfloat16", "tf32"]


class Bounds(TypedDict, total=False):
    """The range of a number: as many of these as it has."""

    ge: float
    gt: float
    le: float
    lt: float


def _about(description: str, **bounds: Unpack[Bounds]) -> dict[str, Any]:
    """Return the metadata of a hyperparameter."""
    return {"description": description, "bounds": bounds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One sampled set of hyperparameters: what one trial is trained with.

    `DESCRIPTIONS` says what each is and `BOUNDS` which numbers an experiment allows; nothing is
    checked here.
    """

    batch_size: int = field(metadata=_about("Images per mini-batch, an integer >= 1.", ge=1))
    num_epochs: int = field(
        metadata=_about(
            "Passes over the training set, an integer >= 1; ASHA may stop a trial earlier.", ge=1
        )
    )
    learning_rate: float = field(metadata=_about("Initial step size, a number > 0.", gt=0))
    learning_rate_schedule: Schedule = field(
        default="constant",
        metadata=_about("How the step size falls to zero over the trial's own epochs."),
    )
    weight_decay: float = field(
        default=0.0,
        metadata=_about("lambda >= 0 in lambda/2 * ||W||^2; biases are not penalized.", ge=0),
    )
    l1: float = field(
        default=0.0,
        metadata=_about("Factor >= 0 of ||W||_1; biases are not penalized.", ge=0),
    )
    momentum: float = field(
        default=0.0,
        metadata=_about(
            "Momentum of SGD, a number >= 0 and < 1, in torch's form (no dampening, not "
            "Nesterov's).",
            ge=0,
            lt=1,
        ),
    )
    hidden_units: int = field(
        default=0,
        metadata=_about(
            "Width of the hidden ReLU layer, an integer >= 0; 0 is softmax regression.", ge=0
        ),
    )
    augmentation: float = field(
        default=0.0,
        metadata=_about(
            "How far training images are moved anew in every epoch, a number >= 0 and <= 1: at 1 "
            "flipped half of the time, and scaled, rotated and shifted by up to a tenth, 15 "
            "degrees and a tenth of the side. Each value of a choice costs a pack of its own.",
            ge=0,
            le=1,
        ),
    )

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


_FIELDS = {field.name: field for field in fields(Config)}

HYPERPARAMETERS: tuple[str, ...] = tuple(_FIELDS)
"""Their names, in the order in which files, tables and reports have them."""

DESCRIPTIONS: Mapping[str, str] = {k: f.metadata["description"] for k, f in _FIELDS.items()}
"""What each is, in a sentence, with its range."""

BOUNDS: Mapping[str, Bounds] = {k: f.metadata["bounds"] for k, f in _FIELDS.items()}
"""The range of each; a schedule has none."""

DEFAULTS: Mapping[str, Any] = {
    name: field.default for name, field in _FIELDS.items() if field.default is not MISSING
}
"""The values of those that an experiment may leave out."""
