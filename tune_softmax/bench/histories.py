"""Searches that never were: ledgers and studies with as many trials as a bench asks for."""

from __future__ import annotations

from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

from tune_softmax.bench.task import GRACE_PERIOD, NUM_EPOCHS, REDUCTION_FACTOR, our_experiment
from tune_softmax.experiment import experiment as experiments
from tune_softmax.experiment.space import Choice, IntRange, LogUniform, Uniform
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.records import TrialRecord
from tune_softmax.scheduler.study import Study

if TYPE_CHECKING:
    from pathlib import Path

    from tune_softmax.config import Config
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.experiment.space import Domain, Value

__all__ = ["PACK_SIZE", "past_study", "reports_of", "small_experiment", "write_run"]

PACK_SIZE = 64


def small_experiment(num_trials: int) -> Experiment:
    """Return an experiment of the benches' space on `digits`."""
    return experiments.parse(our_experiment({"name": "digits"}, num_trials), "bench.yaml")


def write_run(path: Path, num_trials: int) -> None:
    """Write the run folder of a finished search; early stopping left one trial in four a rung."""
    experiment = small_experiment(num_trials)
    folder = RunFolder(path)
    folder.create()
    folder.experiment.write_text(experiment.to_yaml(), encoding="utf-8")
    meta = {"dataset_checksum": "none", "experiment": experiment.to_yaml()}
    ledger = Ledger.create(folder.ledger, meta)
    draw = Random(0)  # noqa: S311 - no secret
    with closing(ledger):
        for first in range(0, num_trials, PACK_SIZE):
            numbers = range(first, min(first + PACK_SIZE, num_trials))
            pack = first // PACK_SIZE
            ledger.hand_out(pack, {number: _config(experiment, draw) for number in numbers})
            ledger.record(pack, [report for number in numbers for report in reports_of(number)])


def past_study(num_trials: int) -> Study:
    """Return a study that knows so many finished trials, and may ask for more."""
    experiment = small_experiment(num_trials + PACK_SIZE)
    study = Study(experiment.space, experiment.search)
    draw = Random(0)  # noqa: S311 - no secret
    trials, curves = [], {}
    for number in range(num_trials):
        *_, last = reports = reports_of(number)
        config = _config(experiment, draw)
        trials.append(TrialRecord(number, last.state, config, 0, 1, last.rung, None))
        curves[number] = [report.metrics.validation_loss for report in reports]
    study.replay(trials, curves)
    return study


def reports_of(number: int) -> list[Report]:
    """Return what a trial has reported: its epochs, up to the rung where it was stopped."""
    last, step = GRACE_PERIOD, number + 1
    while last < NUM_EPOCHS and step % REDUCTION_FACTOR == 0:
        last, step = last * REDUCTION_FACTOR, step // REDUCTION_FACTOR
    last = min(last, NUM_EPOCHS)
    end = State.COMPLETE if last == NUM_EPOCHS else State.PRUNED
    return [
        Report(
            number,
            epoch,
            EpochMetrics(1 / epoch, 0.8, 1 / epoch + 1 / (number + 1), 0.8, 0.01),
            end if epoch == last else State.RUNNING,
        )
        for epoch in range(1, last + 1)
    ]


def _config(experiment: Experiment, draw: Random) -> Config:
    """Draw hyperparameters from the space."""
    space = experiment.space
    return space.config({name: _value(domain, draw) for name, domain in space.searched.items()})


def _value(domain: Domain, draw: Random) -> Value:
    match domain:
        case Choice():
            return draw.choice(domain.choice)
        case IntRange():
            return draw.choice(domain.values())
        case Uniform():
            return draw.uniform(domain.low, domain.high)
        case LogUniform():
            return float(domain.low * (domain.high / domain.low) ** draw.random())
