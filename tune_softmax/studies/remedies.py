"""The study of remedies against overfitting: run it, and read its results.

Every remedy, and all that help together, is compared with a baseline that trains long without
any, over seeds and at an equal tuning budget. The validation set alone chooses the strengths.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_softmax.errors import ExperimentError, ResultsError, command
from tune_softmax.experiment import as_experiment
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import State
from tune_softmax.run import results
from tune_softmax.run.arms import BASELINE, LESS_DATA, Arm, ArmTrials
from tune_softmax.run.folder import RunFolder, free_folder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.notebook import html
from tune_softmax.stats.overfitting import overfitting
from tune_softmax.stats.verdicts import effects
from tune_softmax.studies.remedy_plan import RemedyPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tune_softmax.data.dataset import Dataset
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import EpochMetrics, FinalTest
    from tune_softmax.scheduler.progress import Snapshot
    from tune_softmax.stats.overfitting import Overfitting

__all__ = ["KIND", "Remedies", "load", "remedies", "resume"]

KIND = "remedies"
_COLUMNS = {
    **dict.fromkeys(["remedy", "strength_label"], "str"),
    **dict.fromkeys(["strength"], "float64"),
    "seed": "int64",
    **{
        f"{split}_{what}": "float64"
        for what in ("loss", "accuracy")
        for split in ("train", "validation", "test")
    },
    **dict.fromkeys(["gap", "choice_loss"], "float64"),
    **dict.fromkeys(["epochs", "best_epoch", "trial"], "int64"),
}


@dataclass(frozen=True, slots=True)
class Remedies:
    """The results of a study of remedies.

    Attributes:
        folder: Where it is.
        experiment: What was asked.
        arms: One row a way to train and seed: `remedy` ("baseline", those of
            `experiment.remedies.REMEDIES`, "less_data", which is no remedy, "combined"),
            `strength`, `strength_label`, `seed`, `train_loss`, `validation_loss`, `test_loss`,
            `train_accuracy`, `validation_accuracy`, `test_accuracy`, `gap` (validation minus
            training loss), `choice_loss` (the validation loss that chose among strengths, see
            `arms.ArmTrials.choice_losses`), `epochs` trained, `best_epoch` by validation loss,
            `trial` (the number under which the run's dataframes have its curve). With early
            stopping, in combinations too, all are of the best epoch, else of the last. Training
            values are running means over that epoch, of images as they were moved. What diverged
            is NaN.
        effects: What each remedy at its chosen strength changes of the test loss, as
            `verdicts.effects` returns it.
        overfitting: Whether the baseline's validation loss rises again.
        num_strengths: How many strengths each remedy had to choose from.
        notes: What was left out, and why; what diverged.
    """

    folder: RunFolder
    experiment: Experiment = field(repr=False)
    arms: pd.DataFrame = field(repr=False)
    effects: pd.DataFrame = field(repr=False)
    overfitting: Overfitting
    num_strengths: int
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        num_comparisons = self.effects["num_comparisons"].iloc[0]
        lines = [
            self.overfitting.sentence,
            "The test loss, remedy minus baseline, each at the strength that validation chose.",
            f"The intervals hold together, at 95 % for all {num_comparisons} comparisons.",
        ]
        columns = [
            *("remedy", "strength_label", "baseline_mean", "remedy_mean"),
            *("difference", "low", "high", "verdict"),
        ]
        return html(lines, self.effects[columns].rename(columns={"strength_label": "strength"}))


def remedies(
    experiment: Experiment | Mapping[str, object] | Path | str,
    *,
    run_dir: Path | str | None = None,
    address: str | None = None,
    data_dir: Path | str | None = None,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Remedies:
    """Compare remedies against overfitting with a baseline that has none.

    Args:
        experiment: What to compare: an experiment, the path of an experiment file, or a mapping
            with the keys of one. It has a section `remedies`, and its space holds the one
            configuration of the baseline.
        run_dir: The run folder to make; by default the first free one of runs/NAME,
            runs/NAME-2, and so on.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are; see `data.load_dataset`.
        observe: Called with every change, to display it.

    Raises:
        ExperimentError: There is no section, or a batch is larger than the baseline's images.
        DataError: The dataset cannot be had.
        ClusterError: A request that no node can ever meet.
        ResultsError: The run folder is in use or cannot be written.
        SearchInterruptedError: A signal stopped it; `resume` goes on.
    """
    experiment = as_experiment(experiment)
    experiment.check_remedies()
    folder = RunFolder(Path(run_dir) if run_dir else free_folder(experiment.name))
    folder.check_free()
    return _run(folder, experiment, address, data_dir, observe)


def resume(
    run: Path | str,
    *,
    address: str | None = None,
    data_dir: Path | str | None = None,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Remedies:
    """Train what is left of a study of remedies; the other arguments are as in `remedies`.

    Raises:
        ResultsError: There is no study, it is in use, or its dataset or experiment has changed.
        SearchInterruptedError: A signal stopped it again.
    """
    folder = RunFolder(Path(run))
    with closing(Ledger.open(folder.ledger)) as ledger:
        meta = ledger.meta()
    experiment = results.load(folder.path).experiment
    if meta.get("kind") != KIND:
        raise ResultsError(
            f"{folder.path}: is no study of remedies; `{command('resume', folder.path)}` "
            "goes on with a search"
        )
    made = experiments.parse(meta["experiment"], str(folder.experiment))
    if made.remedies != experiment.remedies:
        raise ResultsError(
            f"{folder.experiment}: the section remedies is not the one that the run was made "
            "with; put it back, or begin a new study"
        )
    found = load(folder.path)
    return found if found is not None else _run(folder, experiment, address, data_dir, observe)


def load(run: Path | str) -> Remedies | None:
    """Read what a study of remedies found.

    Returns:
        What it found, or None where the run is no such study or has trials left.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Its files contradict themselves.
    """
    folder = RunFolder(Path(run))
    experiment = results.load(folder.path).experiment
    if experiment.remedies is None:
        return None
    with closing(Ledger.open(folder.ledger)) as ledger, ledger.snapshot():
        records, epochs, tests = ledger.trials(), ledger.epochs(), ledger.test_results()
    curves: dict[int, list[EpochMetrics]] = {record.number: [] for record in records}
    for number, _, metrics in epochs:
        curves[number].append(metrics)
    plan = RemedyPlan(experiment)
    plan.replay(records, {n: [m.validation_loss for m in c] for n, c in curves.items()})
    states = {record.number: record.state for record in records}
    if len(states) < plan.num_trials or not all(state.is_final for state in states.values()):
        return None
    complete = {n: c for n, c in curves.items() if states[n] is State.COMPLETE}
    trials = plan.arm_trials
    arms = _arms(trials, complete, tests)
    compared = arms[arms["remedy"] != LESS_DATA]
    return Remedies(
        folder=folder,
        experiment=experiment,
        arms=arms,
        effects=effects(
            compared.assign(validation_loss=compared["choice_loss"]), margin=trials.margin
        ),
        overfitting=overfitting(_baseline_epochs(trials, curves)),
        num_strengths=trials.num_strengths,
        notes=(*trials.left_out, *_failures(arms)),
    )


def _run(
    folder: RunFolder,
    experiment: Experiment,
    address: str | None,
    data_dir: Path | str | None,
    observe: Callable[[Snapshot], None],
) -> Remedies:
    from tune_softmax.studies.trial_list import TrialList

    def check(dataset: Dataset) -> None:
        batch_size = experiment.single_config().batch_size
        num_images = round(experiment.dataset.train_fraction * len(dataset.train))
        if batch_size > num_images:
            raise ExperimentError(
                f"{experiment.name}: space.batch_size: at most the {num_images:,} training images "
                f"of the baseline, got {batch_size:,}; lower it, or raise dataset.train_fraction"
            )

    trials = TrialList(folder, KIND, experiment, RemedyPlan(experiment))
    trials.train(address=address, data_dir=data_dir, observe=observe, before=check)
    found = load(folder.path)
    assert found is not None, "a run that ends without an error is finished"
    return found


def _arms(
    plan: ArmTrials, curves: Mapping[int, list[EpochMetrics]], tests: Mapping[int, FinalTest]
) -> pd.DataFrame:
    """Return a row for each arm and seed, the arms in the order of the plan."""
    losses = plan.choice_losses()
    rows = [
        _row(arm, seed, curves.get(number, []), tests.get(number))
        | {"trial": number, "choice_loss": losses.get(number, math.nan)}
        for number, (arm, seed) in enumerate(plan.trials)
    ]
    rank = {(arm.remedy, arm.strength): index for index, arm in enumerate(plan.arms)}
    rows.sort(key=lambda row: (rank[row["remedy"], row["strength"]], row["seed"]))
    return pd.DataFrame(rows)[list(_COLUMNS)].astype(_COLUMNS)


def _row(arm: Arm, seed: int, curve: list[EpochMetrics], test: FinalTest | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "remedy": arm.remedy,
        "strength": arm.strength,
        "strength_label": arm.label,
        "seed": seed,
        "test_loss": test.loss if test else math.nan,
        "test_accuracy": test.accuracy if test else math.nan,
        "epochs": len(curve),
        "best_epoch": 0,
    }
    if not curve:
        missing = (name for name in _COLUMNS if name not in {*row, "trial", "choice_loss"})
        return row | dict.fromkeys(missing, math.nan)
    losses = [metrics.validation_loss for metrics in curve]
    best = losses.index(min(losses))
    at = curve[best] if arm.patience else curve[-1]
    measured = {name: value for name, value in asdict(at).items() if name != "seconds"}
    gap = at.validation_loss - at.train_loss
    return row | measured | {"best_epoch": best + 1, "gap": gap}


def _baseline_epochs(plan: ArmTrials, curves: Mapping[int, list[EpochMetrics]]) -> pd.DataFrame:
    """Return the baseline's curves; epochs after it diverged are NaN."""
    rows = []
    for number, (arm, seed) in enumerate(plan.trials):
        if arm.remedy != BASELINE:
            continue
        known = curves[number]
        for epoch in range(1, arm.config.num_epochs + 1):
            metrics = known[epoch - 1] if epoch <= len(known) else None
            rows.append(
                {
                    "seed": seed,
                    "epoch": epoch,
                    "train_loss": metrics.train_loss if metrics else math.nan,
                    "validation_loss": metrics.validation_loss if metrics else math.nan,
                }
            )
    return pd.DataFrame(rows)


def _failures(arms: pd.DataFrame) -> list[str]:
    """Return for each arm that failed at how many seeds it did."""
    failed = Counter(
        f"{row['remedy']} {row['strength_label']}".strip()
        for row in arms[arms["test_loss"].isna()].to_dict("records")
    )
    num_seeds = arms["seed"].nunique()
    return [f"{arm}: failed at {count} of {num_seeds} seeds" for arm, count in failed.items()]
