"""Train P configurations at once as one matrix product; each means what `training.py` means.

Shape letters: P trials in the pack, B images in a micro-batch, D pixels, H hidden units,
C classes. Every weight matrix carries its bias as a last row, which inputs meet with a one.

A pack splits itself into groups that share mini-batches and matrix products. A group walks
micro-batches of the greatest common divisor of its batch sizes. A trial whose batch is m
micro-batches adds up its gradient with its weights untouched and updates on every m-th: tables
of coefficients say, for every micro-batch and trial, which of these it does, so that one pass
over the weights serves all trials and each makes exactly its own SGD's steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn.functional import pad

from tune_softmax.errors import PackError
from tune_softmax.metrics import EpochMetrics
from tune_softmax.model import initial_weights, layer_widths
from tune_softmax.tensors import sample_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from tune_softmax.config import Config, Reduction
    from tune_softmax.tensors import TensorData

__all__ = ["Pack", "TrialState", "plan_groups"]

# Trials of one batch size with fewer columns than this, all together, share a group with others:
# a narrow product is inefficient, and costs as many steps as a wide one.
MIN_COLUMNS = 128
# They do so only while the group's micro-batch stays at least this long, for below it the fixed
# cost of a step outweighs the wider product.
MIN_MICRO_BATCH = 32
# A product's columns are filled up to a multiple of this: one of 10 takes longer than one of 16.
COLUMN_MULTIPLE = 8
# Rows per forward pass over the validation set.
EVALUATION_ROWS = 512


TrialState: TypeAlias = "list[tuple[Tensor, Tensor]]"
"""Per layer a trial's weights and velocity, float32, (in + 1, out) each, on the CPU."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One trial between two groupings.

    Attributes:
        number: The trial's number.
        config: Its hyperparameters.
        layers: Per layer its weights and its velocity, float32, (in + 1, out) each.
    """

    number: int
    config: Config
    layers: list[tuple[Tensor, Tensor]]


class Pack:
    """Trials that train side by side on one device, one epoch at a time."""

    def __init__(
        self,
        configs: Mapping[int, Config],
        data: TensorData,
        *,
        seed: int,
        reduction: Reduction = "mean",
        initial_std: float = 0.01,
        epoch: int = 0,
        states: Mapping[int, TrialState] | None = None,
    ) -> None:
        """Draw every trial's initial weights, or go on from where another pack left them.

        Args:
            configs: Hyperparameters by trial number.
            data: Training and validation images on the device to train on.
            seed: The experiment's seed.
            reduction: Whether a mini-batch's loss is the mean or the sum over its images.
            initial_std: Standard deviation of the initial weights.
            epoch: How many epochs the trials have trained already.
            states: What another pack's `state` gave for each trial, where that is not 0.

        Raises:
            PackError: There is no trial to train.
        """
        if not configs:
            raise PackError("a pack needs at least one trial, got none")
        self.epoch = epoch
        self._data = data
        self._seed = seed
        self._reduction: Reduction = reduction
        self._finished: dict[int, _Trial] = {}
        self._groups: list[_LinearGroup | _HiddenGroup] = []
        trials = []
        for number, config in configs.items():
            if states is not None:
                layers = [(w.to(data.device), v.to(data.device)) for w, v in states[number]]
                trials.append(_Trial(number, config, layers))
                continue
            widths = layer_widths(data.num_features, config.hidden_units, data.num_classes)
            layers = []
            for weight in initial_weights(seed, number, widths, initial_std):
                weights = torch.zeros(weight.shape[1] + 1, weight.shape[0])
                weights[:-1] = weight.T
                weights = weights.to(data.device)
                layers.append((weights, torch.zeros_like(weights)))
            trials.append(_Trial(number, config, layers))
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
        order = sample_order(self._seed, self.epoch, len(self._data.train)).to(self._data.device)
        measured: dict[int, tuple[float, float, float, float]] = {}
        for group in self._groups:
            train = _train_epoch(group, self._data, order, self.epoch)
            validation = _evaluate(group, self._data)
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
        """Take trials out of the pack; their neighbours go on undisturbed."""
        leaving = set(numbers)
        if not leaving:
            return
        trials = self._trials()
        self._finished |= {trial.number: trial for trial in trials if trial.number in leaving}
        self._regroup([trial for trial in trials if trial.number not in leaving])

    def weights(self, number: int) -> list[Tensor]:
        """Return a trial's weights, whether it still trains or has left.

        Args:
            number: The trial's number.

        Returns:
            One tensor a layer, float32, (in + 1, out); the last row is the bias.
        """
        trials = self._finished | {trial.number: trial for trial in self._trials()}
        return [weights for weights, _ in trials[number].layers]

    def state(self, number: int) -> TrialState:
        """Return what another pack needs to go on with a trial that still trains."""
        trials = {trial.number: trial for trial in self._trials()}
        return [(weights.cpu(), velocity.cpu()) for weights, velocity in trials[number].layers]

    def _trials(self) -> list[_Trial]:
        """Copy every trial out of its group."""
        return [
            replace(trial, layers=group.layers(p))
            for group in self._groups
            for p, trial in enumerate(group.trials)
        ]

    def _regroup(self, trials: Sequence[_Trial]) -> None:
        by_number = {trial.number: trial for trial in trials}
        planned = plan_groups({n: trial.config for n, trial in by_number.items()}, self._data)
        self._groups = []
        for numbers in planned:
            members = [by_number[number] for number in numbers]
            kind = _HiddenGroup if members[0].config.hidden_units else _LinearGroup
            self._groups.append(kind(members, self._data, self._reduction))


def plan_groups(configs: Mapping[int, Config], data: TensorData) -> list[list[int]]:
    """Decide which trials share mini-batches and matrix products.

    Trials of one width and one batch size always do. Wide blocks stand alone, for then a group
    takes the fewest steps; narrow ones join the block with which their micro-batch is longest.

    Args:
        configs: Hyperparameters by trial number.
        data: The training set; a batch size beyond its length means all of it.

    Returns:
        The numbers of each group's trials.
    """
    blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, config in sorted(configs.items()):
        blocks[config.hidden_units, _batch_size(config, data)].append(number)
    groups: list[list[int]] = []
    for width in sorted({width for width, _ in blocks}):
        columns = width or data.num_classes
        narrow: list[tuple[int, list[int]]] = []  # (micro-batch, trials)
        for (block_width, batch_size), numbers in sorted(blocks.items()):
            if block_width != width:
                continue
            if len(numbers) * columns >= MIN_COLUMNS:
                groups.append(numbers)
            else:
                narrow = _place(narrow, batch_size, numbers)
        groups.extend(numbers for _, numbers in narrow)
    return groups


def _place(
    narrow: list[tuple[int, list[int]]], batch_size: int, numbers: list[int]
) -> list[tuple[int, list[int]]]:
    """Add one block to the narrow group that suits it best, or as a group of its own."""
    best = max(narrow, key=lambda group: gcd(group[0], batch_size), default=None)
    if best is None or gcd(best[0], batch_size) < min(MIN_MICRO_BATCH, best[0], batch_size):
        return [*narrow, (batch_size, numbers)]
    joined = (gcd(best[0], batch_size), [*best[1], *numbers])
    return [joined if group is best else group for group in narrow]


def _batch_size(config: Config, data: TensorData) -> int:
    return min(config.batch_size, len(data.train))


class _Plan:
    """What every trial of a group does at each micro-batch of an epoch, as tables (steps, P).

    Attributes:
        rows: Images in a micro-batch, the greatest common divisor of the batch sizes.
        loss_weights: What an image's loss counts in its mini-batch: 1/B for the mean, 1 for the
            sum; an epoch's last batch divides by its own length.
        momentum: The trial's where its batch begins, 1 within a batch.
        weight_decay: The trial's where its batch begins, 0 within a batch.
        l1: Likewise.
    """

    def __init__(self, configs: Sequence[Config], data: TensorData, reduction: Reduction) -> None:
        self._configs = configs
        self._num_samples = len(data.train)
        self._device = data.device
        self._dtype = torch.get_default_dtype()
        sizes = [_batch_size(config, data) for config in configs]
        self.rows = gcd(*sizes)
        self.num_steps = ceil(self._num_samples / self.rows)
        starts = torch.arange(self.num_steps).unsqueeze(1) * self.rows  # (steps, 1)
        batch_sizes = torch.tensor(sizes)  # (P,)
        ends = (starts + self.rows).clamp(max=self._num_samples)
        begins = starts % batch_sizes == 0  # (steps, P)
        self._updates = (ends % batch_sizes == 0) | (ends == self._num_samples)
        self._batches = starts // batch_sizes
        lengths = (self._num_samples - self._batches * batch_sizes).clamp(max=batch_sizes)
        weights = 1.0 / lengths if reduction == "mean" else torch.ones(lengths.shape)
        self.loss_weights = self._table(weights)
        self.momentum = self._coefficients("momentum", begins, within=1.0)
        self.weight_decay = self._coefficients("weight_decay", begins, within=0.0)
        self.l1 = self._coefficients("l1", begins, within=0.0)

    def _table(self, values: Tensor) -> Tensor:
        return values.to(self._device, self._dtype)

    def _coefficients(self, name: str, begins: Tensor, *, within: float) -> Tensor | None:
        """Return the table of one hyperparameter, or None where it is 0 everywhere."""
        values = torch.tensor([float(getattr(config, name)) for config in self._configs])
        if begins.all():  # one row serves every step
            table = values.expand(self.num_steps, -1)
        else:
            table = torch.where(begins, values, within)
        return self._table(table) if table.any() else None

    def learning_rates(self, epoch: int) -> Tensor:
        """Return the epoch's step sizes, (steps, P): 0 where a trial does not update."""
        factors: dict[tuple[str, int, int], Tensor] = {}
        columns = []
        for p, config in enumerate(self._configs):
            key = (config.learning_rate_schedule, config.num_epochs, config.batch_size)
            if key not in factors:
                per_epoch = ceil(self._num_samples / config.batch_size)
                num_steps = config.num_steps(self._num_samples)
                first = (epoch - 1) * per_epoch
                by_batch = torch.tensor(
                    [
                        config.learning_rate_factor(first + batch, num_steps)
                        for batch in range(per_epoch)
                    ],
                    dtype=torch.float64,
                )
                factors[key] = by_batch[self._batches[:, p]]
            columns.append(config.learning_rate * factors[key])
        return self._table(torch.stack(columns, dim=1) * self._updates)


