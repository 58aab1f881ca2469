"""The sections of an experiment file, each with its keys, their defaults and what they allow."""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from tune_softmax.config import Precision, Reduction
from tune_softmax.experiment.problems import Faults, Frozen, near
from tune_softmax.experiment.space import READERS, Space, Value
from tune_softmax.experiment.yaml_reader import KeyPath, shown

__all__ = ["Asha", "DatasetName", "DatasetOptions", "ModelOptions", "Resources", "Search"]

DatasetName = Literal[
    "fashion-mnist",
    "mnist",
    "kmnist",
    "qmnist",
    "emnist-balanced",
    "emnist-letters",
    "idx",
    "digits",
]

_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Count = Annotated[int, Field(ge=1)]


class DatasetOptions(Frozen):
    """Which images, and how they are split; the test set is the dataset's own."""

    name: DatasetName = Field(
        description="Which dataset; idx is a folder of IDX files, digits needs no download."
    )
    path: Path | None = Field(
        default=None,
        validate_default=True,
        description="Folder of the IDX files, relative to this file; with idx and only there.",
    )
    validation: _Count | Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1 / 6,
        description="Held out of the training images for validation: how many, an integer >= 1, "
        "or which fraction, > 0 and < 1. The default is 10,000 of 60,000.",
    )
    train_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Fraction of what is left that trials train on, > 0 and <= 1."
    )
    split_seed: _Seed = Field(
        default=0,
        description="Seed of the stratified split, >= 0 and < 2**32; apart from search.seed, so "
        "that searches of several seeds share one split.",
    )

    @field_validator("path", mode="before", json_schema_input_type=str | None)
    @classmethod
    def _read_path(cls, value: object, info: ValidationInfo) -> Path | None:
        name = info.data.get("name")
        if value is None:
            if name == "idx":
                raise ValueError(
                    "must be the folder of IDX files, since the dataset is idx, got none"
                )
            return None
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"must be a folder's name, got {shown(value)}")
        if name not in {"idx", None}:
            raise ValueError(f"must be left out, since the dataset is {name}, got {shown(value)}")
        # Not pathlib's, which raises where there is no home and follows links.
        folder = os.path.join(info.context or "", os.path.expanduser(value))  # noqa: PTH111, PTH118
        return Path(os.path.abspath(folder))  # noqa: PTH100


class ModelOptions(Frozen):
    """What all trials' models and losses share."""

    reduction: Reduction = Field(
        default="mean",
        description="How a mini-batch's losses become one: their mean or their sum.",
    )
    initial_std: Annotated[float, Field(gt=0)] = Field(
        default=0.01,
        description="Standard deviation of the normal initial weights, > 0; biases are 0.",
    )
    precision: Precision = Field(
        default="float32",
        description="In which packs multiply: bfloat16x2 keeps float32's accuracy nearly and is "
        "faster on processors with AMX and on GPUs; bfloat16 loses some; tf32 is for GPUs alone.",
    )


class Asha(Frozen):
    """Asynchronous successive halving (Li et al. 2020): stops the poor trials early."""

    grace_period: _Count = Field(
        default=1,
        description="Epochs that every trial gets, an integer >= 1, at most the most epochs.",
    )
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        default=4.0, description="eta > 1: about one in eta trials goes on at each rung."
    )
    brackets: _Count = Field(
        default=1, description="Brackets, an integer >= 1; each has its first rung later by one."
    )

    def rungs(self, max_epochs: int, bracket: int = 0) -> list[int]:
        """Return the epochs at which trials of a bracket are compared, ascending.

        Rung k is at the first epoch from grace_period * reduction_factor ** (bracket + k) on.
        """
        return list(dict.fromkeys(map(math.ceil, self.exact_rungs(max_epochs, bracket))))

    def exact_rungs(self, max_epochs: int, bracket: int = 0) -> Iterator[float]:
        """Yield a bracket's rungs before they are rounded up to epochs, ascending."""
        for power in itertools.count(bracket):
            # 100 * 1.1 is a little more than 110 in floating point.
            rung = round(self.grace_period * self.reduction_factor**power, 9)
            if rung > max_epochs:
                return
            yield rung


