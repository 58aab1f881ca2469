"""Measure what packing gains: seconds per trial-epoch, beside those of the bare matrix products.

Speed depends on the images' shape and on how many pixels are zero. So random images with
Fashion-MNIST's shape and zeros serve, and nothing is downloaded. It needs only torch.
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import ceil, gcd, prod
from statistics import fmean, median
from typing import TYPE_CHECKING, get_args

import torch

from tune_softmax.bench.alone import run_alone
from tune_softmax.bench.floor import synchronize, time_at_peak, time_products
from tune_softmax.bench.forms import aligned, spread
from tune_softmax.config import Config, Precision
from tune_softmax.engine.gpu_check import gpu_engine
from tune_softmax.engine.pack import Pack, plan_groups
from tune_softmax.engine.products import NUM_TERMS, check_precision
from tune_softmax.engine.reference import train
from tune_softmax.engine.tensors import Images, TensorData
from tune_softmax.errors import ExperimentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tune_softmax.bench.conditions import Conditions
    from tune_softmax.metrics import EpochMetrics

__all__ = [
    "BATCH_SIZES",
    "PACK_SIZES",
    "Row",
    "Workload",
    "bench_packed",
    "check_device",
    "describe_device",
    "format_table",
    "main",
    "random_data",
    "threads",
    "to_json",
]

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10
BATCH_SIZES = (64, 128, 256, 512)
PACK_SIZES = (1, 4, 16, 64, 256)
# Images of the untimed first epoch.
NUM_WARM_UP = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is measured, and on what.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        num_threads: CPU threads of one pack, at least 1.
        batch_sizes: The trials take these in turn.
        pack_sizes: Trials trained together, each at least 1.
        num_images: Training images, at least 1.
        num_validation: Validation images, at least 1.
        repeats: How often everything is measured, at least 1.
        precision: In which packs multiply; one at a time and the products alone are float32.
        hidden_units: Width of the hidden layer; 0 is softmax regression.
    """

    device: str
    num_threads: int
    batch_sizes: tuple[int, ...]
    pack_sizes: tuple[int, ...]
    num_images: int
    num_validation: int
    repeats: int
    precision: Precision = "float32"
    hidden_units: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name == "device":
                if value.split(":")[0] not in {"cpu", "cuda"}:
                    raise ExperimentError(
                        f"bench: device must be cpu, cuda or cuda:N, got {value!r}"
                    )
            elif name == "precision":
                if value not in get_args(Precision):
                    raise ExperimentError(
                        f"bench: precision must be {', '.join(get_args(Precision))}, got {value!r}"
                    )
            elif name == "hidden_units":
                if value < 0:
                    raise ExperimentError(f"bench: {name} must be 0 or more, got {value}")
            elif not value or min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ExperimentError(f"bench: {name} must be at least 1, got {value}")

    def describe(self) -> str:
        """Return what is measured, on what, in two lines."""
        height, width = IMAGE_SHAPE
        model = f"{self.hidden_units} hidden units" if self.hidden_units else "no hidden layer"
        return (
            f"{self.num_images:,} training and {self.num_validation:,} validation images, "
            f"random ones of Fashion-MNIST's shape, half zeros as these "
            f"({height} x {width}, {NUM_CLASSES} classes)\n"
            f"{model}; batch sizes {', '.join(map(str, self.batch_sizes))}; "
            f"packs in {self.precision}; {describe_device(self)}; "
            f"torch {torch.__version__}; medians of {self.repeats}"
        )


