"""The convex optimum: scikit-learn finds the same, and the certificate is a bound."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.tensors import Images, TensorData, to_tensors
from tune_softmax.oracle import preconditioner, solver
from tune_softmax.oracle.certificate import certify
from tune_softmax.oracle.objective import Problem, evaluate
from tune_softmax.oracle.solver import Solver


@pytest.fixture(scope="module")
def digits():
    """Return the digits as tensors."""
    return to_tensors(load_dataset("digits"))


def made(seed, *, num_classes=3, num_rows=40, width=4, counts=None):
    """Return random images: of so many classes, or of each class the given number."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, num_rows)
    labels[:num_classes] = np.arange(num_classes)  # as every training set
    if counts is not None:
        labels = np.repeat(np.arange(len(counts)), counts)
    pixels = draw.integers(0, 256, (len(labels), width), dtype=np.uint8)
    images = Images(torch.tensor(pixels), torch.tensor(labels))
    # The validation set may lack classes.
    held_out = Images(images.pixels[1::2].flip(1), images.labels[1::2])
    return TensorData(images, held_out, (1, width), int(labels.max()) + 1, 255)


def pixels_of(images, pixel_max):
    """Return an image's pixels in [0, 1], float64."""
    return images.pixels.double() / pixel_max


def exact(data, weight_decay):
    """Return the optimum's weights and validation loss by scipy's exact Newton method."""
    x, y = pixels_of(data.train, data.pixel_max), data.train.labels
    shape = data.num_classes, x.shape[1] + 1

    def objective(flat):
        theta = torch.tensor(flat.reshape(shape), requires_grad=True)
        weights, bias = theta[:, :-1], theta[:, -1]
        value = cross_entropy(x @ weights.T + bias, y)
        value = value + weight_decay / 2 * weights.square().sum()
        (gradient,) = torch.autograd.grad(value, theta)
        return value.item(), gradient.numpy().ravel()

    def hessian(flat):
        theta = torch.tensor(flat.reshape(shape))
        p = torch.softmax(x @ theta[:, :-1].T + theta[:, -1], 1)
        inputs = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        blocks = torch.einsum("ncd,ni,nj->cidj", inner, inputs, inputs) / len(x)
        penalties = torch.full(shape, weight_decay, dtype=torch.float64)
        penalties[:, -1] = 1e-12  # the direction that changes nothing
        return (blocks.reshape(theta.numel(), -1) + penalties.flatten().diag()).numpy()

    found = minimize(
        objective,
        np.zeros(shape).ravel(),
        jac=True,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-13, "maxiter": 500},
    )
    theta = torch.tensor(found.x.reshape(shape))
    logits = pixels_of(data.validation, data.pixel_max) @ theta[:, :-1].T + theta[:, -1]
    return theta[:, :-1], found.fun, cross_entropy(logits, data.validation.labels).item()


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3, pytest.param(1e-5, marks=pytest.mark.slow)])
def test_scikit_learn_finds_the_same_on_digits(digits, weight_decay):
    """Its C is 1 / (N lambda); losses agree to 1e-6, and so does the objective."""
    x, y = pixels_of(digits.train, digits.pixel_max).numpy(), digits.train.labels.numpy()
    other = LogisticRegression(
        C=1 / (len(y) * weight_decay), solver="newton-cholesky", tol=1e-12, max_iter=1000
    ).fit(x, y)
    losses = []
    for images in (digits.train, digits.validation):
        rows = torch.tensor(other.decision_function(pixels_of(images, digits.pixel_max).numpy()))
        losses.append(cross_entropy(rows, images.labels).item())
    found = Solver(Problem(digits)).solve(weight_decay)
    assert found.train_loss == pytest.approx(losses[0], abs=1e-6)
    assert found.validation_loss == pytest.approx(losses[1], abs=1e-6)
    penalty = weight_decay / 2 * np.square(other.coef_).sum()
    assert found.objective == pytest.approx(losses[0] + penalty, abs=1e-6)


def test_the_weights_are_for_pixels_as_they_are(digits):
    """Centring is the solver's own; weights and bias give the losses that are stated."""
    found = Solver(Problem(digits)).solve(1e-3)
    for images, loss in (
        (digits.train, found.train_loss),
        (digits.validation, found.validation_loss),
    ):
        logits = pixels_of(images, digits.pixel_max) @ found.weights.T + found.bias
        assert cross_entropy(logits, images.labels).item() == pytest.approx(loss, abs=1e-12)
    logits = pixels_of(digits.validation, digits.pixel_max) @ found.weights.T + found.bias
    hits = logits.argmax(1) == digits.validation.labels
    assert found.validation_accuracy == hits.double().mean().item()


CASES = {
    "some classes": made(0),
    "two classes": made(1, num_classes=2),
    "a rare class": made(2, counts=[30, 20, 1]),
    "more pixels than images": made(3, num_rows=8, width=12),
    "many classes": made(4, num_classes=7, num_rows=30),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3, 1e-5])
def test_the_certificate_holds_all_along_the_way(name, weight_decay):
    """At every Newton step, down to penalties that hardly hold separable images."""
    data = CASES[name]
    problem = Problem(data)
    weights, objective, validation_loss = exact(data, weight_decay)
    seen = []
    Solver(problem).solve(weight_decay, on_step=lambda *step: seen.append(step[1:]))
    for point, bound in seen:
        at = point.parameters
        logits = problem.validation_inputs @ at.T
        loss = cross_entropy(logits, problem.validation_labels).item()
        # The other method's gradient, 1e-13, and rounding leave less than this.
        slack = 1e-13 / weight_decay + 1e-12
        assert point.objective - objective <= bound.suboptimality + slack
        assert (at[:, :-1] - weights).norm() <= bound.distance + slack
        assert abs(loss - validation_loss) <= bound.validation_loss + 10 * slack
    assert seen[-2][1].validation_loss > 1e-6
    assert seen[-1][1].validation_loss <= 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-4, 0), st.floats(-7, -2), st.integers(2, 5))
