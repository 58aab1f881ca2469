"""Train P configurations at once as one matrix product; each trains as `reference.py` trains it.

Shape letters: P trials in the pack, B images in a micro-batch, D pixels, H hidden units,
C classes. Every weight matrix has its bias as the last row, which inputs multiply by one.

A pack splits its trials into groups that share mini-batches and matrix products. A group walks
micro-batches of the greatest common divisor of its batch sizes. A trial whose mini-batch is m
micro-batches adds up its gradient while its weights stay, and updates on every m-th: `plan.py`'s
table of coefficients says so for every micro-batch and trial.

Softmax regression trains in compiled kernels on one CPU core, and in Triton kernels on a GPU; all
else trains with torch's operations. Torch takes seconds to import and is imported only if needed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tune_softmax.engine import cpu_kernels
from tune_softmax.engine.arrays import ArrayData
from tune_softmax.engine.cpu_group import CpuGroup
from tune_softmax.engine.draws import initial_weights, layer_widths, sample_order
from tune_softmax.engine.plan import Trial, effective_batch_size
from tune_softmax.errors import PackError
from tune_softmax.metrics import EpochMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tune_softmax.config import Config, Precision, Reduction
    from tune_softmax.engine.cpu_kernels import Kernels
    from tune_softmax.engine.gpu_group import GpuGroup
    from tune_softmax.engine.plan import TrialState
    from tune_softmax.engine.tensors import TensorData
    from tune_softmax.engine.torch_group import HiddenGroup, LinearGroup

__all__ = ["Pack", "needs_torch", "plan_groups"]

# Trials of one batch size that have fewer columns than this together share a group with others,
# because a narrow product is inefficient and takes as many steps as a wide one.
MIN_COLUMNS = 128
# They do so only if the group's micro-batch stays at least this long; below it the fixed cost of a
# step outweighs the wider product.
MIN_MICRO_BATCH = 32

_Group: TypeAlias = "LinearGroup | HiddenGroup | CpuGroup | GpuGroup"


class Pack:
    """Trials that train side by side on one device, one epoch at a time."""

    def __init__(
        self,
        configs: Mapping[int, Config],
        data: ArrayData | TensorData,
        *,
        seed: int,
        reduction: Reduction = "mean",
        initial_std: float = 0.01,
        precision: Precision = "float32",
        draws: Mapping[int, int] | None = None,
        epoch: int = 0,
        states: Mapping[int, TrialState] | None = None,
    ) -> None:
        """Draw every trial's initial weights, or continue from another pack's states.

        Args:
            configs: Hyperparameters by trial number.
            data: Training and validation images: as tensors on the device to train on, or as
                arrays for one CPU core.
            seed: The experiment's seed.
            reduction: Whether a mini-batch's loss is the mean or the sum over its images.
            initial_std: Standard deviation of the initial weights.
            precision: In which to compute the products with the images; see `products.py`.
            draws: Which of the seed's initial weights each trial has; by default its number's.
            epoch: How many epochs the trials have trained already.
            states: What another pack's `state` gave for each trial, where that is not 0.

        Raises:
            PackError: There is no trial to train, or the device cannot compute so.
        """
        if not configs:
            raise PackError("a pack needs at least one trial, got none")
        if isinstance(data, ArrayData) and needs_torch(configs.values(), precision):
            from tune_softmax.engine.tensors import from_arrays

            data = from_arrays(data)
        if not isinstance(data, ArrayData):
            from tune_softmax.engine.products import check_precision

            check_precision(precision, data.device)
        self.epoch = epoch
        self._data = data
        self._precision: Precision = precision
        self._seed = seed
        self._reduction: Reduction = reduction
        self._finished: dict[int, Trial] = {}
        self._moved: tuple[int, float, Tensor] | None = None  # epoch, strength, inputs
        self._has_gpu_kernels = _has_gpu_kernels(data, precision)
        self._groups: list[_Group] = []
        trials = []
        for number, config in configs.items():
            if states is not None:
                trials.append(Trial(number, config, states[number]))
                continue
            widths = layer_widths(data.num_features, config.hidden_units, data.num_classes)
            draw = number if draws is None else draws[number]
            layers = []
            for weight in initial_weights(seed, draw, widths, initial_std):
                weights = np.zeros((weight.shape[1] + 1, weight.shape[0]), data.real)
                weights[:-1] = weight.T
                layers.append((weights, np.zeros_like(weights)))
            trials.append(Trial(number, config, layers))
        self._regroup(trials)

    @property
    def numbers(self) -> list[int]:
        """The trials still training, ascending."""
        return sorted(trial.number for group in self._groups for trial in group.trials)

    def train_epoch(self) -> dict[int, EpochMetrics]:
        """Train every remaining trial for one epoch, and evaluate it on the validation set.

        A trial whose last epoch this was leaves the pack afterwards.

        Returns:
            Metrics by trial number, ascending; a diverged trial's are not finite, and it stays
            until it is dropped.

        Raises:
            PackError: No trial is left.
        """
        if not self._groups:
            raise PackError(f"no trial is left to train after epoch {self.epoch}")
        started = time.perf_counter()
        self.epoch += 1
        order = sample_order(self._seed, self.epoch, len(self._data.train))
        measured: dict[int, tuple[float, float, float, float]] = {}
        for group in self._groups:
            inputs = self._inputs(group)
            if isinstance(group, CpuGroup):
                arrays = None if inputs is None else inputs.numpy()
                train = group.train_epoch(order, self.epoch, arrays)
            else:
                train = group.train_epoch(order, self.epoch, inputs)
            validation = group.evaluate()
            for i, trial in enumerate(group.trials):
                measured[trial.number] = (*train[i], *validation[i])
        share = (time.perf_counter() - started) / len(measured)
        self.drop(
            trial.number
            for group in self._groups
            for trial in group.trials
            if trial.config.num_epochs <= self.epoch
        )
        return {n: EpochMetrics(*measured[n], seconds=share) for n in sorted(measured)}

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove trials from the pack; the others train on unchanged."""
        leaving = set(numbers)
        if not leaving:
            return
        trials = self._trials()
        self._finished |= {trial.number: trial for trial in trials if trial.number in leaving}
        self._regroup([trial for trial in trials if trial.number not in leaving])

    def weights(self, number: int) -> list[NDArray[Any]]:
        """Return a trial's weights, whether it still trains or has left.

        Returns:
            One array a layer, float32, (in + 1, out); the last row is the bias.
        """
        trials = self._finished | {trial.number: trial for trial in self._trials()}
        return [_array(weights) for weights, _ in trials[number].layers]

    def state(self, number: int) -> TrialState:
        """Return the state from which another pack can continue a trial that still trains."""
        trials = {trial.number: trial for trial in self._trials()}
        return [(_array(weights), _array(velocity)) for weights, velocity in trials[number].layers]

    def _trials(self) -> list[Trial]:
        return [
            replace(trial, layers=group.layers(p))
            for group in self._groups
            for p, trial in enumerate(group.trials)
        ]

    def _inputs(self, group: _Group) -> Tensor | None:
        """Return the epoch's inputs, (N, D + 1); None for the images as they are."""
        strength = group.trials[0].config.augmentation
        if not strength:
            return None
        assert not isinstance(self._data, ArrayData), "moving images needs torch"
        if self._moved is None or self._moved[:2] != (self.epoch, strength):
            from tune_softmax.engine.augmentation import augmented_epoch

            buffer = None if self._moved is None else self._moved[2]
            moved = augmented_epoch(
                self._data,
                strength=strength,
                seed=self._seed,
                epoch=self.epoch,
                out=buffer,
            )
            self._moved = (self.epoch, strength, moved)
        return self._moved[2]

    def _regroup(self, trials: Sequence[Trial]) -> None:
        self._groups = []
        if self._has_gpu_kernels:
            plain = [trial for trial in trials if _is_plain(trial.config)]
            self._groups += [self._gpu_group(plain)] if plain else []
            trials = [trial for trial in trials if not _is_plain(trial.config)]
        by_number = {trial.number: trial for trial in trials}
        configs = {n: trial.config for n, trial in by_number.items()}
        kernels = _kernels(self._data)
        uses_kernels = kernels is not None and self._precision == "float32"
        slice_rows = cpu_kernels.SLICE_ROWS if uses_kernels else None
        planned = plan_groups(configs, self._data, slice_rows)
        for numbers in planned:
            members = [by_number[number] for number in numbers]
            self._groups.append(self._group(members, kernels))

    def _gpu_group(self, trials: Sequence[Trial]) -> GpuGroup:
        from tune_softmax.engine.gpu_group import GpuGroup

        assert not isinstance(self._data, ArrayData), "see `_has_gpu_kernels`"
        return GpuGroup(trials, self._data, self._reduction, self._precision)

    def _group(self, trials: Sequence[Trial], kernels: Kernels | None) -> _Group:
        """Make the group that trains these trials fastest here."""
        data, reduction, precision = self._data, self._reduction, self._precision
        is_linear = not trials[0].config.hidden_units
        if is_linear and kernels and precision == "float32":
            arrays = data if isinstance(data, ArrayData) else data.arrays
            return CpuGroup(trials, arrays, reduction, kernels)
        from tune_softmax.engine.torch_group import HiddenGroup, LinearGroup

        assert not isinstance(data, ArrayData), "see `needs_torch`"
        if is_linear:
            return LinearGroup(trials, data, reduction, precision, kernels)
        return HiddenGroup(trials, data, reduction, precision)


