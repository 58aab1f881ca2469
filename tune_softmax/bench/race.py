"""Measure the engine in a search's own kind of work: thousands of configurations through ASHA.

Configurations are drawn at random, one pack trains at a time, and there is no Ray, no sampler and
no ledger, so this is the shortest time that a search on this device could take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np
import torch

from tune_softmax.bench.alone import run_alone
from tune_softmax.bench.forms import aligned
from tune_softmax.bench.packed import (
    Workload,
    check_device,
    describe_device,
    random_data,
    threads,
)
from tune_softmax.config import Config
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.products import check_precision
from tune_softmax.errors import ExperimentError
from tune_softmax.scheduler.asha import AshaRule, Rungs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tune_softmax.bench.conditions import Conditions
    from tune_softmax.config import Precision
    from tune_softmax.engine.plan import TrialState
    from tune_softmax.engine.tensors import TensorData

__all__ = ["PACK_SIZES", "Race", "bench_race", "format_table", "main", "to_json"]

BATCH_SIZES = (64, 128, 256, 512, 1024)
NUM_EPOCHS = 20
# What a search takes for packs by itself.
PACK_SIZES = {"cpu": 64, "cuda": 1024}
# A pack that is down to this fraction of its trials leaves them to a fuller one.
PARK_FRACTION = 8


@dataclass(frozen=True, slots=True)
class Race:
    """One race, measured.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        engine: How packs trained, in words.
        precision: In which they multiplied.
        num_trials: Configurations.
        pack_size: Trials of a new pack.
        num_images: Training images.
        seconds: Of all of it, with the drawing of initial weights, but not of the images.
        num_epochs: Trial-epochs trained.
        ends: How many trials ended after so many epochs.
    """

    device: str
    engine: str
    precision: str
    num_trials: int
    pack_size: int
    num_images: int
    seconds: float
    num_epochs: int
    ends: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Halving:
    """The successive halving of `bench search`: by 4, after 1, 4 and 16 epochs."""

    reduction_factor: float = 4.0
    brackets: int = 1

    def rungs(self, _max_epochs: int, _bracket: int = 0) -> list[int]:
        """Return the epochs after which trials are compared."""
        return [1, 4, 16]


def bench_race(
    *,
    num_trials: int = 10_000,
    pack_size: int | None = None,
    num_images: int = 50_000,
    num_validation: int = 10_000,
    device: str = "cpu",
    precision: Precision = "float32",
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Race:
    """Take configurations through ASHA, the survivors of nearly empty packs together.

    Args:
        num_trials: Configurations, at least 1.
        pack_size: Of new packs; by default what a search takes on such a device.
        num_images: Training images, random ones of Fashion-MNIST's shape.
        num_validation: Validation images.
        device: Where to train.
        precision: In which packs multiply.
        seed: Of configurations and all else.
        on_progress: Called after each pack with how far it is.

    Raises:
        ExperimentError: An option is out of range, or the device cannot be used.
        PackError: The device cannot compute in this precision.
    """
    if pack_size is None:
        pack_size = PACK_SIZES.get(device.partition(":")[0], 1)
    if num_trials < 1:
        raise ExperimentError(f"bench: num_trials must be at least 1, got {num_trials}")
    workload = Workload(
        device=device,
        num_threads=1,
        batch_sizes=BATCH_SIZES,
        pack_sizes=(pack_size,),
        num_images=num_images,
        num_validation=num_validation,
        repeats=1,
        precision=precision,
    )
    check_device(device)
    check_precision(precision, torch.device(device))
    data = random_data(workload)
    engine = describe_device(workload)  # on a GPU this compiles, which is not counted
    configs = _draw(num_trials, seed)
    started = time.perf_counter()
    with threads(1):
        race = _Course(configs, data, pack_size, precision, seed)
        while race.run_pack():
            done = sum(race.ends.values())
            on_progress(f"{done:,} of {num_trials:,} trials, {race.num_epochs:,} trial-epochs")
    return Race(
        device=device,
        engine=engine,
        precision=precision,
        num_trials=num_trials,
        pack_size=pack_size,
        num_images=num_images,
        seconds=time.perf_counter() - started,
        num_epochs=race.num_epochs,
        ends=dict(sorted(race.ends.items())),
    )


class _Course:
    """What is left of a race, and what came of the rest."""

    def __init__(
        self,
        configs: dict[int, Config],
        data: TensorData,
        pack_size: int,
        precision: Precision,
        seed: int,
    ) -> None:
        self.num_epochs = 0
        self.ends: Counter[int] = Counter()
        self._configs = configs
        self._data = data
        self._pack_size = pack_size
        self._precision = precision
        self._seed = seed
        self._rungs = _Halving().rungs(NUM_EPOCHS)
        # `Rungs` asks no more of its first argument than `_Halving` has.
        rungs = Rungs(_Halving(), NUM_EPOCHS, seed)  # type: ignore[arg-type]
        self._rule = AshaRule(rungs, "min")
        self._new = list(configs)
        self._waiting: defaultdict[int, dict[int, TrialState]] = defaultdict(dict)  # by epoch

    def run_pack(self) -> bool:
        """Train one pack until it ends or parks; say whether there was one."""
        pack = self._next_pack()
        if pack is None:
            return False
        while pack.numbers:
            measured = pack.train_epoch()
            self.num_epochs += len(measured)
            values = {n: m.validation_loss for n, m in measured.items() if m.is_finite}
            leaving = measured.keys() - values.keys()
            if pack.epoch == NUM_EPOCHS:
                leaving |= values.keys()
            elif pack.epoch in self._rungs:
                leaving |= self._rule.stopped(pack.epoch, values, final=())
            self.ends[pack.epoch] += len(leaving)
            pack.drop(leaving & set(pack.numbers))
            few = len(pack.numbers) <= self._pack_size // PARK_FRACTION
            if few and pack.epoch in self._rungs:
                self._waiting[pack.epoch] |= {n: pack.state(n) for n in pack.numbers}
                return True
        return True

    def _next_pack(self) -> Pack | None:
        """Make a pack of survivors, if they fill a part of one or nothing is new, or a new one."""
        epoch = max(self._waiting, key=lambda epoch: len(self._waiting[epoch]), default=0)
        waiting = self._waiting[epoch] if epoch else {}
        if waiting and (len(waiting) >= self._pack_size // PARK_FRACTION or not self._new):
            states = {n: waiting.pop(n) for n in list(waiting)[: self._pack_size]}
            return self._pack(list(states), epoch, states)
        if not self._new:
            return None
        numbers, self._new = self._new[: self._pack_size], self._new[self._pack_size :]
        return self._pack(numbers, 0, None)

    def _pack(
        self, numbers: Sequence[int], epoch: int, states: dict[int, TrialState] | None
    ) -> Pack:
        return Pack(
            {n: self._configs[n] for n in numbers},
            self._data,
            seed=self._seed,
            precision=self._precision,
            epoch=epoch,
            states=states,
        )


def _draw(num_trials: int, seed: int) -> dict[int, Config]:
    """Draw configurations from the space of `bench search`, by number."""
    random = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(random.uniform(log(low), log(high))))

    return {
        number: Config(
            batch_size=int(random.choice(BATCH_SIZES)),
            num_epochs=NUM_EPOCHS,
            learning_rate=log_uniform(1e-3, 1.0),
            weight_decay=log_uniform(1e-7, 1e-2),
            momentum=float(random.uniform(0, 0.95)),
        )
        for number in range(num_trials)
    }


def format_table(race: Race, conditions: Conditions) -> str:
    """Return what was measured, and under what conditions, as aligned text."""
    table = [
        ("trials", "seconds", "trial-epochs", "ms a trial-epoch", "ended after"),
        (
            f"{race.num_trials:,}",
            f"{race.seconds:.1f}",
            f"{race.num_epochs:,}",
            f"{race.seconds / race.num_epochs * 1e3:.3f}",
            ", ".join(f"{epochs}: {count:,}" for epochs, count in race.ends.items() if count),
        ),
    ]
    what = (
        f"{race.num_trials:,} configurations through ASHA by the engine alone, packs of "
        f"{race.pack_size} in {race.precision}, {race.num_images:,} training images\n"
        f"{race.engine}"
    )
    return "\n".join([what, str(conditions), "", aligned(table)])


def to_json(race: Race, conditions: Conditions) -> str:
    """Return a JSON object: the race and its conditions."""
    return json.dumps({**asdict(race), "conditions": asdict(conditions)}, indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race that the command line asks for, and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m tune_softmax.bench.race",
        description=__doc__,
        argument_default=argparse.SUPPRESS,  # the function's own defaults hold
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--num-trials", type=int, help="configurations")
    parser.add_argument("--pack-size", type=int, help="trials of a new pack")
    parser.add_argument("--num-images", type=int, help="training images")
    parser.add_argument("--precision", help="in which packs multiply: float32, bfloat16x2, ...")
    parser.add_argument("--seed", type=int, help="of configurations and all else")
    return run_alone(parser, arguments, bench_race, format_table, to_json)


if __name__ == "__main__":
    sys.exit(main())
