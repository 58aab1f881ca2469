"""Groups of trials that torch's operations train, on any device, with or without a hidden layer.

Shape letters: P trials, B images in a micro-batch, D pixels, H hidden units, C classes.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from tune_softmax.engine.plan import Plan
from tune_softmax.engine.products import Products

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tune_softmax.config import Precision, Reduction
    from tune_softmax.engine.cpu_kernels import Kernels
    from tune_softmax.engine.plan import Trial
    from tune_softmax.engine.products import Terms
    from tune_softmax.engine.tensors import TensorData

__all__ = ["HiddenGroup", "LinearGroup"]

# Products have a multiple of this many columns: one of 10 columns takes longer than one of 16.
COLUMN_MULTIPLE = 8
# Rows per forward pass over the validation set.
EVALUATION_ROWS = 512


class _Layer:
    """One weight matrix of every trial in a group, its velocity, and the SGD step for both.

    Args:
        weights: Of all trials, with biases.
        velocity: The same shape.
        penalized: Selects the rows to which weight decay and L1 apply: weights, not biases.
        plan: The group's coefficients.
        broadcast: Turns a table (steps, 4, P) into one whose rows broadcast against the weights.
    """

    def __init__(
        self,
        weights: Tensor,
        velocity: Tensor,
        penalized: Callable[[Tensor], Tensor],
        plan: Plan,
        broadcast: Callable[[Tensor], Tensor],
    ) -> None:
        self._weights = weights
        self._velocity = velocity
        self._penalized_weights = penalized(weights)
        self._penalized_velocity = penalized(velocity)
        self._plan = plan
        self._broadcast = broadcast
        self._steps: Sequence[Tensor] = ()

    def begin_epoch(self, coefficients: NDArray[Any]) -> None:
        """Take the epoch's table of coefficients, (steps, 4, P)."""
        self._steps = self._broadcast(_tensor(coefficients, self._weights)).unbind()

    def begin_step(self, step: int) -> None:
        """Set the velocity to the new one without the loss's gradient, which is added later."""
        _, momentum, weight_decay, l1 = self._steps[step].unbind()
        if self._plan.has_momentum:
            self._velocity.mul_(momentum)
        else:
            self._velocity.zero_()
        if self._plan.has_weight_decay:
            self._penalized_velocity.addcmul_(self._penalized_weights, weight_decay)
        if self._plan.has_l1:
            self._penalized_velocity.addcmul_(self._penalized_weights.sign(), l1)

    def end_step(self, step: int) -> None:
        """Move the weights by -learning_rate * velocity."""
        self._weights.addcmul_(self._velocity, self._steps[step][0], value=-1)

    def advance(self, step: int, terms: Terms, kernels: Kernels) -> None:
        """End a step and begin the next, and split the weights into terms, in one pass."""
        kernels.step(
            self._weights, self._velocity, terms, self._steps[step], self._steps[step + 1]
        )


