"""The arms of a study of remedies, and which of its trials belongs to which.

Phase one is the baseline and every strength of every remedy, over seeds; it follows from the
experiment. Phase two combines the remedies that are shown to lower the validation loss; it
follows from the results of phase one. So a run's experiment and ledger tell what each trial is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from tune_softmax.experiment.remedies import REMEDIES
from tune_softmax.metrics import State
from tune_softmax.stats.verdicts import better_on_validation, losses_at_stops

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tune_softmax.config import Config
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.records import TrialRecord

__all__ = ["BASELINE", "COMBINED", "LESS_DATA", "Arm", "ArmTrials"]

BASELINE, COMBINED, LESS_DATA = "baseline", "combined", "less_data"
EARLY_STOPPING = "early_stopping"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train, over all seeds.

    Attributes:
        remedy: Its remedy, or "baseline", "less_data", "combined".
        strength: How much of it: patience in epochs, weight decay, factor of L1, strength of
            augmentation, hidden units, fraction of the images; scale of a combination.
        label: The strength in words; empty for the baseline.
        config: The hyperparameters.
        train_fraction: How much of the training images.
        patience: See `agenda.Task`.
    """

    remedy: str
    strength: float
    label: str
    config: Config
    train_fraction: float
    patience: int = 0


class ArmTrials:
    """The trials of a study of remedies, by number: each one's arm and seed.

    Those of phase two are there once every trial of phase one has been told. The most expensive
    trials of a phase come first, so that no worker is idle at the end.

    Args:
        experiment: What is asked; it has a section `remedies`.
    """

    def __init__(self, experiment: Experiment) -> None:
        options = experiment.check_remedies()
        first_seed = experiment.search.seed
        self.seeds: list[int] = list(range(first_seed, first_seed + options.seeds))
        self.arms: list[Arm] = list(_single_arms(experiment))
        self.left_out: list[str] = list(_left_out(experiment))
        self.num_strengths: int = options.num_strengths
        self.margin: float | None = None if options.margin == "auto" else options.margin
        self.trials: list[tuple[Arm, int]] = []
        self.is_combined = False
        self._add(self.arms)
        self._num_single = len(self.trials)
        self._curves: dict[int, list[float]] = {}  # by number; empty for one that failed

    def tell(self, number: int, state: State, curve: Sequence[float]) -> None:
        """Take a trial's validation losses; when phase one is complete, plan phase two."""
        self._curves[number] = list(curve) if state is State.COMPLETE else []
        if not self.is_combined and len(self._curves) == self._num_single:
            self._combine()

    def replay(self, trials: Iterable[TrialRecord], curves: Mapping[int, Sequence[float]]) -> None:
        """Take the final trials of a ledger.

        Args:
            trials: From the ledger.
            curves: Validation losses after each epoch, by trial number.
        """
        for trial in trials:
            if trial.state.is_final:
                self.tell(trial.number, trial.state, curves.get(trial.number, []))

    def choice_losses(self) -> dict[int, float]:
        """Return the validation loss by which each told trial's arm is chosen, by number.

        It is the last epoch's. With early stopping it is that of the epoch which the trial's own
        validation losses chose, as the other seeds' curves have it (see `losses_at_stops`): of
        the baseline, which trains on where early stopping alone ends, else of the arm itself.
        Infinite for a trial that failed.
        """
        losses = {n: curve[-1] if curve else math.inf for n, curve in self._curves.items()}
        numbers: dict[Arm, dict[int, int]] = {}  # of each arm by seed
        for number in self._curves:
            arm, seed = self.trials[number]
            numbers.setdefault(arm, {})[seed] = number
        for arm, by_seed in numbers.items():
            if not arm.patience:
                continue
            alike = numbers.get(self.arms[0], {}) if arm.remedy == EARLY_STOPPING else by_seed
            curves = {seed: self._curves[number] for seed, number in alike.items()}
            own = {seed: self._curves[number] for seed, number in by_seed.items()}
            stops = {seed: curve.index(min(curve)) for seed, curve in own.items() if curve}
            for seed, loss in losses_at_stops(stops, curves).items():
                losses[by_seed[seed]] = loss
        return losses

    def _add(self, arms: Iterable[Arm]) -> None:
        planned = [(arm, seed) for arm in arms for seed in self.seeds]
        planned.sort(key=lambda trial: (-trial[0].train_fraction, trial[1]))
        self.trials += planned

    def _combine(self) -> None:
        """Plan phase two from the validation losses of phase one."""
        self.is_combined = True
        losses = self.choice_losses()
        rows = [
            {
                "remedy": arm.remedy,
                "strength": arm.strength,
                "strength_label": arm.label,
                "seed": seed,
                "validation_loss": losses[number],
            }
            for number, (arm, seed) in enumerate(self.trials)
            if arm.remedy != LESS_DATA
        ]
        helpful = better_on_validation(pd.DataFrame(rows), self.margin)
        if helpful.empty:
            self.left_out.append(
                "combined: no remedy is shown to lower the validation loss by more than the "
                "margin, so that there is nothing to combine"
            )
            return
        if len(helpful) == 1:
            self.left_out.append(
                f"combined: {helpful['remedy'].iloc[0]} alone is shown to lower the validation "
                "loss, so that there is nothing to combine it with"
            )
            return
        by_key = {(arm.remedy, arm.strength): arm for arm in self.arms}
        keys = zip(helpful["remedy"], helpful["strength"], strict=True)
        combined = _combinations([by_key[key] for key in keys], self.arms[0], self.num_strengths)
        self.arms += combined
        self._add(combined)


