"""Every figure of the report: functions from dataframes to Plotly figures.

Each figure has a title, and a description in `figure.layout.meta["description"]` for readers who
cannot see it.
"""

from tune_softmax.report.figures.base import robust_range
from tune_softmax.report.figures.evaluation import (
    confirmed,
    confusion_difference,
    confusion_matrix,
    recall_difference,
)
from tune_softmax.report.figures.hyperparameters import (
    contour,
    importance,
    parallel_coordinates,
    slices,
    study,
)
from tune_softmax.report.figures.regularization import (
    dose_response,
    regularization_path,
    remedy_effects,
)
from tune_softmax.report.figures.searching import best_so_far, regret, rung_counts
from tune_softmax.report.figures.training import generalization_gap, learning_curves

__all__ = [
    "best_so_far",
    "confirmed",
    "confusion_difference",
    "confusion_matrix",
    "contour",
    "dose_response",
    "generalization_gap",
    "importance",
    "learning_curves",
    "parallel_coordinates",
    "recall_difference",
    "regret",
    "regularization_path",
    "remedy_effects",
    "robust_range",
    "rung_counts",
    "slices",
    "study",
]
