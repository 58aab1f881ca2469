"""Find the optimum of softmax regression with an L2 penalty by Newton's method.

`objective.py` evaluates a point, `certificate.py` bounds how far it is from the optimum.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from tune_softmax.oracle.certificate import certify
from tune_softmax.oracle.objective import evaluate
from tune_softmax.oracle.preconditioner import Preconditioner

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tune_softmax.oracle.certificate import Certificate
    from tune_softmax.oracle.objective import Point, Problem

__all__ = ["Optimum", "Solver"]

# The most Newton steps for a penalty; it takes about ten.
MAX_STEPS = 60
# The most products with the Hessian in a Newton step.
MAX_PRODUCTS = 500
# How far a direction reduces the gradient, in the preconditioner's norm. A smaller value costs
# more products in each step and saves none in all.
FORCING = 0.1
# Known optima from which the next one's start is extrapolated.
ORDER = 3
# Relative rounding of an objective that is summed over many images.
ROUNDING = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """The optimum for one penalty, as nearly as it was found.

    Attributes:
        weight_decay: lambda.
        weights: W, float64, (C, D), for pixels in [0, 1].
        bias: float64, (C,), for the same pixels.
        train_loss: Mean cross-entropy in nats, without the penalty.
        objective: The same with the penalty.
        validation_loss: Mean cross-entropy in nats.
        validation_accuracy: In [0, 1].
        gradient_norm: Of the objective.
        certificate: How near it is.
        num_iterations: Newton steps.
        num_products: Products of the Hessian with a vector.
        seconds: Wall clock.
    """

    weight_decay: float
    weights: Tensor
    bias: Tensor
    train_loss: float
    objective: float
    validation_loss: float
    validation_accuracy: float
    gradient_norm: float
    certificate: Certificate
    num_iterations: int
    num_products: int
    seconds: float


class Solver:
    """Finds optima by Newton's method, each begun where the earlier ones point to.

    Directions come from conjugate gradients, as in Nocedal and Wright 2006, algorithm 7.1, with
    products in float32 and everything that decides the result in float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._precondition = Preconditioner(problem.inputs32)
        self._found: list[tuple[float, Tensor]] = []  # log lambda, parameters

    def solve(
        self,
        weight_decay: float,
        *,
        tolerance: float = 1e-6,
        on_step: Callable[[int, Point, Certificate], None] = lambda _step, _point, _bound: None,
    ) -> Optimum:
        """Find the optimum for one penalty.

        Args:
            weight_decay: lambda > 0.
            tolerance: Stop when the validation loss is certain to this, in nats. Where rounding
                or `MAX_STEPS` ends it earlier, the certificate says how near it came.
            on_step: Called before every Newton step and at the end with the number of steps, the
                point and its certificate.
        """
        started = time.perf_counter()
        problem, num_products = self._problem, 0
        if self._found and math.log(weight_decay) > self._found[-1][0]:
            # What serves small penalties is costly to renew and not needed for large ones.
            self._precondition = Preconditioner(problem.inputs32)
        penalties = problem.penalties(weight_decay)
        point = evaluate(problem, self._extrapolate(math.log(weight_decay)), weight_decay)
        self._precondition.start(point.probabilities, penalties)
        for num_steps in range(MAX_STEPS + 1):
            certificate = certify(problem, point, weight_decay)
            on_step(num_steps, point, certificate)
            if certificate.validation_loss <= tolerance or num_steps == MAX_STEPS:
                break
            direction, products = self._direction(point, penalties)
            num_products += products
            moved = _line_search(problem, point, direction, weight_decay)
            if moved is None:
                break
            point = moved
            self._precondition.adapt(point.probabilities, penalties, products)
        self._found.append((math.log(weight_decay), point.parameters))
        weights, bias = point.parameters[:, :-1], point.parameters[:, -1]
        logits = problem.validation_inputs @ point.parameters.T
        hits = logits.argmax(1) == problem.validation_labels
        return Optimum(
            weight_decay=weight_decay,
            weights=weights.clone(),
            bias=bias - weights @ problem.means,
            train_loss=point.train_loss,
            objective=point.objective,
            validation_loss=cross_entropy(logits, problem.validation_labels).item(),
            validation_accuracy=hits.double().mean().item(),
            gradient_norm=point.gradient_norm,
            certificate=certificate,
            num_iterations=num_steps,
            num_products=num_products,
            seconds=time.perf_counter() - started,
        )

    def _extrapolate(self, log_weight_decay: float) -> Tensor:
        """Return the polynomial in log lambda through the nearest optima, at another lambda."""
        if not self._found:
            shape = self._problem.num_classes, self._problem.inputs.shape[1]
            return torch.zeros(shape, dtype=torch.float64)
        near = sorted(self._found, key=lambda found: abs(found[0] - log_weight_decay))[:ORDER]
        start = torch.zeros_like(near[0][1])
        for i, (here, parameters) in enumerate(near):
            others = [there for j, (there, _) in enumerate(near) if j != i]
            ratios = ((log_weight_decay - there) / (here - there) for there in others)
            start += math.prod(ratios) * parameters
        return start

    def _direction(self, point: Point, penalties: Tensor) -> tuple[Tensor, int]:
        """Solve for the Newton direction by preconditioned conjugate gradients.

        Returns:
            The direction, float64, (C, D + 1), and the number of products that it took.
        """
        inputs, p = self._problem.inputs32, point.probabilities
        direction = torch.zeros_like(point.gradient)
        residual = -point.gradient
        preconditioned = self._precondition(residual)
        search = preconditioned.clone()
        product = first = (residual * preconditioned).sum().item()
        num_products = 0
        while num_products < MAX_PRODUCTS:
            num_products += 1
            change = (inputs @ search.float().T).mul_(p)  # of the logits, weighted, (N, C)
            change.addcmul_(p, change.sum(1, keepdim=True), value=-1)
            curved = (change.T @ inputs).double() / len(inputs) + penalties * search
            curvature = (search * curved).sum().item()
            if not curvature > 0:  # by rounding, where probabilities are 0 or 1
                break
            length = product / curvature
            direction += length * search
            residual -= length * curved
            preconditioned = self._precondition(residual)
            previous, product = product, (residual * preconditioned).sum().item()
            if product <= FORCING**2 * first:
                break
            search = preconditioned + product / previous * search
        return direction, num_products


def _line_search(
    problem: Problem, point: Point, direction: Tensor, weight_decay: float
) -> Point | None:
    """Halve the step until it goes down enough (Nocedal and Wright 2006, algorithm 3.1).

    Where rounding hides whether it does, a smaller gradient decides.

    Returns:
        The new point, or None where nothing better can be told apart any more.
    """
    slope = (point.gradient * direction).sum().item()
    length = 1.0
    while length > 1e-6:  # noqa: PLR2004
        moved = evaluate(problem, point.parameters + length * direction, weight_decay)
        fall = point.objective - moved.objective
        noise = ROUNDING * abs(point.objective)
        if fall >= max(-1e-4 * length * slope, noise):
            return moved
        if fall > -noise and moved.gradient_norm < 0.7 * point.gradient_norm:
            return moved
        length /= 2
    return None
