"""Results of which every unit has every seed exactly once, read from a dataframe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tune_softmax.errors import ExperimentError, ResultsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    _Array = NDArray[np.float64]

__all__ = ["Crossed", "check_metric"]


@dataclass(frozen=True, slots=True)
class Crossed:
    """Results of which every unit (arm, epoch, trial) has every seed exactly once.

    Attributes:
        units: What names the k units, one a row, in the order of the frame.
        by_seed: For each column float64, (n, k).
    """

    units: pd.DataFrame
    by_seed: dict[str, _Array]

    @classmethod
    def read(cls, frame: pd.DataFrame, unit: list[str], columns: list[str], where: str) -> Crossed:
        """Read results from a dataframe.

        Args:
            frame: A row for each unit and seed.
            unit: The columns that name a unit.
            columns: The columns of results.
            where: What the frame is, for messages.

        Raises:
            ResultsError: A column or a seed is missing or there twice.
        """
        missing = [name for name in [*unit, "seed", *columns] if name not in frame.columns]
        if missing or frame.empty:
            raise ResultsError(
                f"{where}: needs the columns {', '.join([*unit, 'seed', *columns])} and at least "
                f"one row; missing: {', '.join(missing) or 'rows'}"
            )
        number = frame.groupby(unit, sort=False, dropna=False, observed=True).ngroup().to_numpy()
        _, first = np.unique(number, return_index=True)
        units = frame[unit].iloc[first].reset_index(drop=True)
        place, seeds = pd.factorize(frame["seed"], sort=True, use_na_sentinel=False)
        counts = np.zeros((len(units), len(seeds)), dtype=np.int64)
        np.add.at(counts, (number, place), 1)
        wrong = np.argwhere(counts != 1)
        if len(wrong):
            at, seed = wrong[0]
            name = ", ".join(f"{key} {value}" for key, value in units.iloc[at].items())
            raise ResultsError(
                f"{where}: results are compared seed by seed, so that each must be there exactly "
                f"once for each of the seeds {', '.join(map(str, seeds))}; {name} is there "
                f"{counts[at, seed]} times for seed {seeds[seed]}, and {len(wrong) - 1} more are "
                "wrong: train what is missing, or leave it out everywhere"
            )
        order = np.lexsort((number, place)).reshape(len(seeds), len(units))
        return cls(units, {name: frame[name].to_numpy(np.float64)[order] for name in columns})


def check_metric(metric: str, allowed: Sequence[str]) -> None:
    """Refuse a metric that is not allowed.

    Raises:
        ExperimentError: It is not.
    """
    if metric not in allowed:
        raise ExperimentError(f"metric: {metric!r} is not allowed; allowed: {', '.join(allowed)}")
