"""Training one configuration: the closed form, step by step, and the optimum at the end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from packs import flat_weights, random_data, train_alone
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from tune_softmax.config import Config
from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine.draws import initial_weights, sample_order
from tune_softmax.engine.reference import evaluate, train
from tune_softmax.engine.tensors import to_tensors

PLAIN = Config(batch_size=8, num_epochs=3, learning_rate=0.2)


@pytest.fixture(autouse=True)
def _one_thread():
    """Compute with one thread, and leave the other cores alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def double_precision():
    """Compute in float64, where rounding cannot hide a wrong formula."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _mean_loss(x, y, weights, bias):
    return -np.log(_softmax(x @ weights + bias)[np.arange(len(y)), y]).mean()


def _train_by_hand(config, data, *, seed, reduction):
    """Train with the gradient X^T (softmax - one-hot) in numpy; return losses and weights."""
    x, y = data.train.pixels.double().numpy() / data.pixel_max, data.train.labels.numpy()
    weights = initial_weights(seed, 0, (data.num_features, data.num_classes), 0.01)[0].T.astype(
        np.float64
    )
    bias = np.zeros(data.num_classes)
    weights_velocity, bias_velocity = np.zeros_like(weights), np.zeros_like(bias)
    num_steps = config.num_epochs * -(-len(y) // config.batch_size)
    step, losses = 0, []
    for epoch in range(1, config.num_epochs + 1):
        order = sample_order(seed, epoch, len(y))
        losses.append(0.0)
        for first in range(0, len(y), config.batch_size):
            batch = order[first : first + config.batch_size]
            losses[-1] += _mean_loss(x[batch], y[batch], weights, bias) * len(batch) / len(y)
            residual = _softmax(x[batch] @ weights + bias) - np.eye(data.num_classes)[y[batch]]
            if reduction == "mean":
                residual /= len(batch)
            gradient = x[batch].T @ residual
            gradient += config.weight_decay * weights + config.l1 * np.sign(weights)
            weights_velocity = config.momentum * weights_velocity + gradient
            bias_velocity = config.momentum * bias_velocity + residual.sum(0)
            rate = (
                config.learning_rate
                * {
                    "constant": 1,
                    "linear": 1 - step / num_steps,
                    "cosine": (1 + np.cos(np.pi * step / num_steps)) / 2,
                }[config.learning_rate_schedule]
            )
            weights = weights - rate * weights_velocity
            bias = bias - rate * bias_velocity
            step += 1
    return losses, np.concatenate([weights, bias[None]])


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.3},
        {"l1": 0.05},
        {"learning_rate_schedule": "linear"},
        {"learning_rate_schedule": "cosine"},
        {"batch_size": 100},
        {"batch_size": 1},
        {"momentum": 0.5, "weight_decay": 0.1, "l1": 0.01, "learning_rate_schedule": "cosine"},
    ],
    ids=str,
)
def test_every_step_is_the_closed_form_s(changes, reduction):
    """Losses and weights are those of SGD by hand, biases unpenalized, to the last digits."""
    data = random_data(21)  # the last batch of 8 has 5 images
    config = replace(PLAIN, **changes)
    losses, expected = _train_by_hand(config, data, seed=4, reduction=reduction)
    trained = train_alone({0: config}, data, seed=4, reduction=reduction)[0]
    actual = trained.weights.view(expected.shape).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(trained.curves[:, 0], losses, rtol=1e-10)


class _Optimum:
    """Softmax regression on `digits` with an L2 penalty, as scikit-learn solves it.

    lambda/2 ||W||^2 on the mean loss is C = 1 / (N lambda) in scikit-learn's terms.
    """

    PENALTY = 0.05

    def __init__(self):
        self.data = to_tensors(load_dataset("digits"))
        self.x = self.data.train.pixels.double().numpy() / self.data.pixel_max
        self.y = self.data.train.labels.numpy()
        estimator = LogisticRegression(C=1 / (len(self.y) * self.PENALTY), tol=1e-9, max_iter=1000)
        with threadpool_limits(1):
            self.estimator = estimator.fit(self.x, self.y)
        self.objective_ = self.objective(self.estimator.coef_, self.estimator.intercept_)

    def objective(self, weights, bias):
        """Return mean loss and penalty."""
        penalty = self.PENALTY / 2 * (weights**2).sum()
        return _mean_loss(self.x, self.y, weights.T, bias) + penalty


@pytest.fixture(scope="module")
def optimum():
    """Return scikit-learn's solution, computed once."""
    return _Optimum()


@pytest.mark.usefixtures("double_precision")
def test_the_optimum_on_digits_is_scikit_learn_s(optimum):
    """At convergence, objective, weights, biases and probabilities are LogisticRegression's."""
    config = Config(
        batch_size=len(optimum.y),
        num_epochs=600,
        learning_rate=0.5,
        weight_decay=optimum.PENALTY,
        momentum=0.95,
    )
    model = train(config, optimum.data, seed=0)
    weights, bias = (parameter.detach().numpy() for parameter in model.parameters())
    theirs = optimum.estimator
    assert optimum.objective(weights, bias) == pytest.approx(optimum.objective_, rel=1e-9)
    np.testing.assert_allclose(weights, theirs.coef_, atol=1e-5)
    # Softmax does not see what all biases have in common.
    np.testing.assert_allclose(
        bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4
    )
    images = optimum.data.validation.pixels.double().numpy() / optimum.data.pixel_max
    np.testing.assert_allclose(
        _softmax(images @ weights.T + bias), theirs.predict_proba(images), atol=1e-5
    )