class _Layer:
    """One weight matrix of every trial in a group, its velocity, and how SGD moves them.

    Every step reads one row of each table, so tables are kept as lists of rows.

    Args:
        weights: Of all trials, biases too.
        velocity: The same shape.
        penalized: Picks the rows to which weight decay and L1 apply: weights, not biases.
        plan: The group's tables.
        widen: Turns a table (steps, P) into one whose rows broadcast against the weights.
    """

    def __init__(
        self,
        weights: Tensor,
        velocity: Tensor,
        penalized: Callable[[Tensor], Tensor],
        plan: _Plan,
        widen: Callable[[Tensor], Tensor],
    ) -> None:
        def rows(table: Tensor | None) -> Sequence[Tensor] | None:
            if table is None:
                return None
            if table.stride(0):
                return widen(table).unbind()
            return widen(table[:1]).unbind() * len(table)  # the same row for all steps

        self._weights = weights
        self._velocity = velocity
        self._penalized_weights = penalized(weights)
        self._penalized_velocity = penalized(velocity)
        self._widen = widen
        self._momentum = rows(plan.momentum)
        self._weight_decay = rows(plan.weight_decay)
        self._l1 = rows(plan.l1)
        self._rates: Sequence[Tensor] = ()

    def begin_epoch(self, learning_rates: Tensor) -> None:
        """Take the epoch's step sizes, (steps, P)."""
        self._rates = self._widen(learning_rates).unbind()

    def begin_step(self, step: int) -> None:
        """Set the velocity to all of the new one but the loss's gradient, which adds itself."""
        if self._momentum is None:
            self._velocity.zero_()
        else:
            self._velocity.mul_(self._momentum[step])
        if self._weight_decay is not None:
            self._penalized_velocity.addcmul_(self._penalized_weights, self._weight_decay[step])
        if self._l1 is not None:
            self._penalized_velocity.addcmul_(self._penalized_weights.sign(), self._l1[step])

    def end_step(self, step: int) -> None:
        """Move the weights by -learning_rate * velocity."""
        self._weights.addcmul_(self._velocity, self._rates[step], value=-1)


