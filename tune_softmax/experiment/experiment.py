"""The experiment: a frozen model, read and checked by `load` (a file) or `parse` (text).

All problems are reported together, each with file, line and key, before any worker starts.
`sections.py` has the sections, `space.py` the search space. What needs the dataset (a batch
larger than the training set) or the cluster is checked where they are known.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from tune_softmax import files
from tune_softmax.config import DESCRIPTIONS, Config
from tune_softmax.errors import ExperimentError, command
from tune_softmax.experiment import yaml_reader
from tune_softmax.experiment.conflicts import search_conflicts
from tune_softmax.experiment.problems import Frozen, Problems
from tune_softmax.experiment.remedies import RemedyOptions
from tune_softmax.experiment.remedies import conflicts as remedy_conflicts
from tune_softmax.experiment.sections import (
    DatasetOptions,
    ModelOptions,
    Resources,
    Search,
)
from tune_softmax.experiment.space import (
    READERS,
    Space,
)
from tune_softmax.experiment.yaml_reader import Document, KeyPath, printable, shown

__all__ = ["Experiment", "as_experiment", "json_schema", "load", "parse"]

_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


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
    dataset: DatasetOptions = Field(description="Which images, and how they are split.")
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
        return yaml_reader.dump(self.model_dump(mode="json"))

    @property
    def num_trials(self) -> int:
        """How many trials the search will have."""
        return self.search.count_trials(self.space)

    def check_searchable(self) -> None:
        """Raise ExperimentError unless there is a hyperparameter to search."""
        if self.space.is_constant and self.remedies is not None:
            raise ExperimentError(
                f"experiment {self.name}: a search needs at least one hyperparameter of the space "
                "to be a choice, int, uniform or log_uniform, got constants only and a section "
                "remedies; `tune-softmax remedies` compares these"
            )
        if self.space.is_constant:
            raise ExperimentError(
                f"experiment {self.name}: a search needs at least one hyperparameter of the space "
                "to be a choice, int, uniform or log_uniform, got constants only; "
                + (
                    "`tune-softmax remedies` compares the file's remedies"
                    if self.remedies is not None
                    else "`tune-softmax train` trains one configuration"
                )
            )

    def check_remedies(self) -> RemedyOptions:
        """Return the section `remedies`; raise ExperimentError where there is none."""
        if self.remedies is None:
            raise ExperimentError(
                f"experiment {self.name}: a study of remedies needs a section remedies in the "
                "file, got none; `remedies: {}` takes the defaults"
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
            messages call "search.num_trials" "option --num-trials".

    Raises:
        ExperimentError: The file cannot be read, or something in it is wrong.
    """
    path = Path(path)
    try:
        # A shell's <(command) is a pipe, and only there may one be read.
        is_shells = path.parts[:2] in {("/", "dev"), ("/", "proc")}
        with path.open("rb") if is_shells else files.open_regular(path) as file:
            data = file.read(yaml_reader.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        advice = ""
        if os.path.isfile(path / "experiment.yaml"):  # noqa: PTH113 - it raises nothing
            advice = f"; it is a run: go on with it by {command('resume', path)}"
        raise ExperimentError(
            f"{printable(str(path))}: cannot be read: {reason}{advice}"
        ) from error
    return _experiment(yaml_reader.read(data, str(path)), path, overrides or {})


def parse(text: str, source: str = "experiment.yaml") -> Experiment:
    """Read and check an experiment from text.

    Args:
        text: The YAML.
        source: The file's name, for messages, the default name, and relative paths; text that
            comes from no file needs none.

    Raises:
        ExperimentError: Something in it is wrong, or it is no text.
    """
    if not isinstance(text, str):
        raise ExperimentError(
            f"{source}: must be text, got {type(text).__name__}; as_experiment takes a mapping, "
            "load the path of a file"
        )
    return _experiment(yaml_reader.read(text, source), Path(source), {})


def as_experiment(source: Experiment | Mapping[str, object] | Path | str) -> Experiment:
    """Return an experiment from what a caller has of it.

    Args:
        source: An experiment; the path of a file; or a mapping with the keys of a file, whose
            name is "experiment" unless it says another.

    Raises:
        ExperimentError: It is none of these, or something in it is wrong.
    """
    if isinstance(source, Experiment):
        return source
    if isinstance(source, Path | str):
        return load(source)
    if not isinstance(source, Mapping):
        raise ExperimentError(
            f"an experiment: must be an Experiment, the path of an experiment file, or a mapping "
            f"with its keys, got {type(source).__name__}"
        )
    try:
        text = json.dumps(source, indent=1, default=_plain)
    except (TypeError, ValueError) as error:
        raise ExperimentError(
            f"an experiment: its mapping must hold numbers, text, lists and mappings alone "
            f"({error})"
        ) from error
    return parse(text, "experiment")


def _plain(value: object) -> object:
    """Return a path as text and a numpy number as Python's own, for `json.dumps`."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"got {value!r}")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of experiment files, for editors."""
    schema = Experiment.model_json_schema(schema_generator=_SchemaGenerator)
    schema["required"].remove("name")  # the loader's default
    schema["$defs"]["DatasetOptions"] |= {
        "if": {"properties": {"name": {"const": "idx"}}, "required": ["name"]},
        "then": {"properties": {"path": {"type": "string"}}, "required": ["path"]},
        "else": {"properties": {"path": {"type": "null"}}},
    }
    values = {
        name: {"description": DESCRIPTIONS[name], **reader.schema}
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
    problems = Problems(document, Experiment, options)
    values = document.value
    for key, value in keys.items():
        node: Any = values
        for part in key[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[key[-1]] = value
        else:
            problems.add(key, f"needs {'.'.join(key[:-1])} to be a mapping in {document.source}")
    if "name" not in values:
        try:
            values["name"] = _read_name(path.stem)
        except ValueError as error:
            problems.add(
                (), f"missing key 'name', and the file's own name will not do: it {error}"
            )
            values["name"] = "unnamed"
    found: Iterable[tuple[KeyPath, str]] = ()
    try:
        experiment = Experiment.model_validate(values, context=path.absolute().parent)
    except ValidationError as error:
        problems.add_errors(error)
        space, search, unread = _readable(values, error)
    else:
        space, search, unread = experiment.space, experiment.search, set[str]()
        found = (*_precision_conflicts(experiment), *_remedies_conflicts(experiment))
    for where, text in (*found, *search_conflicts(space, search, unread)):
        problems.add(where, text)
    problems.raise_if_any()
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