def describe_device(workload: Workload) -> str:
    """Return what trains, in words: a GPU and how, or so many threads."""
    device = torch.device(workload.device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {gpu_engine(device)}"
    return f"{device.type}, {workload.num_threads} thread(s)"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to train, measured.

    Attributes:
        workload: What was measured.
        pack_size: Trials trained together; 0 is one at a time by `reference.py`.
        seconds: Seconds per trial-epoch, one value a repeat: one pass over the training set and
            the evaluation on the validation set.
        floor: Seconds per trial-epoch of the matrix products alone at the same shapes, measured
            right after each of `seconds`; on a GPU see `time_at_peak`.
        speed_up: Median seconds one at a time over median `seconds`.
    """

    workload: Workload
    pack_size: int
    seconds: tuple[float, ...]
    floor: tuple[float, ...]
    speed_up: float

    @property
    def name(self) -> str:
        """What a table calls it."""
        return _name(self.pack_size)

    @property
    def over_floor(self) -> float:
        """Median seconds over the median of the products alone."""
        return median(self.seconds) / median(self.floor)


@dataclass(slots=True)
class _Way:
    """One way to train, and what it has measured so far."""

    pack_size: int
    packs: list[dict[int, Config]]  # together they hold every batch size
    seconds: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)


def bench_packed(
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    pack_sizes: Sequence[int] = PACK_SIZES,
    num_images: int = 50_000,
    num_validation: int = 10_000,
    repeats: int = 3,
    num_threads: int = 1,
    device: str = "cpu",
    precision: Precision = "float32",
    hidden_units: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time one trial at a time, every pack size, and the products alone, in turn and repeatedly.

    Args:
        batch_sizes: As in `Workload`, and so are the others that follow.
        pack_sizes: In any order.
        num_images: Fashion-MNIST has 60,000 training images, of which 10,000 validate.
        num_validation: Validation images.
        repeats: Rounds over all ways.
        num_threads: Put back afterwards.
        device: Where to train.
        precision: In which packs multiply.
        hidden_units: Width of every trial's hidden layer, 0 for none.
        on_progress: Called after each measurement with how many are done, and which it was.

    Returns:
        One row a way, one at a time first, then by pack size.

    Raises:
        ExperimentError: An option is out of range, or the device cannot be used.
        PackError: The device cannot compute in this precision.
    """
    workload = Workload(
        device=device,
        num_threads=num_threads,
        batch_sizes=tuple(batch_sizes),
        pack_sizes=tuple(sorted(set(pack_sizes))),
        num_images=num_images,
        num_validation=num_validation,
        repeats=repeats,
        precision=precision,
        hidden_units=hidden_units,
    )
    check_device(device)
    check_precision(precision, torch.device(device))
    ways = [_Way(size, _packs(size, workload)) for size in (0, *workload.pack_sizes)]
    data = random_data(workload)
    with threads(num_threads):
        _warm_up(ways, data, workload)
        done = 0
        for _ in range(repeats):
            for way in ways:
                way.seconds.append(_time_training(way, data, precision))
                way.floor.append(_time_products(way, data, workload))
                done += 1
                on_progress(f"{done} of {repeats * len(ways)}: {_name(way.pack_size)}")
    reference = median(ways[0].seconds)
    return [
        Row(
            workload=workload,
            pack_size=way.pack_size,
            seconds=tuple(way.seconds),
            floor=tuple(way.floor),
            speed_up=reference / median(way.seconds),
        )
        for way in ways
    ]


def random_data(workload: Workload) -> TensorData:
    """Return random images of Fashion-MNIST's shape, half of their pixels zero as in the real."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        pixels = torch.randint(-256, 256, (count, prod(IMAGE_SHAPE)), generator=generator)
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        pixels = pixels.clamp_(min=0).to(torch.uint8)
        return Images(pixels.to(workload.device), labels.to(workload.device))

    return TensorData(
        train=images(workload.num_images),
        validation=images(workload.num_validation),
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        pixel_max=255,
    )


def format_table(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return what was measured, under what conditions, and the rows as aligned text."""
    table = [("", "s per trial-epoch", "min to max", "products alone", "ratio", "speed-up")]
    table += [
        (
            row.name,
            *spread(row.seconds, 5),
            f"{median(row.floor):.5f}",
            f"{row.over_floor:.2f}",
            f"{row.speed_up:.2f}",
        )
        for row in rows
    ]
    return "\n".join([rows[0].workload.describe(), str(conditions), "", aligned(table)])


def to_json(rows: Sequence[Row], conditions: Conditions) -> str:
    """Return a JSON object: the workload, its conditions, and the rows with their ratios."""
    content = {
        "workload": asdict(rows[0].workload),
        "conditions": asdict(conditions),
        "rows": [
            {
                "name": row.name,
                "pack_size": row.pack_size,
                "seconds": row.seconds,
                "floor": row.floor,
                "over_floor": row.over_floor,
                "speed_up": row.speed_up,
            }
            for row in rows
        ],
    }
    return json.dumps(content, indent=2)


def check_device(device: str) -> None:
    """Raise ExperimentError for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ExperimentError(
            f"bench: device {device!r} cannot be used ({reason}); try cpu"
        ) from error


def _name(pack_size: int) -> str:
    return f"pack of {pack_size}" if pack_size else "one at a time"


def _packs(pack_size: int, workload: Workload) -> list[dict[int, Config]]:
    """Return configurations by trial number, in as many packs as it takes for every batch size."""
    size = max(pack_size, 1)
    sizes = workload.batch_sizes
    configs = [
        Config(
            batch_size=sizes[number % len(sizes)],
            num_epochs=1,
            learning_rate=1e-3,
            learning_rate_schedule="linear",
            weight_decay=1e-4,
            momentum=0.9,
            hidden_units=workload.hidden_units,
        )
        for number in range(size * ceil(len(sizes) / size))
    ]
    return [
        {number: configs[number] for number in range(first, first + size)}
        for first in range(0, len(configs), size)
    ]


def _warm_up(ways: Sequence[_Way], data: TensorData, workload: Workload) -> None:
    """Train every way on few images, untimed, so that libraries load and choose their kernels."""
    count = max(NUM_WARM_UP, *workload.batch_sizes)
    train_images, validation_images = (
        Images(images.pixels[:count], images.labels[:count])
        for images in (data.train, data.validation)
    )
    few = replace(data, train=train_images, validation=validation_images)
    for way in ways:
        _time_training(way, few, workload.precision)
        _time_products(way, few, workload)


def _time_training(way: _Way, data: TensorData, precision: Precision) -> float:
    """Return seconds per trial-epoch as training reports them, the mean over the way's packs."""
    measured: list[EpochMetrics] = []
    for configs in way.packs:
        synchronize(data.device)
        if way.pack_size:
            pack = Pack(configs, data, seed=0, precision=precision)
            measured.extend(pack.train_epoch().values())
        else:
            for config in configs.values():
                train(config, data, seed=0, on_epoch=lambda _, epoch: measured.append(epoch))
    return fmean(epoch.seconds for epoch in measured)


def _time_products(way: _Way, data: TensorData, workload: Workload) -> float:
    """Return seconds per trial-epoch of the matrix products alone, the mean over the packs."""
    seconds = 0.0
    num_terms = NUM_TERMS.get(workload.precision)
    if data.device.type == "cuda" and num_terms and not workload.hidden_units:
        return time_at_peak(max(way.pack_size, 1), num_terms, data) / max(way.pack_size, 1)
    for configs in way.packs:
        for numbers in plan_groups(configs, data):
            sizes = [min(configs[number].batch_size, len(data.train)) for number in numbers]
            width = configs[numbers[0]].hidden_units
            seconds += time_products(gcd(*sizes), len(numbers), width, data)
    return seconds / sum(map(len, way.packs))


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Compute with so many CPU threads, and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement that the command line asks for, and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m tune_softmax.bench",
        description=__doc__,
        argument_default=argparse.SUPPRESS,  # the function's own defaults hold
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--num-threads", type=int, help="CPU threads of one pack")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="trials take these in turn")
    parser.add_argument("--pack-sizes", type=int, nargs="+", help="trials trained together")
    parser.add_argument("--num-images", type=int, help="training images")
    parser.add_argument("--num-validation", type=int, help="validation images")
    parser.add_argument("--hidden-units", type=int, help="width of a hidden layer; 0: none")
    parser.add_argument("--repeats", type=int, help="rounds; medians are printed")
    parser.add_argument("--precision", help="in which packs multiply: float32, bfloat16x2, ...")
    return run_alone(parser, arguments, bench_packed, format_table, to_json)
