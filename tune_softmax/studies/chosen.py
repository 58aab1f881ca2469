"""Which configuration to train: an experiment file's only one, or a trial of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.errors import ResultsError
from tune_softmax.experiment import experiment as experiments
from tune_softmax.run import results

if TYPE_CHECKING:
    from pathlib import Path

    from tune_softmax.config import Config
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.folder import RunFolder

__all__ = ["Choice", "choose"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration to train, and where it is from.

    Attributes:
        experiment: Its dataset, model options and seed.
        config: The hyperparameters.
        number: The trial's number, which decides the initial weights; 0 without a search.
        run: The run folder that it is from, if it is from one.
    """

    experiment: Experiment
    config: Config
    number: int
    run: RunFolder | None = None


def choose(source: Path, trial: int | None) -> Choice:
    """Find the configuration to train.

    Args:
        source: An experiment file without a search, or a run folder.
        trial: Which trial of a run; its best by default.

    Raises:
        ExperimentError: The file is wrong, or leaves a choice open.
        ResultsError: There is no such run, or no such trial in it.
    """
    if not source.is_dir():
        if trial is not None:
            raise ResultsError(f"--trial {trial}: {source} is not a run folder")
        experiment = experiments.load(source)
        return Choice(experiment, experiment.single_config(), 0)
    found = results.load(source)
    if trial is None:
        best = found.best()
        return Choice(found.experiment, best.config, best.number, found.folder)
    return Choice(found.experiment, found.config(trial), trial, found.folder)
