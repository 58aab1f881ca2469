"""What an experiment file means: frozen models, and `load`, the way in from YAML.

All problems are reported together, each with file, line and key, before any worker starts.
The search space is `space.py`'s. What needs the dataset (a batch larger than the training set)
or the cluster is checked where they are known.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from tune_softmax import strict_yaml
from tune_softmax.config import HYPERPARAMETERS, Config, Precision, Reduction
from tune_softmax.errors import ExperimentError
from tune_softmax.problems import Faults, Frozen, Report, near
from tune_softmax.remedy_options import RemedyOptions
from tune_softmax.remedy_options import conflicts as remedy_conflicts
from tune_softmax.space import (
    READERS,
    Choice,
    Domain,
    IntRange,
    LogUniform,
    Space,
    Uniform,
    Value,
)
from tune_softmax.strict_yaml import Document, KeyPath, printable, shown

__all__ = [
    "Asha",
    "Choice",
    "Dataset",
    "DatasetName",
    "Domain",
    "Experiment",
    "IntRange",
    "LogUniform",
    "ModelOptions",
    "RemedyOptions",
    "Resources",
    "Search",
    "Space",
    "Uniform",
    "Value",
    "json_schema",
    "load",
    "parse",
]

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

_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_MAX_RUNGS = 1_000

_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Count = Annotated[int, Field(ge=1)]


class Dataset(Frozen):
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
        lowest = self.grace_period * self.reduction_factor**bracket
        count = int(math.log(max_epochs / lowest) / math.log(self.reduction_factor) + 1)
        exact = (lowest * self.reduction_factor**k for k in range(count))
        # 100 * 1.1 is a little more than 110 in floating point.
        return list(dict.fromkeys(math.ceil(round(epochs, 9)) for epochs in exact))


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
    pack_size: Literal["auto"] | _Count = Field(
        default="auto",
        description="Trials trained together as one pack, an integer >= 1, or auto.",
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


def _read_name(value: str) -> str:
    if not re.fullmatch(_NAME, value) or ".." in value:
        raise ValueError(
            "must be 1 to 64 letters, digits, dots, _ and -, a letter or digit first and no two "
            f"dots together, got {shown(value)}"
        )
    return value


class Experiment(Frozen):
    """One question put to one dataset: what `load` makes of an experiment file."""

    name: Annotated[str, AfterValidator(_read_name)] = Field(
        description="Begins the run folder's name: 1 to 64 letters, digits, dots, _ and -. "
        "Default: the file's name without .yaml.",
        json_schema_extra={"pattern": _NAME},
    )
    dataset: Dataset = Field(description="Which images, and how they are split.")
    model: ModelOptions = Field(
        default_factory=ModelOptions, description="What all trials' models and losses share."
    )
    space: Space = Field(
        description="Each hyperparameter: one value, or one of choice, int, uniform, log_uniform."
    )
    search: Search = Field(default_factory=Search, description="How the space is searched.")
    resources: Resources = Field(
        default_factory=Resources,
        description="What each pack takes of the machine or the cluster.",
    )
    remedies: RemedyOptions | None = Field(
        default=None,
        description="Which remedies against overfitting to compare; a mapping without keys takes "
        "the defaults, null is for an experiment without such a study.",
    )

    def to_yaml(self) -> str:
        """Return the experiment with every default written out, as `load` reads it back."""
        return strict_yaml.dump(self.model_dump(mode="json"))

    @property
    def num_trials(self) -> int:
        """How many trials the search will have."""
        return self.search.count_trials(self.space)

    def check_searchable(self) -> None:
        """Raise ExperimentError unless there is a hyperparameter to search."""
        if self.space.is_constant:
            raise ExperimentError(
                f"experiment {self.name}: a search needs at least one hyperparameter of the space "
                "to be a choice, int, uniform or log_uniform, got constants only; "
                "train trains one configuration"
            )

    def check_remedies(self) -> RemedyOptions:
        """Return the section `remedies`; raise ExperimentError where there is none."""
        if self.remedies is None:
            raise ExperimentError(
                f"experiment {self.name}: remedies are compared where the file has a section "
                "remedies, got none; `remedies: {}` takes the defaults"
            )
        return self.remedies

    def check_convex(self) -> None:
        """Raise ExperimentError unless some of its trials are convex problems that are compared.

        These are softmax regression with L2 alone, on the images as they are, with the mean as
        loss: the sum makes of one weight decay another penalty in every batch size.
        """
        wrong = [
            f"space.{name} is {getattr(self.space, name)}"
            for name in ("l1", "hidden_units", "augmentation")
            if not self.space.contains(name, 0)
        ]
        if self.model.reduction != "mean":
            wrong.append(f"model.reduction is {self.model.reduction}")
        if wrong:
            raise ExperimentError(
                f"experiment {self.name}: the oracle covers softmax regression with weight decay "
                "alone: l1, hidden_units and augmentation must be able to be 0, and the loss a "
                f"mean; got {', '.join(wrong)}"
            )

    def single_config(self) -> Config:
        """Return the one configuration that a space of constants holds.

        Raises:
            ExperimentError: Something is searched.
        """
        searched = [f"{name} ({domain})" for name, domain in self.space.searched.items()]
        if searched:
            raise ExperimentError(
                f"experiment {self.name}: one configuration needs every hyperparameter of the "
                f"space to be a constant, got {', '.join(searched)}; search tries many"
            )
        return self.space.config({})


def load(path: Path | str, overrides: Mapping[str, object] | None = None) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: The YAML file.
        overrides: Dotted keys to values that replace the file's, from command-line options;
            messages call "search.num_trials" "option --num-trials". A relative "dataset.path"
            is relative to the working folder here.

    Raises:
        ExperimentError: The file cannot be read, or something in it is wrong.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(strict_yaml.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ExperimentError(f"{printable(str(path))}: cannot be read: {reason}") from error
    return _experiment(strict_yaml.read(data, str(path)), path, overrides or {})


def parse(text: str, source: str = "experiment.yaml") -> Experiment:
    """Read and check an experiment from text.

    Args:
        text: The YAML.
        source: The file's name, for messages, the default name, and relative paths; text that
            comes from no file needs none.

    Raises:
        ExperimentError: Something in it is wrong.
    """
    return _experiment(strict_yaml.read(text, source), Path(source), {})


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of experiment files, for editors."""
    schema = Experiment.model_json_schema(schema_generator=_SchemaGenerator)
    schema["required"].remove("name")  # the loader's default
    schema["$defs"]["Dataset"] |= {
        "if": {"properties": {"name": {"const": "idx"}}, "required": ["name"]},
        "then": {"properties": {"path": {"type": "string"}}, "required": ["path"]},
        "else": {"properties": {"path": {"type": "null"}}},
    }
    values = {
        name: {"description": Space.model_fields[name].description, **reader.schema}
        for name, reader in READERS.items()
    }
    schema["$defs"]["Search"]["properties"]["points"]["items"] = {
        "type": "object",
        "properties": values,
        "additionalProperties": False,
        "minProperties": 1,
    }
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **schema, "title": "tune_softmax experiment"}


