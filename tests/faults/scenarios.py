"""How a scenario is written down, and the experiments that scenarios search."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["SCENARIOS", "Scenario", "UnavailableError", "digits", "fashion", "scenario"]

# Values of trials are the same to the last bit whatever their neighbours, for all batch sizes
# are multiples of the 64 rows after which the kernels interrupt their sums.
EXPERIMENT = """
name: faults
dataset: {dataset}
space:
  batch_size: {{choice: [64, 128, 256]}}
  num_epochs: {{int: [2, {most}]}}
  learning_rate: {{log_uniform: [1.0e-2, 1]}}
  momentum: {{uniform: [0, 0.9]}}
  weight_decay: {{log_uniform: [1.0e-6, 1.0e-2]}}
search: {{num_trials: {trials}, pack_size: {pack}, seed: {seed}{more}}}
resources: {{max_concurrent_packs: {places}, report_timeout_s: {timeout}}}
"""


class UnavailableError(Exception):
    """This machine does not let us produce the fault; the message says what is missing."""


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: In a word or two.
        times: How often the fault comes.
        holds: What must hold.
        run: Takes a folder; returns what was seen, or raises AssertionError, or
            UnavailableError.
    """

    name: str
    times: str
    holds: str
    run: Callable[[Path], str]


SCENARIOS: list[Scenario] = []


def scenario(times, holds):
    """Enter a function into the table, under its own name."""

    def enter(function):
        name = function.__name__.replace("_", " ")
        SCENARIOS.append(Scenario(name, times, holds, function))
        return function

    return enter


def digits(folder, **options):
    """Write an experiment on digits and return its file; see `_write` for the options."""
    return _write(folder, "{name: digits, validation: 0.25}", **options)


def fashion(folder, *, fraction=0.1, **options):
    """Write an experiment on Fashion-MNIST, or on digits where it is not here."""
    options = {"trials": 60, "pack": 8, "most": 9, "seed": 7, **options}
    if "TUNE_SOFTMAX_DATA_DIR" not in os.environ:
        return digits(folder, **options)
    dataset = f"{{name: fashion-mnist, validation: 10000, train_fraction: {fraction}}}"
    return _write(folder, dataset, **options)


def _write(folder, dataset, *, trials=12, pack=4, most=6, seed=5, places=1, timeout=300, more=""):
    """Write an experiment and return its file.

    Args:
        folder: Where.
        dataset: Its section of that name.
        trials: How many.
        pack: How many side by side.
        most: Epochs that a trial may have at most.
        seed: Of the search.
        places: Packs at a time.
        timeout: Seconds after which a worker that does not report is killed.
        more: More of the section `search`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faults.yaml"
    path.write_text(
        EXPERIMENT.format(
            dataset=dataset,
            most=most,
            trials=trials,
            pack=pack,
            seed=seed,
            places=places,
            timeout=timeout,
            more=more and f", {more}",
        )
    )
    return path
