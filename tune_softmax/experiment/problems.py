"""Messages about a wrong document: where, the rule, the value received, what is allowed.

Turns pydantic's errors, and those that our own readers raise, into one line each, and raises
all of them together. The models hold the rules.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.yaml_reader import Document, KeyPath, printable, shown

__all__ = ["Faults", "Frozen", "Problems", "meant", "near", "refusal"]

_MAX_REPORTED = 100
# What other tools call our keys and values, as `_plain` writes them.
_ALIASES = {
    **dict.fromkeys(["lr", "eta0", "stepsize", "alpha"], "learning_rate"),
    **dict.fromkeys(
        ["lrschedule", "lrscheduler", "schedule", "scheduler"], "learning_rate_schedule"
    ),
    **dict.fromkeys(["bs", "batch", "minibatchsize"], "batch_size"),
    **dict.fromkeys(["epochs", "nepochs", "maxepochs"], "num_epochs"),
    **dict.fromkeys(["wd", "l2", "lambda", "decay"], "weight_decay"),
    **dict.fromkeys(["hidden", "hiddensize", "units", "width"], "hidden_units"),
    **dict.fromkeys(["augment", "dataaugmentation"], "augmentation"),
    **dict.fromkeys(["beta", "beta1"], "momentum"),
    **dict.fromkeys(["categorical", "gridsearch", "values"], "choice"),
    **dict.fromkeys(["randint", "integer", "qrandint", "intuniform", "range"], "int"),
    **dict.fromkeys(["float", "quniform", "real"], "uniform"),
    **dict.fromkeys(["log", "reciprocal", "qloguniform"], "log_uniform"),
    **dict.fromkeys(["bayesian", "bayes", "bo", "gaussianprocess"], "gp"),
    **dict.fromkeys(["numsamples", "ntrials", "trials", "maxtrials"], "num_trials"),
    **dict.fromkeys(["timeout", "timebudget", "maxtime"], "time_budget_s"),
    **dict.fromkeys(["randomstate", "randomseed"], "seed"),
    **dict.fromkeys(["searchalg", "algorithm"], "sampler"),
    **dict.fromkeys(["pruner", "earlystopping"], "asha"),
    **dict.fromkeys(["minresource", "mint"], "grace_period"),
    **dict.fromkeys(["eta"], "reduction_factor"),
    **dict.fromkeys(["valloss", "loss"], "validation_loss"),
    **dict.fromkeys(["valaccuracy", "accuracy", "acc"], "validation_accuracy"),
    **dict.fromkeys(["val", "validationsplit", "valsplit", "numvalidation"], "validation"),
    **dict.fromkeys(["cpus", "numcpus"], "cpus_per_pack"),
    **dict.fromkeys(["gpus", "numgpus"], "gpus_per_pack"),
    **dict.fromkeys(["maxconcurrent", "maxconcurrenttrials"], "max_concurrent_packs"),
    **dict.fromkeys(["fashion", "fmnist"], "fashion-mnist"),
    **dict.fromkeys(["bf16"], "bfloat16"),
    **dict.fromkeys(["fp32", "single"], "float32"),
    **dict.fromkeys(["cosineannealing"], "cosine"),
    **dict.fromkeys(["none", "fixed"], "constant"),
    **dict.fromkeys(["data"], "dataset"),
    **dict.fromkeys(["hyperparameters", "searchspace", "params"], "space"),
}
_MAX_COMPARED = 100  # characters of an unknown word that are compared with the known ones


class Frozen(BaseModel):
    """A value that cannot be changed, refuses unknown keys, and does not take "3" for 3."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # an import builds nothing that only some commands use
    )


class Faults(ValueError):  # noqa: N818 - several errors, for `Problems.add_errors`
    """What is wrong inside one value.

    Attributes:
        faults: For each fault the keys to show after the value's own, the message, and the keys
            further below that only say the line.
    """

    def __init__(self, faults: Sequence[tuple[KeyPath, str, KeyPath]]) -> None:
        super().__init__("; ".join(text for _, text, _ in faults))
        self.faults = faults