class LinearGroup:
    """Softmax regression: one product for all trials.

    Column c*P + p is class c of trial p, so that the softmax over classes runs over contiguous
    trials. Columns of zeros follow, which stay zero.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        data: TensorData,
        reduction: Reduction,
        precision: Precision = "float32",
        kernels: Kernels | None = None,
    ) -> None:
        """Copy the trials' weights and velocities into the group's.

        Args:
            trials: Of one augmentation, without a hidden layer.
            data: The images, on the device to train on.
            reduction: Whether a mini-batch's loss is the mean or the sum over its images.
            precision: In which to multiply.
            kernels: The compiled kernels, which split weights into terms on one CPU core.
        """
        self.trials = trials
        self.data = data
        self.products = Products(precision, data)
        self.plan = Plan([trial.config for trial in trials], data, reduction)
        self._shape = (data.num_classes, len(trials))
        self._num_columns = data.num_classes * len(trials)
        num_zeros = -self._num_columns % COLUMN_MULTIPLE
        self._weights, self._velocity = (
            pad(
                torch.stack(_layers(trials, data, 0, i), dim=-1).flatten(1),
                (0, num_zeros),
            )
            for i in (0, 1)
        )
        self._kernels = kernels
        self._terms: Terms = ()
        self._logits = self._weights.new_empty(0)
        self.parameters = [
            _Layer(
                self._weights,
                self._velocity,
                lambda tensor: tensor[:-1],
                self.plan,
                # Repeated for every class, so that torch's innermost loop runs over all columns.
                lambda table: pad(table.repeat(1, 1, data.num_classes), (0, num_zeros)),
            )
        ]

    def train_epoch(
        self, order: NDArray[np.int64], epoch: int, inputs: Tensor | None
    ) -> list[tuple[float, float]]:
        """Train for epoch number `epoch`; return each trial's loss and accuracy.

        Args:
            order: The images' order, int64, (N,).
            epoch: From 1.
            inputs: (N, D + 1) in place of the images, or None for these.
        """
        return _train_epoch(self, order, epoch, inputs)

    def evaluate(self) -> list[tuple[float, float]]:
        """Return each trial's loss and accuracy on the validation set."""
        return _evaluate(self)

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocity, (D + 1, C) each."""
        weights, velocity = (
            tensor[:, : self._num_columns].unflatten(1, self._shape)[..., p].clone()
            for tensor in (self._weights, self._velocity)
        )
        return [(weights, velocity)]

    def begin_step(self, step: int) -> None:
        """Prepare the velocity and the weights' terms, unless `advance` has."""
        if self._kernels is None or step == 0:
            self.parameters[0].begin_step(step)
            self.take_weights()

    def end_step(self, step: int) -> None:
        """Move the weights."""
        if self._kernels is None or step + 1 == self.plan.num_steps:
            self.parameters[0].end_step(step)
        else:
            self.parameters[0].advance(step, self._terms, self._kernels)

    def take_weights(self) -> None:
        """Use the current weights for the logits that follow."""
        self._terms = self.products.weights(self._weights)

    def logits(self, inputs: Terms) -> Tensor:
        """Return logits, (B, C, P), for inputs (B, D + 1)."""
        num_rows = len(inputs[0])
        if len(self._logits) < num_rows:
            self._logits = self._weights.new_empty(num_rows, self._weights.shape[1])
        logits = self.products.logits(inputs, self._terms, self._logits[:num_rows])
        by_trial: Tensor = logits[:, : self._num_columns].unflatten(1, self._shape)
        return by_trial

    def add_gradient(self, inputs: Terms, residual: Tensor) -> None:  # noqa: ARG002
        """Add the loss's gradient to the velocity; the residual has replaced the logits."""
        self.products.add_gradient(inputs, self._logits[: len(inputs[0])], self._velocity)


class HiddenGroup:
    """One hidden ReLU layer, of one width: its first layer is one product for all trials.

    Column p*H + h of the first layer is unit h of trial p; the second layer is (P, H + 1, C).
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        data: TensorData,
        reduction: Reduction,
        precision: Precision = "float32",
    ) -> None:
        self.trials = trials
        self.data = data
        self.products = Products(precision, data)
        self.plan = Plan([trial.config for trial in trials], data, reduction)
        self._shape = (len(trials), trials[0].config.hidden_units)
        self._first, self._first_velocity = (
            torch.cat(_layers(trials, data, 0, i), dim=1) for i in (0, 1)
        )
        self._second, self._second_velocity = (
            torch.stack(_layers(trials, data, 1, i)) for i in (0, 1)
        )
        self._terms: Terms = ()
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

    def train_epoch(
        self, order: NDArray[np.int64], epoch: int, inputs: Tensor | None
    ) -> list[tuple[float, float]]:
        """Train for epoch number `epoch`; return each trial's loss and accuracy.

        Args:
            order: The images' order, int64, (N,).
            epoch: From 1.
            inputs: (N, D + 1) in place of the images, or None for these.
        """
        return _train_epoch(self, order, epoch, inputs)

    def evaluate(self) -> list[tuple[float, float]]:
        """Return each trial's loss and accuracy on the validation set."""
        return _evaluate(self)

    def layers(self, p: int) -> list[tuple[Tensor, Tensor]]:
        """Return a copy of trial p's weights and velocities, (D + 1, H) and (H + 1, C)."""
        first, velocity = (
            tensor.unflatten(1, self._shape)[:, p].clone()
            for tensor in (self._first, self._first_velocity)
        )
        return [(first, velocity), (self._second[p].clone(), self._second_velocity[p].clone())]

    def begin_step(self, step: int) -> None:
        """Prepare the velocities and the weights' terms."""
        for parameter in self.parameters:
            parameter.begin_step(step)
        self.take_weights()

    def end_step(self, step: int) -> None:
        """Move the weights."""
        for parameter in self.parameters:
            parameter.end_step(step)

    def take_weights(self) -> None:
        """Use the current weights for the logits that follow."""
        self._terms = self.products.weights(self._first)

    def logits(self, inputs: Terms) -> Tensor:
        """Return logits, (B, C, P), for inputs (B, D + 1)."""
        hidden = self._first.new_empty(len(inputs[0]), self._first.shape[1])  # (B, P * H)
        self.products.logits(inputs, self._terms, hidden).relu_()
        self._hidden = hidden.unflatten(1, self._shape).transpose(0, 1)  # (P, B, H)
        bias, weights = self._second[:, -1:], self._second[:, :-1]
        return torch.baddbmm(bias, self._hidden, weights).permute(1, 2, 0).contiguous()

    def add_gradient(self, inputs: Terms, residual: Tensor) -> None:
        """Add the loss's gradient to the velocities, from the residual of the last logits."""
        residual = residual.permute(2, 0, 1).contiguous()  # (P, B, C)
        self._second_velocity[:, :-1].baddbmm_(self._hidden.mT, residual)
        self._second_velocity[:, -1:] += residual.sum(1, keepdim=True)
        hidden_residual = torch.bmm(residual, self._second[:, :-1].mT)  # (P, B, H)
        hidden_residual.mul_(self._hidden > 0)
        by_image = hidden_residual.transpose(0, 1).flatten(1)  # (B, P * H)
        self.products.add_gradient(inputs, by_image, self._first_velocity)