def _single_arms(experiment: Experiment) -> Iterator[Arm]:
    """Yield the baseline, then every strength of every remedy."""
    options, base = experiment.check_remedies(), experiment.single_config()
    fraction = experiment.dataset.train_fraction
    yield Arm(BASELINE, 0.0, "", base, fraction)
    for patience in options.early_stopping:
        label = f"patience {patience}"
        yield Arm(EARLY_STOPPING, patience, label, base, fraction, patience)
    for strength in options.weight_decay:
        config = replace(base, weight_decay=strength)
        yield Arm("weight_decay", strength, f"{strength:g}", config, fraction)
    for strength in options.l1:
        yield Arm("l1", strength, f"{strength:g}", replace(base, l1=strength), fraction)
    for strength in options.augmentation:
        config = replace(base, augmentation=strength)
        yield Arm("augmentation", strength, f"{strength:g}", config, fraction)
    for width in options.widths(base.hidden_units):
        label = f"{width} hidden units" if width else "no hidden layer"
        yield Arm("smaller_model", width, label, replace(base, hidden_units=width), fraction)
    for larger in options.fractions(fraction):
        yield Arm("more_data", larger, _share(larger), base, larger)
    for smaller in options.less_data:
        yield Arm(LESS_DATA, smaller, _share(smaller), base, smaller)


def _share(fraction: float) -> str:
    return "all images" if fraction == 1 else f"{100 * fraction:.3g} % of the images"


def _left_out(experiment: Experiment) -> Iterator[str]:
    """Yield the remedies that are not compared, with the reason."""
    options, base = experiment.check_remedies(), experiment.single_config()
    fraction = experiment.dataset.train_fraction
    listed = {
        **{name: getattr(options, name) for name in REMEDIES},
        "smaller_model": options.widths(base.hidden_units),
        "more_data": options.fractions(fraction),
    }
    reasons = {}
    if not base.hidden_units:
        reasons["smaller_model"] = "the base is softmax regression, and there is no smaller model"
    if fraction == 1:
        reasons["more_data"] = "the base trains on all training images"
    for name, strengths in listed.items():
        if not strengths:
            yield f"{name}: {reasons.get(name, 'the experiment leaves it out')}"


def _combinations(chosen: Sequence[Arm], base: Arm, count: int) -> list[Arm]:
    """Return the combinations of all chosen remedies, their penalties at several scales.

    Each needs to do less when they act together, so the scales are 1, 1/2, 1/4 and so on. They
    apply to weight decay, L1 and augmentation; patience, width and data stay as chosen. Scales
    that change nothing are left out.
    """
    arms: dict[tuple[Config, float, int], Arm] = {}
    for halvings in range(count):
        scale = 2.0**-halvings
        config, fraction, patience = base.config, base.train_fraction, 0
        for arm in chosen:
            match arm.remedy:
                case "early_stopping":
                    patience = arm.patience
                case "smaller_model":
                    config = replace(config, hidden_units=arm.config.hidden_units)
                case "more_data":
                    fraction = arm.train_fraction
                case "weight_decay":
                    config = replace(config, weight_decay=scale * arm.strength)
                case "l1":
                    config = replace(config, l1=scale * arm.strength)
                case "augmentation":
                    config = replace(config, augmentation=scale * arm.strength)
        label = "as chosen" if scale == 1 else f"penalties at 1/{2**halvings}"
        key = (config, fraction, patience)
        arms.setdefault(key, Arm(COMBINED, scale, label, config, fraction, patience))
    return list(arms.values())