class _LinearGroup:
    """Softmax regression: one product for all trials.

    Column c*P + p is class c of trial p, so that the softmax over classes runs over contiguous
    trials. Columns of zeros follow, which stay zero.
    """

    def __init__(self, trials: Sequence[_Trial], data: TensorData, reduction: Reduction) -> None:
        self.trials = trials
        self.plan = _Plan([trial.config for trial in trials], data, reduction)
        self._shape = (data.num_classes, len(trials))
        self._num_columns = data.num_classes * len(trials)
        num_zeros = -self._num_columns % COLUMN_MULTIPLE
        self._weights, self._velocity = (
            pad(
                torch.stack([trial.layers[0][i] for trial in trials], dim=-1).flatten(1),
                (0, num_zeros),
            )
            for i in (0, 1)
        )
        self._logits = self._weights.new_empty(0)
        self.parameters = [
            _Layer(
                self._weights,
                self._velocity,
                lambda tensor: tensor[:-1],
                self.plan,
                # Repeated for every class, so that the innermost loop runs over all columns.
                lambda table: pad(table.repeat(1, data.num_classes), (0, num_zeros)),
            )
        ]

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocity, (D + 1, C) each."""
        weights, velocity = (
            tensor[:, : self._num_columns].unflatten(1, self._shape)[..., p].clone()
            for tensor in (self._weights, self._velocity)
        )
        return [(weights, velocity)]

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits, (B, C, P), for inputs (B, D + 1)."""
        if self._logits.shape[0] < len(inputs):
            self._logits = inputs.new_empty(len(inputs), self._weights.shape[1])
        logits = torch.mm(inputs, self._weights, out=self._logits[: len(inputs)])
        by_trial: Tensor = logits[:, : self._num_columns].unflatten(1, self._shape)
        return by_trial

    def add_gradient(self, inputs: Tensor, residual: Tensor) -> None:  # noqa: ARG002
        """Add the loss's gradient to the velocity; the residual is where the logits were."""
        self._velocity.addmm_(inputs.T, self._logits[: len(inputs)])