def test_the_certificate_holds_wherever_a_point_is(seed, exponent, shift, num_classes):
    """Moved away from the optimum by any amount, the point is within the bounds that it gets."""
    data = made(seed, num_classes=num_classes)
    problem, weight_decay = Problem(data), 10**exponent
    found = Solver(problem).solve(weight_decay, tolerance=1e-11)
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.cat([found.weights, torch.zeros(num_classes, 1)], 1)
    move = torch.randn(parameters.shape, generator=generator, dtype=torch.float64)
    moved = parameters + 10**shift * (move - move.mean(0))
    point = evaluate(problem, moved, weight_decay)
    bound = certify(problem, point, weight_decay)
    loss = cross_entropy(problem.validation_inputs @ point.parameters.T, problem.validation_labels)
    distance = (point.parameters[:, :-1] - found.weights).norm().item()
    assert distance <= bound.distance + found.certificate.distance
    assert abs(loss.item() - found.validation_loss) <= (
        bound.validation_loss + found.certificate.validation_loss + 1e-12
    )
    assert point.objective - found.objective <= bound.suboptimality + 1e-12


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 6))
def test_random_problems_are_solved(seed, num_classes, width):
    """Whatever the images, a path ends with every validation loss certain to 1e-6."""
    data = made(seed, num_classes=num_classes, width=width, num_rows=25)
    solver = Solver(Problem(data))
    found = [solver.solve(decay) for decay in (1.0, 1e-2, 1e-4)]
    assert all(one.certificate.validation_loss <= 1e-6 for one in found)
    assert found[0].train_loss >= found[1].train_loss >= found[2].train_loss
    norms = [one.weights.norm() for one in found]
    assert norms[0] <= norms[1] <= norms[2]


def test_a_penalty_too_small_to_certify_says_so(monkeypatch):
    """Separable images and next to no penalty: an end, and infinity for what is not known."""
    monkeypatch.setattr(solver, "MAX_STEPS", 3)
    data = made(5, counts=[2, 2, 2], width=6)
    found = Solver(Problem(data)).solve(1e-12)
    assert found.num_iterations <= 3
    assert found.certificate.validation_loss == math.inf
    assert math.isfinite(found.train_loss)


def test_a_start_from_neighbours_saves_steps(digits):
    """The optimum is the same as from nowhere, in fewer products with the Hessian."""
    problem = Problem(digits)
    warm, cold = Solver(problem), Solver(problem)
    for weight_decay in (1e-3, 5e-4, 2.5e-4):
        warm.solve(weight_decay)
    near, far = warm.solve(1.25e-4), cold.solve(1.25e-4)
    assert near.validation_loss == pytest.approx(far.validation_loss, abs=2e-6)
    assert near.num_iterations < far.num_iterations


def test_a_path_may_turn_back(digits):
    """A larger penalty after a smaller has the same optimum as before it."""
    solver = Solver(Problem(digits))
    down = solver.solve(1e-2)
    solver.solve(1e-4)
    up = solver.solve(1e-2)
    assert up.validation_loss == pytest.approx(down.validation_loss, abs=2e-6)


@pytest.mark.parametrize("form", ["blocks", "joint", "diagonal"])
def test_every_form_of_the_preconditioner_leads_there(digits, form, monkeypatch):
    """It changes the way, and not where it leads."""
    if form == "joint":
        monkeypatch.setattr(preconditioner, "MANY_PRODUCTS", 0)
        monkeypatch.setattr(preconditioner, "STALE", 0)
    if form == "diagonal":
        monkeypatch.setattr(preconditioner, "MAX_UNKNOWNS", 8)
    found = Solver(Problem(digits)).solve(1e-3)
    assert found.certificate.validation_loss <= 1e-6
    monkeypatch.undo()
    assert found.objective == pytest.approx(
        Solver(Problem(digits)).solve(1e-3).objective, abs=1e-9
    )


@pytest.mark.parametrize("weight_decay", [1e-12, 1e-30, 1e-300])
@pytest.mark.parametrize("form", ["blocks", "diagonal"])
def test_a_penalty_too_small_to_factor_ends(weight_decay, form, monkeypatch):
    """Separable images saturate the probabilities; the bounds are unknown and losses finite."""
    if form == "diagonal":
        monkeypatch.setattr(preconditioner, "MAX_UNKNOWNS", 8)
    monkeypatch.setattr(solver, "MAX_STEPS", 12)
    monkeypatch.setattr(solver, "MAX_PRODUCTS", 60)
    found = Solver(Problem(made(0, num_rows=40, width=60))).solve(weight_decay)
    assert math.isfinite(found.objective)
    assert math.isfinite(found.validation_loss)
    assert found.train_loss < 0.1
    assert found.weights.isfinite().all()
    assert not math.isnan(found.certificate.validation_loss)


@pytest.mark.parametrize("weight_decay", [1e30, 1e300])
def test_the_largest_penalties_leave_the_classes_frequencies(weight_decay):
    """Weights are zero, also where the penalty is beyond float32."""
    data = made(0)
    found = Solver(Problem(data)).solve(weight_decay)
    frequencies = torch.bincount(data.train.labels).double() / len(data.train.labels)
    entropy = -(frequencies * frequencies.log()).sum().item()
    assert found.train_loss == pytest.approx(entropy, abs=1e-6)
