"""The experiment file and what it means: read strictly, checked as a whole.

What other code reads of an experiment is offered here: `tune_softmax.experiment.load` and so on.
"""

from tune_softmax.experiment.experiment import (
    Experiment,
    as_experiment,
    json_schema,
    load,
    parse,
)
from tune_softmax.experiment.remedies import RemedyOptions
from tune_softmax.experiment.sections import (
    Asha,
    DatasetName,
    DatasetOptions,
    ModelOptions,
    Resources,
    Search,
)
from tune_softmax.experiment.space import (
    Choice,
    Domain,
    IntRange,
    LogUniform,
    Space,
    Uniform,
    Value,
)

__all__ = [
    "Asha",
    "Choice",
    "DatasetName",
    "DatasetOptions",
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
    "as_experiment",
    "json_schema",
    "load",
    "parse",
]