class _HiddenGroup:
    """One hidden ReLU layer, of one width: its first layer is one product for all trials.

    Column p*H + h of the first layer is unit h of trial p; the second layer is (P, H + 1, C).
    """

    def __init__(self, trials: Sequence[_Trial], data: TensorData, reduction: Reduction) -> None:
        self.trials = trials
        self.plan = _Plan([trial.config for trial in trials], data, reduction)
        self._shape = (len(trials), trials[0].config.hidden_units)
        self._first, self._first_velocity = (
            torch.cat([trial.layers[0][i] for trial in trials], dim=1) for i in (0, 1)
        )
        self._second, self._second_velocity = (
            torch.stack([trial.layers[1][i] for trial in trials]) for i in (0, 1)
        )
        self._hidden = self._first.new_empty(0)
        self.parameters = [
            _Layer(
                self._first.unflatten(1, self._shape),  # (D + 1, P, H)
                self._first_velocity.unflatten(1, self._shape),
                lambda tensor: tensor[:-1],
                self.plan,
                lambda table: table.unsqueeze(-1),
            ),
            _Layer(
                self._second,  # (P, H + 1, C)
                self._second_velocity,
                lambda tensor: tensor[:, :-1],
                self.plan,
                lambda table: table[..., None, None],
            ),
        ]

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocities, (D + 1, H) and (H + 1, C)."""
        first, velocity = (
            tensor.unflatten(1, self._shape)[:, p].clone()
            for tensor in (self._first, self._first_velocity)
        )
        return [(first, velocity), (self._second[p].clone(), self._second_velocity[p].clone())]

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits, (B, C, P), for inputs (B, D + 1)."""
        hidden = torch.mm(inputs, self._first).relu_()  # (B, P * H)
        self._hidden = hidden.unflatten(1, self._shape).transpose(0, 1)  # (P, B, H)
        bias, weights = self._second[:, -1:], self._second[:, :-1]
        return torch.baddbmm(bias, self._hidden, weights).permute(1, 2, 0).contiguous()

    def add_gradient(self, inputs: Tensor, residual: Tensor) -> None:
        """Add the loss's gradient to the velocities, from the residual of the last logits."""
        residual = residual.permute(2, 0, 1).contiguous()  # (P, B, C)
        self._second_velocity[:, :-1].baddbmm_(self._hidden.mT, residual)
        self._second_velocity[:, -1:] += residual.sum(1, keepdim=True)
        hidden_residual = torch.bmm(residual, self._second[:, :-1].mT)  # (P, B, H)
        hidden_residual.mul_(self._hidden > 0)
        self._first_velocity.addmm_(inputs.T, hidden_residual.transpose(0, 1).flatten(1))


