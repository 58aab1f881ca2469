"""The optimum of softmax regression with an L2 penalty, and a proof of how near a point is to it.

The objective is P(W, b) = L(W, b) + lambda/2 ||W||^2 with the mean cross-entropy L; the bias is
not penalized. Inside, pixels are centred, which changes the bias of the optimum and nothing else.
It needs torch alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from tune_softmax.oracle.preconditioner import Preconditioner

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tune_softmax.engine.tensors import Images, TensorData

__all__ = ["Certificate", "Optimum", "Point", "Problem", "Solver", "certify", "evaluate"]

# Newton steps per penalty at most; it takes about ten.
MAX_STEPS = 60
# Steps to the best bias for given weights at most; it takes about five.
MAX_BIAS_STEPS = 100
# Products with the Hessian per Newton step at most.
MAX_PRODUCTS = 500
# How far a direction reduces the gradient, in the preconditioner's norm. More costs more at once
# and saves no product in all: with a fixed Hessian the reduction per product is what it is.
FORCING = 0.1
# Known optima that the next one's start is extrapolated from.
ORDER = 3
# Relative rounding of an objective that is summed over many images.
ROUNDING = 1e-13


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
            length = product / (search * curved).sum().item()
            direction += length * search
            residual -= length * curved
            preconditioned = self._precondition(residual)
            previous, product = product, (residual * preconditioned).sum().item()
            if product <= FORCING**2 * first:
                break
            search = preconditioned + product / previous * search
        return direction, num_products


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


def _unit_interval(images: Images, pixel_max: int) -> Tensor:
    return images.pixels.double() / pixel_max


def _centred(pixels: Tensor, means: Tensor) -> Tensor:
    return torch.cat([pixels - means, torch.ones(len(pixels), 1, dtype=torch.float64)], 1)
