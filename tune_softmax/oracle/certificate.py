"""A proof of how near a point is to the optimum: bounds that hold whatever found the point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tune_softmax.oracle.objective import Point, Problem

__all__ = ["Certificate", "certify"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far a point can be from the optimum at most, see `certify`; infinity where unknown.

    Attributes:
        suboptimality: Of the objective, in nats.
        distance: Of the weights, Euclidean.
        validation_loss: Of the validation loss, in nats, to either side.
    """

    suboptimality: float
    distance: float
    validation_loss: float


NOTHING_KNOWN = Certificate(math.inf, math.inf, math.inf)


def certify(problem: Problem, point: Point, weight_decay: float) -> Certificate:
    """Bound how far a point is from the optimum.

    Let D = (V, a) be the way to the optimum, with columns that sum to zero as the optimum's do,
    H the Hessian at the point and |D| = sqrt(D.H.D) = s. Write m for the mean over the images.

    1. |V| <= s / sqrt(lambda) = v s, because H has lambda |V|^2 in it.
    2. |a| <= s sqrt((1 + r^2 / (2 lambda)) / mu) = c s: the loss's part of D.H.D is the mean
       variance, under p_i, of V x_i + a. Its root is a seminorm, so that by the triangle
       inequality sqrt(mu) |a| <= sqrt(m var(a)) <= sqrt(loss's part) + sqrt(m var(V x_i)), and
       var(z) <= |z|^2 / 2 (Popoviciu). Cauchy-Schwarz over both parts of D.H.D gives c.
    3. Between the point and the optimum the Hessian is at least e^(-k s t) H at fraction t, with
       k = sqrt(2) (R v + c): the third derivative of log-sum-exp is E[(u - Eu)(h - Eh)^2], at
       most range(u) times its second, and range(V x + a) <= sqrt(2) (R |V| + |a|). Softmax
       regression is generalized self-concordant: Bach 2010, Self-concordant analysis for
       logistic regression, section 2.
    4. g.D >= -n s with n = |g_W| v + |g_b| c, from 1 and 2, g the gradient at the point.
    5. The gradient vanishes at the optimum: 0 = g.D + integral of D.H(t).D over t >= -n s +
       s (1 - e^(-k s)) / k, hence s <= -log(1 - k n) / k where k n < 1.
    6. P* = P + g.D + integral of (1 - t) D.H(t).D >= P - n s + s^2 e^(-k s) / 2, and by 5
       e^(-k s) >= 1 - k n, hence P - P* <= n^2 / (2 (1 - k n)). For n small that is the bound
       of lambda-strong convexity, Boyd and Vandenberghe 2004, equation 9.9, and equals the
       duality gap at the point.
    7. The validation loss has its gradient h, and by Popoviciu a Hessian of at most half of the
       mean of |V x + a|^2. It changes by at most |h_W| v s + |h_b| c s + (r' v s + c s)^2 / 4,
       with r' of the validation images.

    What is not in it is float64's rounding of the gradient, about 1e-15.

    Args:
        problem: What is fitted.
        point: Where; its bias is the best for its weights.
        weight_decay: lambda.
    """
    if point.bias_curvature <= 0:  # by rounding, where all probabilities are 0 or 1
        return NOTHING_KNOWN
    v = 1 / math.sqrt(weight_decay)
    c = math.sqrt((1 + problem.rms**2 / (2 * weight_decay)) / point.bias_curvature)
    k = math.sqrt(2) * (problem.radius * v + c)
    g_w, g_b = _norms(point.gradient)
    n = g_w * v + g_b * c
    if k * n >= 1:
        return NOTHING_KNOWN
    s = -math.log1p(-k * n) / k
    h_w, h_b = _norms(_validation_gradient(problem, point.parameters))
    second = (problem.validation_rms * v * s + c * s) ** 2 / 4
    return Certificate(
        suboptimality=n**2 / (2 * (1 - k * n)),
        distance=v * s,
        validation_loss=h_w * v * s + h_b * c * s + second,
    )


def _norms(gradient: Tensor) -> tuple[float, float]:
    """Return the norms of the weights' part and of the bias's."""
    return gradient[:, :-1].norm().item(), gradient[:, -1].norm().item()


def _validation_gradient(problem: Problem, parameters: Tensor) -> Tensor:
    """Return the gradient of the validation loss, float64, (C, D + 1)."""
    inputs, labels = problem.validation_inputs, problem.validation_labels
    residuals = torch.softmax(inputs @ parameters.T, 1)
    residuals[torch.arange(len(labels)), labels] -= 1
    return residuals.T @ inputs / len(labels)