def _read_asha(value: object) -> object:
    if value == "none":
        return None
    if not isinstance(value, dict | Asha):
        keys = ", ".join(Asha.model_fields)
        raise ValueError(  # noqa: TRY004 - pydantic passes a TypeError on
            f"must be none or a mapping with {keys}, got {shown(value)}"
        )
    return value


def _read_points(value: object) -> tuple[dict[str, Value], ...]:
    """Read the configurations to try first; whether they lie in the space is asked later."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of mappings, got {shown(value)}")  # noqa: TRY004
    faults: list[tuple[KeyPath, str, KeyPath]] = []
    points: list[dict[str, Value]] = []
    for index, point in enumerate(value):
        if not isinstance(point, dict) or not point:
            text = f"must be a mapping from hyperparameter to value, got {shown(point)}"
            faults.append(((index,), text, ()))
            continue
        points.append({})
        for name, item in point.items():
            try:
                points[-1][name] = READERS[name].constant(item)
            except KeyError:
                text = f"unknown hyperparameter {shown(name)}{near(name, READERS)}"
                faults.append(((index,), text, (name,)))
            except ValueError as error:
                faults.append(((index, name), str(error), ()))
    if faults:
        raise Faults(faults)
    return tuple(points)


class Search(Frozen):
    """How the space is searched."""

    num_trials: _Count = Field(default=64, description="Configurations to try, an integer >= 1.")
    time_budget_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Seconds of wall clock, > 0, after which the search ends; null: none.",
    )
    metric: Literal["validation_loss", "validation_accuracy"] = Field(
        default="validation_loss",
        description="What is made best: the least loss, or most accuracy.",
    )
    sampler: Literal["tpe", "random", "gp", "cmaes", "grid"] = Field(
        default="tpe", description="Which of Optuna's samplers proposes configurations."
    )
    asha: Annotated[
        Asha | None,
        BeforeValidator(_read_asha, json_schema_input_type=Literal["none"] | Asha),
        PlainSerializer(lambda asha: "none" if asha is None else asha.model_dump()),
    ] = Field(default_factory=Asha, description="When poor trials are stopped early; none: never.")
    pack_size: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        default="auto",
        description="Trials trained together as one pack, an integer >= 1 and <= 10000, or auto.",
    )
    points: Annotated[tuple[dict[str, Value], ...], BeforeValidator(_read_points)] = Field(
        default=(),
        description="Configurations to try first: each gives searched hyperparameters, all or "
        "some, a value in the space.",
    )
    seed: _Seed = Field(
        default=0,
        description="Seed of proposals, initial weights and sample order, >= 0 and < 2**32.",
    )

    deterministic: bool = Field(
        default=False,
        description="Whether packs train in rounds, so that two searches on one processor have "
        "the same trials, whichever packs are faster. Places wait for the round's slowest pack: "
        "quickstart took 5.4 s instead of 4.1 s, fashion_mnist no longer than before.",
    )

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether less or more of the metric is better."""
        return "min" if self.metric == "validation_loss" else "max"

    def count_trials(self, space: Space) -> int:
        """Return how many trials there will be: as asked, or fewer where a grid ends first."""
        if self.sampler != "grid":
            return self.num_trials
        return min(self.num_trials, len(self.points) + space.grid_size)


def _read_gpus(value: object) -> object:
    if isinstance(value, int | float) and value > 1:
        raise ValueError(f"must be <= 1, since a pack uses one GPU or a part of it, got {value}")
    return value


class Resources(Frozen):
    """What each pack takes of the machine or the cluster."""

    cpus_per_pack: _Count = Field(default=1, description="CPU cores of a pack, an integer >= 1.")
    gpus_per_pack: Annotated[float, Field(ge=0, le=1), BeforeValidator(_read_gpus)] = Field(
        default=0.0,
        description="GPUs of a pack, >= 0 and <= 1, since a pack uses at most one GPU.",
    )
    max_concurrent_packs: _Count | None = Field(
        default=None, description="Packs side by side, an integer >= 1; null: as many as fit."
    )
    report_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=600.0,
        description="Seconds without a report, > 0, after which a pack's worker is killed and the "
        "pack is trained again.",
    )