def _layers(trials: Sequence[Trial], data: TensorData, layer: int, part: int) -> list[Tensor]:
    """Return every trial's weights (part 0) or velocity (part 1) of a layer, on the device."""
    return [torch.as_tensor(trial.layers[layer][part], device=data.device) for trial in trials]


def _tensor(table: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(table.copy()).to(like.device)


class _Tally:
    """Sums of cross-entropy and correct predictions, a row a step; none waits for the GPU."""

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
    group: LinearGroup | HiddenGroup,
    order: NDArray[np.int64],
    epoch: int,
    moved: Tensor | None,
) -> list[tuple[float, float]]:
    """Train on every micro-batch once; return each trial's loss and accuracy."""
    plan, data, products = group.plan, group.data, group.products
    inputs = products.train_inputs if moved is None else moved
    buffer = inputs.new_empty(plan.rows, data.num_features + 1)
    tally = _Tally(plan.num_steps, len(group.trials), data.device)
    coefficients = plan.coefficients(epoch)
    for parameter in group.parameters:
        parameter.begin_epoch(coefficients)
    loss_weights = _tensor(plan.loss_weights, inputs).unbind()
    indices = torch.from_numpy(order).to(data.device)
    targets = _targets(data.train.labels[indices], len(group.trials)).split(plan.rows)
    for step, micro_batch in enumerate(indices.split(plan.rows)):
        group.begin_step(step)
        x = buffer[: len(micro_batch)]
        torch.index_select(inputs, 0, micro_batch, out=x)
        terms = (x,) if moved is None else products.moved(x)
        logits = group.logits(terms)
        denominator = _tally_softmax(logits, targets[step], tally, step)
        # The residual, weight * (softmax - one-hot): Murphy 2022, equation 10.60.
        weights = loss_weights[step]  # (P,)
        logits.mul_(weights / denominator)
        logits.scatter_add_(1, targets[step], (-weights).expand_as(denominator))
        group.add_gradient(terms, logits)
        group.end_step(step)
    return tally.means(len(order))


def _evaluate(group: LinearGroup | HiddenGroup) -> list[tuple[float, float]]:
    """Return each trial's loss and accuracy on the validation set."""
    data = group.data
    images = data.validation
    tally = _Tally(ceil(len(images) / EVALUATION_ROWS), len(group.trials), data.device)
    targets = _targets(images.labels, len(group.trials)).split(EVALUATION_ROWS)
    group.take_weights()
    for step, x in enumerate(group.products.validation_inputs.split(EVALUATION_ROWS)):
        _tally_softmax(group.logits((x,)), targets[step], tally, step)
    return tally.means(len(images))


def _targets(labels: Tensor, num_trials: int) -> Tensor:
    """Return labels as an index into logits, (N, 1, P)."""
    return labels.view(-1, 1, 1).expand(-1, 1, num_trials)


def _tally_softmax(logits: Tensor, targets: Tensor, tally: _Tally, step: int) -> Tensor:
    """Record cross-entropy and correct predictions; replace logits z by exp(z - max z).

    Args:
        logits: (B, C, P), overwritten.
        targets: int64, (B, 1, P).
        tally: Records sums over the batch.
        step: The tally's row.

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
