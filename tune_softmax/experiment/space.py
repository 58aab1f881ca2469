"""The search space: what each hyperparameter of a trial may be, a constant or a domain.

Reads the YAML forms, says what is wrong with one, and answers what a space holds.
`config` has each hyperparameter's range; `conflicts.py` says which sampler can search a space.
"""

import itertools
import math
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, get_type_hints

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tune_softmax.config import BOUNDS, DEFAULTS, DESCRIPTIONS, Config, Schedule
from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.problems import Faults, Frozen, near, refusal
from tune_softmax.experiment.yaml_reader import KeyPath, shown

__all__ = [
    "READERS",
    "Choice",
    "Domain",
    "HyperparameterReader",
    "IntRange",
    "LogUniform",
    "Space",
    "Uniform",
    "Value",
]

Value = int | float | str
"""One value of one hyperparameter."""

_MAX_GRID = 1_000_000  # configurations; Optuna's grid sampler holds them all
_MAX_INTEGER = 2**53  # samplers compute in float64
_LEAST_DISTANCE = 1e-9  # between a domain's ends, as a part of the higher; samplers divide by it


class Choice(Frozen):
    """One of the listed values, without an order."""

    choice: tuple[Value, ...]

    def __str__(self) -> str:
        return f"choice {list(self.choice)}"

    def contains(self, value: Value) -> bool:
        """Return whether `value` is one of those listed."""
        return value in self.choice

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.choice)

    def values(self) -> tuple[Value, ...]:
        """Return every value, in the order given."""
        return self.choice


class IntRange(Frozen):
    """Every `step`-th integer from `low` to `high`, both included.

    Attributes:
        low: The least integer.
        high: The greatest integer; a whole number of steps above `low`.
        step: Distance between neighbours, at least 1; 1 where `log` holds.
        log: Whether a sampler sees the range on a logarithmic scale.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __str__(self) -> str:
        return f"int {self.low} to {self.high}" + (f" by {self.step}" if self.step > 1 else "")

    def contains(self, value: Any) -> bool:  # noqa: ANN401 - any value of the hyperparameter
        """Return whether `value` is in the range and on a step."""
        return bool(self.low <= value <= self.high) and (value - self.low) % self.step == 0

    @property
    def size(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def values(self) -> range:
        """Return every integer, ascending."""
        return range(self.low, self.high + 1, self.step)

    @model_serializer
    def _as_yaml(self) -> dict[str, dict[str, Any]]:
        return {"int": dict(self)}


class Uniform(Frozen):
    """Every number from `low` to `high`, equally likely."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"uniform {self.low} to {self.high}"

    def contains(self, value: Any) -> bool:  # noqa: ANN401 - any value of the hyperparameter
        """Return whether `value` is in the range, ends included."""
        return bool(self.low <= value <= self.high)

    @model_serializer
    def _as_yaml(self) -> dict[str, list[float]]:
        return {"uniform": [self.low, self.high]}