def needs_torch(configs: Iterable[Config], precision: Precision) -> bool:
    """Return whether a pack on one CPU core needs more than the compiled kernels."""
    return (
        precision != "float32"
        or cpu_kernels.find() is None
        or not all(_is_plain(config) for config in configs)
    )


def _is_plain(config: Config) -> bool:
    """Whether a trial is softmax regression on the images as they are."""
    return not config.hidden_units and not config.augmentation


def _has_gpu_kernels(data: ArrayData | TensorData, precision: Precision) -> bool:
    """Whether the data is on a GPU whose Triton kernels train plain trials."""
    if isinstance(data, ArrayData) or data.device.type != "cuda":
        return False
    from tune_softmax.engine.gpu_check import fallback_reason

    return precision != "tf32" and data.real == np.float32 and fallback_reason(data.device) is None


def plan_groups(
    configs: Mapping[int, Config], data: ArrayData | TensorData, slice_rows: int | None = None
) -> list[list[int]]:
    """Decide which trials share mini-batches and matrix products.

    Trials of one width, one augmentation and one batch size always do. A block of them that is
    wide forms a group alone, which then takes the fewest steps; a narrow one joins the block with
    which its micro-batch is longest. With `slice_rows`, blocks that are still narrow join a wide
    one, whose steps then stay as long as a slice.

    Args:
        configs: Hyperparameters by trial number.
        data: The training set; a batch size beyond its length means all of it.
        slice_rows: Rows that a gradient's product adds up at a time. Batch sizes share a group
            only if their micro-batch is a multiple of it; then a trial's sums do not depend, to
            the last bit, on its neighbours. None sets no such condition.

    Returns:
        The numbers of each group's trials.
    """
    blocks: dict[tuple[float, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, config in sorted(configs.items()):
        kind = (config.augmentation, config.hidden_units)
        blocks[kind][effective_batch_size(config, data)].append(number)
    groups: list[list[int]] = []
    for (_, width), by_size in sorted(blocks.items()):
        columns = width or data.num_classes
        wide: list[tuple[int, list[int]]] = []  # (micro-batch, trials)
        narrow: list[tuple[int, list[int]]] = []
        for batch_size, numbers in sorted(by_size.items()):
            if len(numbers) * columns >= MIN_COLUMNS:
                wide.append((batch_size, numbers))
            else:
                narrow = _place(narrow, batch_size, numbers, slice_rows)
        if slice_rows is None:
            wide += narrow
        else:
            for rows, numbers in narrow:
                wide = _place(wide, rows, numbers, slice_rows)
        groups.extend(numbers for _, numbers in wide)
    return groups


def _place(
    groups: list[tuple[int, list[int]]],
    batch_size: int,
    numbers: list[int],
    slice_rows: int | None,
) -> list[tuple[int, list[int]]]:
    """Add a block to the group with the longest common micro-batch, or as a new group."""
    best = max(groups, key=lambda group: gcd(group[0], batch_size), default=None)
    rows = gcd(best[0], batch_size) if best else 0
    if slice_rows is not None:
        is_worth_it = rows > 0 and rows % slice_rows == 0
    else:
        is_worth_it = best is not None and rows >= min(MIN_MICRO_BATCH, best[0], batch_size)
    if best is None or not is_worth_it:
        return [*groups, (batch_size, numbers)]
    joined = (rows, [*best[1], *numbers])
    return [joined if group is best else group for group in groups]


def _kernels(data: ArrayData | TensorData) -> Kernels | None:
    """Return the compiled kernels if they train fastest here."""
    if isinstance(data, ArrayData):
        return cpu_kernels.find()
    import torch

    # They use one core; with more, torch's products are faster.
    is_one_core = data.device.type == "cpu" and torch.get_num_threads() == 1
    return cpu_kernels.find() if is_one_core else None


def _array(values: NDArray[Any] | Tensor) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    array: NDArray[Any] = values.cpu().numpy()
    return array
