"""The experiment file and what it means: read strictly, checked as a whole.

What other code reads of an experiment is offered here: `tune_softmax.experiment.load` and so on.
"""

from tune_softmax.experiment.experiment import (
    Asha,
    Choice,
    DatasetName,
    DatasetOptions,
    Domain,
    Experiment,
    IntRange,
    LogUniform,
    ModelOptions,
    RemedyOptions,
    Resources,
    Search,
    Space,
    Uniform,
    Value,
    as_experiment,
    json_schema,
    load,
    parse,
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