class LogUniform(Frozen):
    """Every number from `low` > 0 to `high`, its logarithm equally likely."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"log_uniform {self.low} to {self.high}"

    def contains(self, value: Any) -> bool:  # noqa: ANN401 - any value of the hyperparameter
        """Return whether `value` is in the range, ends included."""
        return bool(self.low <= value <= self.high)

    @model_serializer
    def _as_yaml(self) -> dict[str, list[float]]:
        return {"log_uniform": [self.low, self.high]}


Domain = Choice | IntRange | Uniform | LogUniform
_Integers = int | Choice | IntRange
_Numbers = float | Choice | Uniform | LogUniform


_KINDS = {
    "choice": "One of the listed values.",
    "int": "Integers [low, high], both included; or a mapping with low, high, step and log.",
    "uniform": "Numbers [low, high], equally likely.",
    "log_uniform": "Numbers [low, high], low > 0, equally likely on a logarithmic scale.",
}


def _too_near(kind: str, low: float, high: float) -> str:
    return (
        f"{kind}: low and high must differ by at least {_LEAST_DISTANCE:g} of high, got "
        f"{low!r} and {high!r}; write one of them alone"
    )


class HyperparameterReader:
    """How one hyperparameter is read: a constant of its type, or a domain of such values."""

    def __init__(self, annotation: Any) -> None:  # noqa: ANN401 - any type there is
        self.annotation = annotation

    @cached_property
    def adapter(self) -> TypeAdapter[Value]:
        """What checks a constant."""
        return TypeAdapter(self.annotation, config=Frozen.model_config)

    @cached_property
    def schema(self) -> JsonSchemaValue:
        """The JSON schema of a constant."""
        return self.adapter.json_schema()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The domains that suit the type."""
        match self.schema["type"]:
            case "integer":
                return ("choice", "int")
            case "number":
                return ("choice", "uniform", "log_uniform")
        return ("choice",)

    def constant(self, value: object) -> Value:
        """Return `value` if the hyperparameter may take it; raise ValueError otherwise."""
        try:
            return self.adapter.validate_python(value)
        except ValidationError:
            raise ValueError(refusal(self.schema, value)) from None

    def read(self, value: object) -> Value | Domain:
        """Return the constant or the domain that the YAML value `value` stands for."""
        kinds = ", ".join(self.kinds)
        if not isinstance(value, dict):
            try:
                return self.constant(value)
            except ValueError as error:
                raise ValueError(f"{error}; allowed too, to search it: {kinds}") from None
        if len(value) != 1:
            got = ", ".join(map(shown, value)) or "none"
            raise ValueError(f"must have exactly one key of {kinds}, got {got}")
        ((kind, body),) = value.items()
        try:
            return self._domain(kind, body)
        except Faults:
            raise
        except ValueError as error:
            raise Faults([((), str(error), (kind,))]) from None

    def _domain(self, kind: str, body: object) -> Domain:
        if kind not in self.kinds:
            if kind in _KINDS:
                raise ValueError(f"{kind} does not fit; allowed: {', '.join(self.kinds)}")
            raise ValueError(f"unknown domain {shown(kind)}{near(kind, self.kinds)}")
        if kind == "choice":
            return self._choice(body)
        if kind == "int":
            return self._int_range(body)
        low, high = self._ends(kind, body)
        if high - low < max(_LEAST_DISTANCE * high, sys.float_info.min):
            raise ValueError(_too_near(kind, low, high))
        if kind == "uniform":
            return Uniform(low=low, high=high)
        if low <= 0:
            raise ValueError(f"log_uniform: low must be > 0, got {low}")
        return LogUniform(low=low, high=high)

    def _choice(self, body: object) -> Choice:
        if not isinstance(body, list) or not body:
            raise ValueError(f"choice must be a list of one or more values, got {shown(body)}")
        faults: list[tuple[KeyPath, str, KeyPath]] = []
        values: dict[Value, int] = {}
        for index, item in enumerate(body):
            try:
                first = values.setdefault(self.constant(item), index)
            except ValueError as error:
                faults.append(((), f"choice[{index}] {error}", ("choice", index)))
                continue
            if first != index:
                text = f"choice[{index}] must not repeat choice[{first}], got {shown(item)}"
                faults.append(((), text, ("choice", index)))
        if faults:
            raise Faults(faults)
        return Choice(choice=tuple(values))

    def _int_range(self, body: object) -> IntRange:
        keys = ("low", "high", "step", "log")
        given = body if isinstance(body, dict) else {}
        for key in given:
            if key not in keys:
                raise ValueError(f"int: unknown key {shown(key)}{near(key, keys)}")
        step, log = given.get("step", 1), given.get("log", False)
        if type(step) is not int or step < 1:
            raise ValueError(f"int: step must be an integer >= 1, got {shown(step)}")
        if not isinstance(log, bool):
            raise ValueError(  # noqa: TRY004 - pydantic passes a TypeError on
                f"int: log must be true or false, got {shown(log)}"
            )
        low, high = self._ends("int", [given.get(key) for key in keys[:2]] if given else body)
        if high > _MAX_INTEGER:
            raise ValueError(
                f"int: high must be <= {_MAX_INTEGER} (2**53), beyond which samplers cannot tell "
                f"integers apart, got {high}"
            )
        if log and low < 1:
            raise ValueError(f"int: low must be >= 1 where log is true, got {low}")
        if log and high - low < _LEAST_DISTANCE * high:
            raise ValueError(_too_near("int", low, high))
        if log and step > 1:
            raise ValueError(f"int: step must be 1 where log is true, got {step}")
        if step > high - low:
            raise ValueError(f"int: step must be <= high - low, {high - low}, got {step}")
        return IntRange(low=low, high=low + (high - low) // step * step, step=step, log=log)

    def _ends(self, kind: str, body: object) -> tuple[Any, Any]:
        if not isinstance(body, list) or len(body) != 2:  # noqa: PLR2004 - low and high
            got = f"a list of {len(body)}" if isinstance(body, list) else shown(body)
            raise ValueError(f"{kind} must be [low, high], got {got}")
        ends: list[Any] = []
        wrong: list[str] = []
        for end, item in zip(("low", "high"), body, strict=True):
            try:
                ends.append(self.constant(item))
            except ValueError as error:
                wrong.append(f"{end} {error}")
        if wrong:
            raise ValueError(f"{kind}: {'; '.join(wrong)}")
        low, high = ends
        if low == high:
            raise ValueError(f"{kind}: low must be < high, got {low} twice; write {low} alone")
        if low > high:
            raise ValueError(f"{kind}: low must be < high, got low {low} and high {high}")
        return low, high

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        item = self.schema
        pair = {"type": "array", "items": item, "minItems": 2, "maxItems": 2}
        limits = {
            "type": "object",
            "properties": {
                "low": {"description": "The least integer."} | item,
                "high": {"description": "The greatest integer, at most."} | item,
                "step": {
                    "description": "Distance between neighbours, an integer >= 1.",
                    "type": "integer",
                    "minimum": 1,
                    "default": 1,
                },
                "log": {
                    "description": "Whether samplers see the range on a logarithmic scale.",
                    "type": "boolean",
                    "default": False,
                },
            },
            "required": ["low", "high"],
            "additionalProperties": False,
        }
        bodies: dict[str, dict[str, Any]] = {
            "choice": {"type": "array", "items": item, "minItems": 1, "uniqueItems": True},
            "int": {"anyOf": [pair, limits]},
            "uniform": pair,
            "log_uniform": pair,
        }
        domains = [
            {
                "type": "object",
                "properties": {kind: bodies[kind] | {"description": _KINDS[kind]}},
                "required": [kind],
                "additionalProperties": False,
            }
            for kind in self.kinds
        ]
        return {"anyOf": [item, *domains]}


_TYPES = get_type_hints(Config)

READERS: dict[str, HyperparameterReader] = {
    name: HyperparameterReader(Annotated[_TYPES[name], Field(**bounds)])
    for name, bounds in BOUNDS.items()
}
"""How each hyperparameter's constant and domain are read."""


def _key(name: str) -> Any:  # noqa: ANN401 - as pydantic's Field
    return Field(default=DEFAULTS.get(name, ...), description=DESCRIPTIONS[name])


class Space(Frozen):
    """What each hyperparameter is: one value for every trial, or a domain to search."""

    batch_size: Annotated[_Integers, READERS["batch_size"]] = _key("batch_size")
    num_epochs: Annotated[_Integers, READERS["num_epochs"]] = _key("num_epochs")
    learning_rate: Annotated[_Numbers, READERS["learning_rate"]] = _key("learning_rate")
    learning_rate_schedule: Annotated[Schedule | Choice, READERS["learning_rate_schedule"]] = _key(
        "learning_rate_schedule"
    )
    weight_decay: Annotated[_Numbers, READERS["weight_decay"]] = _key("weight_decay")
    l1: Annotated[_Numbers, READERS["l1"]] = _key("l1")
    momentum: Annotated[_Numbers, READERS["momentum"]] = _key("momentum")
    hidden_units: Annotated[_Integers, READERS["hidden_units"]] = _key("hidden_units")
    augmentation: Annotated[_Numbers, READERS["augmentation"]] = _key("augmentation")

    @property
    def searched(self) -> dict[str, Domain]:
        """The hyperparameters that have a domain, in the order of `HYPERPARAMETERS`."""
        return {name: place for name, place in self if isinstance(place, Domain)}

    @property
    def constants(self) -> dict[str, Value]:
        """The hyperparameters that are one value, in the order of `HYPERPARAMETERS`."""
        return {name: place for name, place in self if not isinstance(place, Domain)}

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing to search."""
        return not self.searched

    def config(self, values: Mapping[str, object]) -> Config:
        """Return the configuration made of the constants and of `values`.

        Args:
            values: A value for every searched hyperparameter, and for no other. Each must be one
                that the hyperparameter may take; `contains` says whether it is in its domain.

        Raises:
            ExperimentError: A name or a value is wrong.
        """
        searched = self.searched
        wrong = [f"{name}: is not searched" for name in values if name not in searched]
        whole: dict[str, Any] = self.constants
        for name in searched:
            try:
                whole[name] = READERS[name].constant(values[name])
            except KeyError:
                wrong.append(f"{name}: is missing")
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise ExperimentError(f"no configuration of this space: {'; '.join(wrong)}")
        return Config(**whole)

    def largest(self, name: str) -> float:
        """Return the greatest value that the numeric hyperparameter `name` may take."""
        place = getattr(self, name)
        number = max(place.choice) if isinstance(place, Choice) else getattr(place, "high", place)
        assert not isinstance(number, str), f"{name} is no number"
        return number

    def contains(self, name: str, value: object) -> bool:
        """Return whether `value` is the constant `name`, or in its domain."""
        try:
            value = READERS[name].constant(value)
        except ValueError:
            return False
        place = getattr(self, name)
        return place.contains(value) if isinstance(place, Domain) else value == place

    def check_grid(self) -> None:
        """Raise ExperimentError unless the grid sampler can go through the whole space."""
        uneven = [f"{k} is {d}" for k, d in self.searched.items() if not hasattr(d, "size")]
        if uneven:
            raise ExperimentError(
                f"grid needs choice or int for all that is searched, got {', '.join(uneven)}"
            )
        if self.grid_size > _MAX_GRID:
            raise ExperimentError(
                f"grid must have at most {_MAX_GRID:,} configurations, got {self.grid_size:,}"
            )

    @property
    def grid_size(self) -> int:
        """How many combinations of the searched values there are, in a space with a grid."""
        return math.prod(domain.size for domain in self._axes().values())

    def grid(self) -> tuple[dict[str, Value], ...]:
        """Return every combination of the searched values, the last hyperparameter fastest.

        Raises:
            ExperimentError: A domain is uniform or log_uniform, or the grid is too large.
        """
        self.check_grid()
        axes = self._axes()
        combinations = itertools.product(*(domain.values() for domain in axes.values()))
        return tuple(dict(zip(axes, values, strict=True)) for values in combinations)

    def _axes(self) -> dict[str, Choice | IntRange]:
        return {k: d for k, d in self.searched.items() if isinstance(d, Choice | IntRange)}