def near(word: str, allowed: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: what may be meant, or what there is."""
    return _near(word, allowed) or f"; allowed: {', '.join(allowed)}"


def meant(word: str, allowed: Iterable[str]) -> str | None:
    """Return which of the allowed words stands for another, in other tools or other spelling."""
    plain = {_plain(known): known for known in allowed}
    return plain.get(_plain(word)) or plain.get(_plain(_ALIASES.get(_plain(word), "")))


def _plain(word: str) -> str:
    return "".join(char for char in word[:_MAX_COMPARED].lower() if char.isalnum())


def refusal(schema: Mapping[str, Any], value: object) -> str:
    """Return the message about a `value` that a key refuses.

    Args:
        schema: The key's JSON schema: a number, an enumeration, or one of several such.
        value: The value received.
    """
    if not isinstance(value, str):
        return f"must be {_rule(schema)}, got {shown(value)}"
    if "enum" in schema:
        return f"must be {_rule(schema)}, got {shown(value)}{_near(value, schema['enum'])}"
    return f"must be {_rule(schema)}, got the text {shown(value)}"


def _near(word: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    found = meant(word, allowed)
    close = difflib.get_close_matches(word[:_MAX_COMPARED], allowed, n=1)
    if found or close:
        return f"; did you mean {found or close[0]!r}?"
    return ""


def _rule(schema: Mapping[str, Any]) -> str:
    """Return the rule that a JSON schema states, such as "an integer >= 1"."""
    if "anyOf" in schema:
        return " or ".join(_rule(option) for option in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    nouns = {"integer": "an integer", "number": "a number", "string": "text", "null": "null"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:.15g}" for key, sign in signs.items() if key in schema]
    return " ".join([nouns[schema["type"]], " and ".join(bounds)]).rstrip()


class Problems:
    """The problems of one document, gathered to be raised together.

    Args:
        document: The document.
        model: What it is read into; its sections are models too.
        options: Key path to the name of the option that set the value in the document's place.
    """

    def __init__(
        self, document: Document, model: type[BaseModel], options: Mapping[KeyPath, str]
    ) -> None:
        self.document = document
        self.model = model
        self.options = options
        self._lines: dict[str, int] = {}  # message to line; 0 for an option
        for problem in document.problems:
            self._add(problem.path, problem.text, problem.line)

    def add(self, path: KeyPath, text: str, below: KeyPath = ()) -> None:
        """Add a problem of the key `path`, on the line of `path + below`."""
        if path + below not in self.document.stand_ins:
            self._add(path, text, self.document.line(path + below))

    def add_errors(self, error: ValidationError) -> None:
        """Add what pydantic found."""
        for item in error.errors(include_url=False):
            path: KeyPath = item["loc"]
            cause = item.get("ctx", {}).get("error")
            if item["type"] == "missing":
                self.add(path[:-1], f"missing key {path[-1]!r}, which has no default")
            elif item["type"] == "extra_forbidden":
                key = str(path[-1])
                self.add(path[:-1], f"unknown key {shown(key)}{self._hint(path)}", (key,))
            elif isinstance(cause, Faults):
                for inside, text, below in cause.faults:
                    self.add(path + inside, text, below)
            elif cause is not None:
                self.add(path, str(cause))
            else:
                self._add_refused(path, item["input"])

    def raise_if_any(self) -> None:
        """Raise ExperimentError with a line for each problem, in the file's order."""
        messages = sorted(self._lines, key=self._lines.__getitem__)
        if len(messages) > _MAX_REPORTED:
            rest = f"{self.document.source}: and {len(messages) - _MAX_REPORTED:,} more problems"
            messages = [*messages[:_MAX_REPORTED], rest]
        if messages:
            raise ExperimentError("\n".join(messages))

    def _add(self, path: KeyPath, text: str, line: int) -> None:
        where = f"{self.document.source}:{line}"
        if path:
            dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
            where += f": {dotted[1:]}"
        for size in range(len(path) + 1):
            if path[:size] in self.options:
                where, line = self.options[path[:size]], 0
        self._lines.setdefault(f"{printable(where)}: {text}", line)

    def _add_refused(self, path: KeyPath, value: object) -> None:
        model, size = self._section(path)
        if size == len(path):
            keys = ", ".join(model.model_fields)
            self.add(path, f"must be a mapping with {keys}, got {shown(value)}")
            return
        # Pydantic adds a union's branches to the path, and one error for each of them.
        field = model.model_fields[str(path[size])]
        schema = TypeAdapter(field.rebuild_annotation()).json_schema()
        self.add(path[: size + 1], refusal(schema, value))

    def _hint(self, path: KeyPath) -> str:
        key, here = str(path[-1]), self._section(path[:-1])[0].model_fields
        if meant(key, here):
            return near(key, here)
        for name, field in self.model.model_fields.items():
            known = section.model_fields if (section := _model_of(field)) else {}
            if key in known:
                return f"; it belongs in {name}"
            if found := meant(key, known):
                return f"; did you mean {found!r}? it belongs in {name}"
        return near(key, here)

    def _section(self, path: KeyPath) -> tuple[type[BaseModel], int]:
        """Return the innermost model along `path`, and how many of its keys lead there."""
        model = self.model
        for size, key in enumerate(path):
            inner = _model_of(model.model_fields[str(key)])
            if inner is None:
                return model, size
            model = inner
        return model, len(path)


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that the field holds, if it holds one and no other kind of value."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kinds = kinds or [field.annotation]
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
        return kinds[0]
    return None