class _Tally:
    """Sums of cross-entropy and of right answers, one row a step so that nothing synchronizes."""

    def __init__(self, num_steps: int, num_trials: int, device: torch.device) -> None:
        self._loss = torch.empty(num_steps, num_trials, device=device)
        self._num_correct = torch.empty(num_steps, num_trials, dtype=torch.int64, device=device)
        self.loss_rows = self._loss.unbind()
        self.num_correct_rows = self._num_correct.unbind()

    def means(self, num_samples: int) -> list[tuple[float, float]]:
        """Return (loss, accuracy) for each trial."""
        losses = self._loss.sum(0, dtype=torch.float64) / num_samples
        accuracies = self._num_correct.sum(0).to(torch.float64) / num_samples
        return list(zip(losses.tolist(), accuracies.tolist(), strict=True))


def _train_epoch(
    group: _LinearGroup | _HiddenGroup, data: TensorData, order: Tensor, epoch: int
) -> list[tuple[float, float]]:
    """Walk the training set once in micro-batches; return each trial's loss and accuracy."""
    plan = group.plan
    buffer = data.train_inputs.new_empty(plan.rows, data.num_features + 1)
    tally = _Tally(plan.num_steps, len(group.trials), data.device)
    learning_rates = plan.learning_rates(epoch)
    for parameter in group.parameters:
        parameter.begin_epoch(learning_rates)
    loss_weights = plan.loss_weights.unbind()
    targets = _targets(data.train.labels[order], len(group.trials)).split(plan.rows)
    for step, micro_batch in enumerate(order.split(plan.rows)):
        for parameter in group.parameters:
            parameter.begin_step(step)
        x = buffer[: len(micro_batch)]
        torch.index_select(data.train_inputs, 0, micro_batch, out=x)
        logits = group.logits(x)
        denominator = _tally_softmax(logits, targets[step], tally, step)
        # The residual, weight * (softmax - one-hot): Murphy 2022, equation 10.60.
        weights = loss_weights[step]  # (P,)
        logits.mul_(weights / denominator)
        logits.scatter_add_(1, targets[step], (-weights).expand_as(denominator))
        group.add_gradient(x, logits)
        for parameter in group.parameters:
            parameter.end_step(step)
    return tally.means(len(order))


def _evaluate(group: _LinearGroup | _HiddenGroup, data: TensorData) -> list[tuple[float, float]]:
    """Return each trial's loss and accuracy on the validation set."""
    images = data.validation
    tally = _Tally(ceil(len(images) / EVALUATION_ROWS), len(group.trials), data.device)
    targets = _targets(images.labels, len(group.trials)).split(EVALUATION_ROWS)
    for step, x in enumerate(data.validation_inputs.split(EVALUATION_ROWS)):
        _tally_softmax(group.logits(x), targets[step], tally, step)
    return tally.means(len(images))


def _targets(labels: Tensor, num_trials: int) -> Tensor:
    """Return labels as an index into logits, (N, 1, P)."""
    return labels.view(-1, 1, 1).expand(-1, 1, num_trials)


def _tally_softmax(logits: Tensor, targets: Tensor, tally: _Tally, step: int) -> Tensor:
    """Record cross-entropy and right answers; turn logits z into exp(z - max z).

    Args:
        logits: (B, C, P), overwritten.
        targets: int64, (B, 1, P).
        tally: Where sums over the batch are recorded.
        step: In which row.

    Returns:
        The softmax's denominator, (B, 1, P).
    """
    largest, predicted = logits.max(dim=1, keepdim=True)
    logits.sub_(largest)
    of_label = logits.gather(1, targets)
    denominator = logits.exp_().sum(1, keepdim=True)
    torch.sum(denominator.log().sub_(of_label), (0, 1), out=tally.loss_rows[step])
    torch.sum(predicted.eq_(targets), (0, 1), out=tally.num_correct_rows[step])
    return denominator