def test_small_batches_with_a_falling_rate_reach_the_optimum_too(optimum):
    """Mini-batches in float32 end within a thousandth of the optimum's objective."""
    config = Config(
        batch_size=128,
        num_epochs=40,
        learning_rate=0.2,
        learning_rate_schedule="linear",
        weight_decay=optimum.PENALTY,
        momentum=0.9,
    )
    model = train(config, optimum.data, seed=0)
    weights, bias = (parameter.detach().double().numpy() for parameter in model.parameters())
    assert 0 <= optimum.objective(weights, bias) / optimum.objective_ - 1 < 1e-3
    agreement = optimum.estimator.predict(optimum.x) == (optimum.x @ weights.T + bias).argmax(1)
    assert agreement.mean() > 0.98


@pytest.mark.usefixtures("double_precision")
def test_a_hidden_layer_s_gradient_is_backpropagation_by_hand():
    """One step of the hidden-layer model is W -= rate * gradient, with ReLU's zero below zero."""
    data = random_data(12)
    config = replace(PLAIN, batch_size=12, num_epochs=1, hidden_units=5, weight_decay=0.1)
    first, second = (
        weight.T.astype(np.float64) for weight in initial_weights(0, 0, (6, 5, 3), initial_std=0.5)
    )
    x, y = data.train.pixels.double().numpy() / 255, data.train.labels.numpy()
    hidden = np.maximum(x @ first, 0)
    residual = (_softmax(hidden @ second) - np.eye(3)[y]) / 12
    hidden_residual = (residual @ second.T) * (hidden > 0)
    expected = [
        first - 0.2 * (x.T @ hidden_residual + 0.1 * first),
        -0.2 * hidden_residual.sum(0),
        second - 0.2 * (hidden.T @ residual + 0.1 * second),
        -0.2 * residual.sum(0),
    ]
    actual = flat_weights(train(config, data, seed=0, initial_std=0.5)).numpy()
    np.testing.assert_allclose(actual, np.concatenate([part.ravel() for part in expected]))


def test_evaluation_counts_and_averages(monkeypatch):
    """Loss, accuracy and confusion are those of all images, however they are cut."""
    data = random_data(5, 23)
    model = train(PLAIN, data, seed=0)
    whole = evaluate(model, data.validation, data)
    with torch.no_grad():
        logits = model((data.validation.pixels / 255).view(-1, 2, 3))
    labels = data.validation.labels
    assert whole.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), 1e-6)
    assert whole.accuracy == (logits.argmax(1) == labels).double().mean().item()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for label, predicted in zip(labels, logits.argmax(1), strict=True):
        expected[label, predicted] += 1
    assert torch.equal(whole.confusion, expected)
    monkeypatch.setattr("tune_softmax.engine.reference.EVALUATION_ROWS", 4)
    parts = evaluate(model, data.validation, data)
    assert parts.loss == pytest.approx(whole.loss, 1e-6)
    assert torch.equal(parts.confusion, whole.confusion)


def test_each_epoch_is_reported_once():
    """Epochs are numbered from 1, and the last one's validation metrics are the model's."""
    data = random_data(30)
    seen = []
    model = train(
        PLAIN, data, seed=0, on_epoch=lambda epoch, metrics: seen.append((epoch, metrics))
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    last = evaluate(model, data.validation, data)
    assert (seen[-1][1].validation_loss, seen[-1][1].validation_accuracy) == (
        last.loss,
        last.accuracy,
    )
    assert all(metrics.seconds > 0 for _, metrics in seen)


def test_a_diverged_training_stops():
    """The epoch that is not finite is reported, and is the last."""
    seen = []
    train(
        replace(PLAIN, learning_rate=1e10, weight_decay=1e10),
        random_data(30),
        seed=0,
        on_epoch=lambda _, metrics: seen.append(metrics),
    )
    assert len(seen) == 1
    assert not seen[0].is_finite


def test_the_same_seed_and_number_give_the_same_bits():
    """Training twice gives equal weights and curves; another seed or number gives others."""
    data = random_data(30)
    first, again = (train_alone({1: PLAIN}, data, seed=5)[1] for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.curves, again.curves)
    assert not torch.equal(train_alone({2: PLAIN}, data, seed=5)[2].weights, first.weights)
    assert not torch.equal(train_alone({1: PLAIN}, data, seed=6)[1].weights, first.weights)


def test_penalties_are_not_in_the_reported_loss():
    """A huge penalty on zero weights changes nothing in the first step's loss."""
    data = random_data(8)
    config = replace(PLAIN, num_epochs=1)
    plain = train_alone({0: config}, data)[0].curves[0, 0]
    penalized = train_alone({0: replace(config, weight_decay=10.0, l1=10.0)}, data)[0].curves[0, 0]
    assert plain == penalized