class _SchemaGenerator(GenerateJsonSchema):
    """Leaves out the titles that only repeat the keys."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - as pydantic's
        return False


def _experiment(document: Document, path: Path, overrides: Mapping[str, object]) -> Experiment:
    """Return what `document`, read from `path`, means once the overrides are in it."""
    keys = {tuple(key.split(".")): value for key, value in overrides.items()}
    options: dict[KeyPath, str] = {key: f"option --{key[-1].replace('_', '-')}" for key in keys}
    report = Report(document, Experiment, options)
    if overrides.get("dataset.path") is not None:  # not relative to the file
        keys["dataset", "path"] = str(Path(str(overrides["dataset.path"])).absolute())
    values = document.value
    for key, value in keys.items():
        node: Any = values
        for part in key[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[key[-1]] = value
        else:
            report.add(key, f"needs {'.'.join(key[:-1])} to be a mapping in {document.source}")
    if "name" not in values:
        try:
            values["name"] = _read_name(path.stem)
        except ValueError as error:
            report.add((), f"missing key 'name', and the file's own name will not do: it {error}")
            values["name"] = "unnamed"
    conflicts: Iterable[tuple[KeyPath, str]] = ()
    try:
        experiment = Experiment.model_validate(values, context=path.absolute().parent)
    except ValidationError as error:
        report.add_errors(error)
        space, search, unread = _readable(values, error)
    else:
        space, search, unread = experiment.space, experiment.search, set[str]()
        conflicts = (*_precision_conflicts(experiment), *_remedies_conflicts(experiment))
    for where, text in (*conflicts, *_conflicts(space, search, unread)):
        report.add(where, text)
    report.raise_if_any()
    return experiment


def _readable(
    values: Mapping[str, object], error: ValidationError
) -> tuple[Space, Search, set[str]]:
    """Return space and search with stand-ins for what is wrong, and the keys of these."""
    unread: set[str] = set()
    parts: dict[str, dict[str, object]] = {}
    for section, model in (("space", Space), ("search", Search)):
        wrong = {item["loc"][:2] for item in error.errors() if item["loc"][0] == section}
        unread |= model.model_fields.keys() if (section,) in wrong else {str(k) for _, k in wrong}
        given = values.get(section)
        given = given if isinstance(given, dict) else {}
        parts[section] = {key: value for key, value in given.items() if key not in unread}
    stand_ins = {"batch_size": 1, "num_epochs": 1, "learning_rate": 1}
    return (
        Space.model_validate(stand_ins | parts["space"]),
        Search.model_validate(parts["search"]),
        unread,
    )


def _conflicts(
    space: Space, search: Search, unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong between keys, each with the key to put it on.

    Args:
        space: The search space.
        search: How it is searched.
        unread: Keys of either whose value is only a stand-in, about which nothing is said.
    """
    if unread.isdisjoint({"asha", "num_epochs"}) and search.asha is not None:
        yield from _asha_conflicts(search.asha, int(space.largest("num_epochs")))
    if "sampler" not in unread and not space.is_constant:
        yield from _sampler_conflicts(space, search.sampler, unread)
    if "points" not in unread:
        yield from _point_conflicts(space, search.points, unread)
        if "num_trials" not in unread and len(search.points) > search.num_trials:
            got = f"{len(search.points)} for {search.num_trials} trials"
            yield ("search", "points"), f"must be at most search.num_trials, got {got}"


