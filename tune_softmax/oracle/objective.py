"""The objective of softmax regression with an L2 penalty, its gradient, and the best bias.

The objective is P(W, b) = L(W, b) + lambda/2 ||W||^2 with the mean cross-entropy L; the bias is
not penalized. Pixels are centred, which changes the optimum's bias and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from tune_softmax.engine.tensors import Images, TensorData

__all__ = ["Point", "Problem", "evaluate"]

# The most steps to the best bias for given weights; it takes about five.
MAX_BIAS_STEPS = 100


class Problem:
    """Training and validation images as the solver sees them.

    Args:
        data: The images, on the CPU.

    Attributes:
        inputs: Training pixels minus their means, and a last column of ones, float64, (N, D + 1).
        inputs32: The same in float32, for products with the Hessian.
        labels: int64, (N,).
        frequencies: Of the classes among the training images, float64, (C,).
        validation_inputs: Validation pixels minus the same means, and ones, float64, (M, D + 1).
        validation_labels: int64, (M,).
        means: Of the training pixels in [0, 1], float64, (D,).
        radius: R, the greatest length of a centred training image.
        rms: r, the root of the mean squared length of the centred training images.
        validation_rms: The same of the validation images.
    """

    def __init__(self, data: TensorData) -> None:
        pixels = _unit_interval(data.train, data.pixel_max)
        self.means = pixels.mean(0)
        self.inputs = _centred(pixels, self.means)
        self.inputs32 = self.inputs.float()
        self.labels = data.train.labels
        counts = torch.bincount(self.labels, minlength=data.num_classes)
        self.frequencies = counts.double() / len(self.labels)
        pixels = _unit_interval(data.validation, data.pixel_max)
        self.validation_inputs = _centred(pixels, self.means)
        self.validation_labels = data.validation.labels
        squares = self.inputs[:, :-1].square().sum(1)
        self.radius = math.sqrt(squares.max().item())
        self.rms = math.sqrt(squares.mean().item())
        validation_squares = self.validation_inputs[:, :-1].square().sum(1)
        self.validation_rms = math.sqrt(validation_squares.mean().item())

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.frequencies)

    def penalties(self, weight_decay: float) -> Tensor:
        """Return what the penalty adds to the Hessian's diagonal, (D + 1,): 0 for the bias."""
        values = torch.full((self.inputs.shape[1],), weight_decay, dtype=torch.float64)
        values[-1] = 0
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Weights, the bias that is best for them, and what the objective is there.

    Attributes:
        parameters: W and, as the last column, the bias for centred pixels, float64, (C, D + 1);
            every column sums to zero.
        train_loss: L, in nats.
        objective: P.
        gradient: Of P, the last column that of the bias, float64, (C, D + 1).
        probabilities: Of the training images' classes, float32, (N, C).
        bias_curvature: mu, the least eigenvalue of the mean covariance of the class indicators,
            among directions that sum to zero.
    """

    parameters: Tensor
    train_loss: float
    objective: float
    gradient: Tensor
    probabilities: Tensor
    bias_curvature: float

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient."""
        return float(self.gradient.norm())


def evaluate(problem: Problem, parameters: Tensor, weight_decay: float) -> Point:
    """Evaluate the objective at weights and the bias that is best for them.

    Args:
        problem: What to fit.
        parameters: Float64, (C, D + 1), columns that sum to zero; the last is where the search
            for the bias begins.
        weight_decay: lambda.
    """
    logits = problem.inputs @ parameters.T
    shift, probabilities, curvature = _fit_bias(logits, problem.frequencies)
    parameters = parameters.clone()
    parameters[:, -1] += shift
    train_loss = cross_entropy(logits + shift, problem.labels).item()
    weights = parameters[:, :-1]
    rounded = probabilities.float()
    probabilities[torch.arange(len(logits)), problem.labels] -= 1
    gradient = probabilities.T @ problem.inputs / len(logits)
    gradient[:, :-1] += weight_decay * weights
    return Point(
        parameters=parameters,
        train_loss=train_loss,
        objective=train_loss + weight_decay / 2 * weights.square().sum().item(),
        gradient=gradient,
        probabilities=rounded,
        bias_curvature=curvature,
    )


def _fit_bias(logits: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor, float]:
    """Find what to add to the logits so that mean probabilities are the classes' frequencies.

    That minimizes the loss over the bias. Newton steps of length log(1 + z) / z, z the range of
    the step, always go down and become whole ones: they minimize the upper bound that
    self-concordance gives (Bach 2010, proposition 1).

    Args:
        logits: Float64, (N, C).
        frequencies: Float64, (C,), all positive.

    Returns:
        The shift, float64, (C,), which sums to zero; the probabilities, float64, (N, C); the
        least eigenvalue of the mean covariance among directions that sum to zero.
    """
    num_rows, num_classes = logits.shape
    shift = torch.zeros_like(frequencies)
    ones = torch.full((num_classes, num_classes), 1 / num_classes, dtype=torch.float64)
    previous = math.inf
    for _ in range(MAX_BIAS_STEPS):
        probabilities = torch.softmax(logits + shift, 1)
        means = probabilities.mean(0)
        covariance = means.diag() - probabilities.T @ probabilities / num_rows
        gradient = means - frequencies
        norm = gradient.norm().item()
        # At rounding's level it no longer falls; before, it may rise while steps are short.
        if norm < 1e-16 or (norm < 1e-9 and norm > previous / 2):  # noqa: PLR2004
            break
        previous = norm
        step = torch.linalg.lstsq(covariance + ones, -gradient[:, None], driver="gelsd").solution
        step = step[:, 0] - step.mean()
        reach = (step.max() - step.min()).item()
        if reach == 0:
            break
        shift = shift + step * (math.log1p(reach) / reach)
    eigenvalues: Tensor = torch.linalg.eigvalsh(covariance)
    return shift, probabilities, eigenvalues[1].item()


def _unit_interval(images: Images, pixel_max: int) -> Tensor:
    return images.pixels.double() / pixel_max


def _centred(pixels: Tensor, means: Tensor) -> Tensor:
    return torch.cat([pixels - means, torch.ones(len(pixels), 1, dtype=torch.float64)], 1)
