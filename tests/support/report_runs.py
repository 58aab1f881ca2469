"""What the tests of the report share: a run written by hand, and frames of what is optional."""

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tune_softmax.config import Config
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.stats import overfitting, verdicts, winners
from tune_softmax.studies.confirm import Confirmation
from tune_softmax.studies.remedies import Remedies

EXPERIMENT = """
name: written
dataset: {name: digits}
space:
  batch_size: {choice: [16, 32]}
  num_epochs: {int: [1, 8]}
  learning_rate: {log_uniform: [1e-2, 1]}
  learning_rate_schedule: {choice: [constant, linear]}
  weight_decay: {log_uniform: [1e-6, 1e-1]}
search: {num_trials: 40, metric: METRIC, asha: {grace_period: 2}}
"""
ENVIRONMENT = {
    "command": ["/somewhere/tune-softmax", "search", "experiments/my file.yaml"],
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
    "processor": "a processor",
    "seed": 0,
    "dataset_checksum": "0123456789abcdef",
}
CLASSES = [f"class {number}" for number in range(10)]


def config(number):
    """Return a trial's hyperparameters, spread over the space."""
    part = (number * 0.618034) % 1
    return Config(
        batch_size=16 if number % 3 else 32,
        num_epochs=1 + number % 8,
        learning_rate=10 ** (2 * part - 2),
        learning_rate_schedule="linear" if number % 2 else "constant",
        weight_decay=10 ** (5 * ((number * 0.381966) % 1) - 6),
    )


def losses(number, epoch):
    """Return training and validation loss: better with the learning rate, worse by overfitting."""
    chosen = config(number)
    train = 0.2 + 1 / (1 + epoch * (1 + chosen.learning_rate))
    gap = 0.02 * epoch / (1 + 1000 * chosen.weight_decay)
    return train, train + gap + 0.01 * (number % 5)


def reports(number):
    """Return a trial's epochs: two in five are stopped at a rung, one in ten diverges."""
    chosen = config(number)
    last, state, error = chosen.num_epochs, State.COMPLETE, None
    if number % 5 in {1, 2} and chosen.num_epochs > 2:
        last, state = 2, State.PRUNED
    if number % 10 == 3:
        last, state, error = min(last, 3), State.FAIL, "Traceback\n  in training\ndiverged: NaN"
    for epoch in range(1, last + 1):
        train, validation = losses(number, epoch)
        if state is State.FAIL and epoch == last:
            train = validation = math.nan
        is_last = epoch == last
        yield Report(
            number,
            epoch,
            EpochMetrics(train, 1 - train / 4, validation, 1 - validation / 4, 0.5),
            state if is_last else State.RUNNING,
            2 if epoch >= 2 else None,
            error if is_last else None,
        )


def write_run(path, num_trials=40, *, metric="validation_loss", error=None):
    """Write a run folder; return its path. `error` is what the failed trials failed of."""
    folder = RunFolder(path)
    folder.create()
    text = EXPERIMENT.replace("METRIC", metric)
    folder.experiment.write_text(parse(text, "written.yaml").to_yaml())
    folder.environment.write_text(json.dumps(ENVIRONMENT))
    with closing(Ledger.create(folder.ledger, {"dataset_checksum": "none"})) as ledger:
        if num_trials:
            ledger.hand_out(0, {number: config(number) for number in range(num_trials)})
            made = [report for number in range(num_trials) for report in reports(number)]
            if error is not None:
                made = [replace(r, error=error) if r.error else r for r in made]
            ledger.record(0, made)
        ledger.event("test_opened", command="train", trial=7)
    return path


def evaluation(*, with_baseline=True):
    """Return what `best/evaluation.json` holds: the baseline takes class 6 for class 0."""
    confusion = np.full((10, 10), 2)
    np.fill_diagonal(confusion, 182)
    other = confusion.copy()
    other[6, 0], other[6, 6] = 92, 92
    wrong = {"image": [[0, 128], [255, 7]], "label": 6, "predicted": "class 0"}
    found = {
        "loss": 0.4,
        "accuracy": 0.91,
        "class_names": CLASSES,
        "confusion": confusion.tolist(),
        "wrong": [{**wrong, "probability": 0.987}],
    }
    return {**found, "baseline_confusion": other.tolist()} if with_baseline else found


def path_points():
    """Return a regularization path whose least validation loss is 0.35, at 1e-3."""
    decays = np.logspace(-6, -1, 11)
    steps = np.log10(decays) + 3
    return pd.DataFrame(
        {
            "weight_decay": decays,
            "train_loss": 0.3 + 0.01 * (steps + 3) ** 2,
            "validation_loss": 0.35 + 0.01 * steps**2,
            "suboptimality_bound": 1e-8,
            "validation_loss_bound": 2e-6,
        }
    )


def remedies(num_seeds=6):
    """Return a study: L2 helps, augmentation hurts, of early stopping nothing was seen."""
    rng = np.random.default_rng(0)
    arms = [
        ("baseline", 0.0, "", 0.0),
        ("early_stopping", 3.0, "patience 3", 0.0),
        ("l2", 1e-4, "weight_decay 0.0001", -0.01),
        ("l2", 1e-2, "weight_decay 0.01", -0.05),
        ("augmentation", 1.0, "shift 1", 0.06),
        ("combined", 1.0, "all", -0.05),
    ]
    rows = []
    for remedy, strength, label, change in arms:
        for seed in range(num_seeds):
            loss = 0.5 + change + rng.normal(0, 0.004)
            rows.append(
                {
                    "remedy": remedy,
                    "strength": strength,
                    "strength_label": label,
                    "seed": seed,
                    "train_loss": 0.4,
                    "validation_loss": loss,
                    "test_loss": loss + rng.normal(0, 0.002),
                }
            )
    frame = pd.DataFrame(rows)
    sick = overfitting.Overfitting(6, 4, 8, 0.45, 0.5, 0.05, 0.04, 0.06, 0.001, 0.1, 0.95)
    text = "dataset: {name: digits}\nspace: {batch_size: 1, num_epochs: 50, learning_rate: 1}\n"
    return Remedies(
        folder=RunFolder(Path("study")),
        experiment=parse(f"{text}remedies: {{}}\n", "study.yaml"),
        arms=frame,
        effects=verdicts.effects(frame),
        overfitting=sick,
        num_strengths=2,
        notes=(),
    )


def confirmation(numbers=(7, 5, 0)):
    """Return a confirmation: the first two trials cannot be told apart, the third is worse."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "trial": number,
            "seed": seed,
            "test_loss": 0.4 + 0.1 * (place == 2) + rng.normal(0, 0.002),
            "test_accuracy": 0.9 - 0.05 * (place == 2) + rng.normal(0, 0.001),
        }
        for place, number in enumerate(numbers)
        for seed in range(5)
    ]
    replicates = pd.DataFrame(rows)
    seen = pd.DataFrame({"trial": numbers, "validation_loss": 0.4, "validation_accuracy": 0.9})
    return Confirmation(
        folder=RunFolder(Path("run")),
        top=len(numbers),
        seeds=tuple(range(5)),
        replicates=replicates,
        winners=winners.winners(replicates, seen, 360),
        winner=numbers[0],
        num_test_images=360,
    )
