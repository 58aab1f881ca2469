"""Train winners anew: what a configuration's validation loss is without a search's luck.

The lowest of a thousand losses that go up and down is lower than what its configuration gives
another time (Cawley and Talbot 2010, "On over-fitting in model selection", section 4). So every
winner is trained with the same seeds, none of them a search's: all begin with the same weights
and meet the same orders of images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from tune_softmax.data.seeding import derive_seed
from tune_softmax.engine.pack import Pack

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tune_softmax.config import Config
    from tune_softmax.engine.arrays import ArrayData

__all__ = ["mean_and_error", "train_anew"]


def train_anew(
    configs: Collection[Config], data: ArrayData, *, num_seeds: int, num_threads: int
) -> dict[Config, tuple[float, ...]]:
    """Train every configuration to its last epoch, with every seed.

    Args:
        configs: All of them train as one pack, once a seed, from the same initial weights.
        data: Training and validation images.
        num_seeds: How many, at least 1.
        num_threads: Packs at once, one thread each.

    Returns:
        Validation losses after the last epoch by configuration, one a seed, in nats.
    """
    numbered = dict(enumerate(dict.fromkeys(configs)))
    if not numbered:
        return {}

    def train(seed: int) -> dict[int, float]:
        pack = Pack(numbered, data, seed=seed, draws=dict.fromkeys(numbered, 0))
        last: dict[int, float] = {}
        while pack.numbers:
            metrics = pack.train_epoch()
            last |= {number: one.validation_loss for number, one in metrics.items()}
        return last

    seeds = [derive_seed(0, "anew", i) for i in range(num_seeds)]
    with ThreadPoolExecutor(num_threads) as pool:
        losses = list(pool.map(train, seeds))
    return {config: tuple(one[number] for one in losses) for number, config in numbered.items()}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Return a mean and its standard error; no error of one value, nothing of none.

    A value that is not finite, of a training that diverged, leaves nothing.
    """
    if not values or not all(map(isfinite, values)):
        return None
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return fmean(values), error