def _precision_conflicts(experiment: Experiment) -> Iterator[tuple[KeyPath, str]]:
    if experiment.model.precision == "tf32" and not experiment.resources.gpus_per_pack:
        text = (
            "tf32 is for GPUs alone, and resources.gpus_per_pack is 0; make that more, or take "
            "float32 or bfloat16x2"
        )
        yield ("model", "precision"), text


def _remedies_conflicts(experiment: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Yield what contradicts the section `remedies`, once each section is sound by itself."""
    if experiment.remedies is not None:
        yield from remedy_conflicts(
            experiment.remedies,
            experiment.space,
            experiment.dataset.train_fraction,
            experiment.search.metric,
        )


def _asha_conflicts(asha: Asha, epochs: int) -> Iterator[tuple[KeyPath, str]]:
    if asha.grace_period > epochs:
        text = f"must be <= the most epochs of the space, {epochs}, got {asha.grace_period}"
        yield ("search", "asha", "grace_period"), text
        return
    # Bracket s = 0, 1, ... has int(rungs - s) rungs, some perhaps at one and the same epoch.
    rungs = math.log(epochs / asha.grace_period) / math.log(asha.reduction_factor) + 1
    if rungs > _MAX_RUNGS:
        text = f"must give at most {_MAX_RUNGS:,} rungs, got {int(rungs):,}; make it larger"
        yield ("search", "asha", "reduction_factor"), text
    elif int(rungs - asha.brackets + 1) < 1:
        text = (
            f"must be <= {int(rungs)}, since a later bracket has no rung between grace_period "
            f"{asha.grace_period} and {epochs} epochs, got {asha.brackets}"
        )
        yield ("search", "asha", "brackets"), text


def _sampler_conflicts(
    space: Space, sampler: str, unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    if sampler == "grid":
        try:
            space.check_grid()
        except ExperimentError as error:
            yield ("search", "sampler"), str(error)
    if sampler == "cmaes" and unread.isdisjoint(HYPERPARAMETERS):
        numeric = [name for name, d in space.searched.items() if not isinstance(d, Choice)]
        if len(numeric) < 2:  # noqa: PLR2004 - CMA-ES adapts a covariance
            got = ", ".join(numeric) or "none"
            text = f"cmaes needs two or more of int, uniform and log_uniform, got {got}"
            yield ("search", "sampler"), f"{text}; take tpe"


def _point_conflicts(
    space: Space, points: Iterable[Mapping[str, Value]], unread: AbstractSet[str]
) -> Iterator[tuple[KeyPath, str]]:
    searched = space.searched
    for index, point in enumerate(points):
        for name, value in point.items():
            if name in unread or (name in searched and space.contains(name, value)):
                continue
            text = "must be left out, since it is a constant of the space"
            if name in searched:
                text = f"must be in the space, {searched[name]}"
            yield ("search", "points", index, name), f"{text}, got {shown(value)}"
