"""A pack: every trial in it is trained exactly as it would be by itself."""

import itertools
import os
from dataclasses import fields, replace
from math import gcd
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packs import (
    MIXED_24,
    difference,
    flat_weights,
    on_gpu,
    random_data,
    train_alone,
    train_packed,
)

from tune_softmax.config import SCHEDULES, Config
from tune_softmax.data.dataset import load_dataset
from tune_softmax.engine import cpu_kernels
from tune_softmax.engine import pack as packed
from tune_softmax.engine.draws import initial_weights
from tune_softmax.engine.pack import MIN_COLUMNS, MIN_MICRO_BATCH, Pack, plan_groups
from tune_softmax.engine.tensors import Images, TensorData, to_tensors
from tune_softmax.errors import PackError

PLAIN = Config(batch_size=16, num_epochs=2, learning_rate=0.1)
DIVERGING = {"learning_rate": 1e10, "weight_decay": 1e10}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compute with one thread, as a pack does, and leave the other cores alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["kernels", "torch"])
def engine(request, monkeypatch):
    """Train with our own kernels, and again with torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_kernels, "find", lambda: None)
    elif cpu_kernels.find() is None:
        pytest.skip("no kernels are built here")
    return request.param


@pytest.fixture
def double_precision():
    """Compute in float64, where rounding cannot hide a wrong formula."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def loaded_images() -> TensorData:
    """Return 6,000 images of Fashion-MNIST where it is there, and `digits` otherwise."""
    folder = os.environ.get("TUNE_SOFTMAX_DATA_DIR", "")
    if (Path(folder) / "FashionMNIST/raw/train-images-idx3-ubyte.gz").exists():
        name, validation, train_fraction = "fashion-mnist", 10_000, 0.12
    else:
        name, validation, train_fraction = "digits", 1 / 6, 1.0
    data = to_tensors(load_dataset(name, validation=validation, train_fraction=train_fraction))
    few = Images(data.validation.pixels[:1000], data.validation.labels[:1000])
    return replace(data, validation=few)


@pytest.fixture
def images(loaded_images):
    """The same images, with inputs in the dtype that the test computes in."""
    return replace(loaded_images)


@pytest.fixture(scope="module")
def mixed_alone(loaded_images):
    """Return what mixed trials become alone: in float64, and the gentle ones in float32.

    Both engines are held against the same.
    """
    gentle_ones = train_alone(gentle(MIXED_24), replace(loaded_images))
    torch.set_default_dtype(torch.float64)
    try:
        return train_alone(MIXED_24, replace(loaded_images)), gentle_ones
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_mixed_pack_is_well_spread():
    """Every two hyperparameters meet in at least half of the combinations of their values."""
    assert len({config.learning_rate for config in MIXED_24.values()}) == 24
    names = [field.name for field in fields(Config)]
    names = [name for name in names if name not in {"learning_rate", "hidden_units"}]
    for pair in itertools.combinations(names, 2):
        first, second, both = (
            {tuple(getattr(config, name) for name in chosen) for config in MIXED_24.values()}
            for chosen in ((pair[0],), (pair[1],), pair)
        )
        assert len(both) >= len(first) * len(second) / 2
        assert len(first) > 1


@pytest.mark.usefixtures("double_precision", "engine")
def test_a_mixed_pack_means_what_single_training_means(images, mixed_alone):
    """In float64 each of 24 trials, learning rates up to 1, has the weights it has alone."""
    (alone, _), packed_ = mixed_alone, train_packed(MIXED_24, images)
    for number in MIXED_24:
        assert difference(packed_[number], alone[number]) < 1e-8
        torch.testing.assert_close(
            packed_[number].curves, alone[number].curves, rtol=1e-8, atol=1e-12
        )


def gentle(configs):
    """Give the learning rates anew: the larger, the larger the batch and the less momentum.

    In their first order two trials train beyond the edge of stability, where a rounding error
    grows a thousandfold; `docs/explanation/packs.md` says more.
    """

    def room(number):
        config = configs[number]
        room = config.batch_size * (1 - config.momentum)
        return room * (1 if config.l1 else 2.1) * (1 if config.num_epochs == 3 else 1.05)

    rates = sorted(config.learning_rate for config in configs.values())
    ordered = sorted(configs, key=lambda number: (room(number), configs[number].learning_rate))
    return {
        number: replace(configs[number], learning_rate=rate)
        for number, rate in zip(ordered, rates, strict=True)
    }


@pytest.mark.usefixtures("engine")
def test_a_mixed_pack_in_float32_is_within_rounding(images, mixed_alone):
    """In float32 each of 24 trials, learning rates from 1e-3 to 1, is within 1e-4."""
    configs = gentle(MIXED_24)
    assert {config.learning_rate for config in configs.values()} == {
        config.learning_rate for config in MIXED_24.values()
    }
    (_, alone), packed_ = mixed_alone, train_packed(configs, images)
    for number in configs:
        assert difference(packed_[number], alone[number]) < 1e-4


HIDDEN = {
    number: replace(config, hidden_units=width, learning_rate=config.learning_rate / 4)
    for (number, config), width in zip(
        list(MIXED_24.items())[::3], (32, 0, 16, 32, 0, 32, 16, 32), strict=True
    )
}


@pytest.mark.usefixtures("double_precision")
def test_hidden_layers_mean_what_they_mean_alone(images):
    """Trials with hidden layers of 32 and 16 units and without one share a pack exactly."""
    alone, packed_ = train_alone(HIDDEN, images), train_packed(HIDDEN, images)
    for number in HIDDEN:
        assert difference(packed_[number], alone[number]) < 1e-8
        torch.testing.assert_close(
            packed_[number].curves, alone[number].curves, rtol=1e-8, atol=1e-12
        )


def test_hidden_layers_in_float32_are_within_rounding(images):
    """In float32 they are within 1e-4 of single training."""
    alone, packed_ = train_alone(HIDDEN, images), train_packed(HIDDEN, images)
    for number in HIDDEN:
        assert difference(packed_[number], alone[number]) < 1e-4


# Trials that train far from the edge of stability, with hidden layers and moved images among them.
CALM = {n: config for n, config in gentle(MIXED_24).items() if n % 2}
CALM |= {100 + n: config for n, config in HIDDEN.items() if config.hidden_units}
CALM |= {200 + n: replace(CALM[n], augmentation=0.5) for n in (5, 11)}
CALM = {n: replace(config, learning_rate=config.learning_rate / 8) for n, config in CALM.items()}


@pytest.fixture(scope="module")
def calm_alone(loaded_images):
    """Return some of the images, and what each calm trial becomes alone on them."""
    few = Images(loaded_images.train.pixels[:1500], loaded_images.train.labels[:1500])
    data = replace(loaded_images, train=few)
    return data, train_alone(CALM, data)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("precision", "weights", "losses"),
    [("float32", 1e-5, 1e-6), ("bfloat16x2", 1e-5, 1e-6), ("bfloat16", 1e-2, 1e-3)],
)
def test_every_precision_means_what_single_training_means(calm_alone, precision, weights, losses):
    """Whatever precision a pack multiplies in, it is as near to single training as is stated."""
    data, alone = calm_alone
    together = train_packed(CALM, data, precision=precision)
    for number in CALM:
        assert difference(together[number], alone[number]) < weights
        off = (together[number].curves - alone[number].curves)[:, ::2].abs()
        assert off.max() < losses


@pytest.mark.parametrize("hidden_units", [0, 4])
@pytest.mark.parametrize("precision", ["bfloat16x2", "bfloat16"])
def test_no_neighbour_disturbs_a_trial_in_any_precision(precision, hidden_units):
    """Neither one that diverges nor one that leaves changes more than rounding would."""
    data = random_data(90)
    calm = {n: replace(PLAIN, num_epochs=3, hidden_units=hidden_units) for n in (0, 2)}
    wild = {1: replace(calm[0], batch_size=8, **DIVERGING), 3: replace(calm[0], num_epochs=1)}
    pack = Pack({**calm, **wild}, data, seed=0, precision=precision)
    for _ in range(3):
        measured = pack.train_epoch()
    assert not measured[1].is_finite
    expected = train_packed(calm, data, precision=precision)
    for number in calm:
        torch.testing.assert_close(
            flat_weights(pack.weights(number)), expected[number].weights, rtol=1e-4, atol=1e-4
        )
        assert measured[number].is_finite


@pytest.mark.slow
def test_a_long_run_in_two_terms_ends_at_float32s_loss(loaded_images):
    """After 20 epochs validation losses differ by less than 1e-3, the least that was asked."""
    configs = {
        n: Config(
            batch_size=(64, 128, 256)[n % 3],
            num_epochs=20,
            learning_rate=(0.01, 0.03, 0.05)[n % 3],
            learning_rate_schedule=SCHEDULES[n // 2 % 3],
            weight_decay=(0.0, 1e-3)[n % 2],
            momentum=(0.0, 0.5, 0.8)[n // 3 % 3],
        )
        for n in range(9)
    }
    expected = train_packed(configs, loaded_images)
    found = train_packed(configs, loaded_images, precision="bfloat16x2")
    for number in configs:
        assert (found[number].curves - expected[number].curves)[:, 2].abs().max() < 1e-3


@pytest.mark.usefixtures("double_precision", "engine")
def test_augmented_trials_see_what_they_see_alone():
    """Trials of three strengths, with a hidden layer and without, share a pack exactly."""
    data = random_data(90, 30, image_shape=(6, 5))
    configs = {
        number: replace(
            PLAIN,
            batch_size=(16, 32)[number % 2],
            num_epochs=3,
            augmentation=(0.0, 0.5, 1.0)[number % 3],
            hidden_units=4 * (number // 6),
        )
        for number in range(12)
    }
    alone, together = train_alone(configs, data), train_packed(configs, data)
    for number in configs:
        assert difference(together[number], alone[number]) < 1e-9
        torch.testing.assert_close(together[number].curves, alone[number].curves)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([7, 16, 64, 100, 128, 192, 300]), min_size=1, max_size=7),
    epochs=st.lists(st.integers(1, 3), min_size=7, max_size=7),
    classes=st.integers(2, 11),
)
def test_neighbours_do_not_change_a_single_bit(sizes, epochs, classes):
    """With our kernels a trial's weights and curves are those it has alone, bit for bit."""
    if cpu_kernels.find() is None:
        pytest.skip("no kernels are built here")
    data = random_data(310, 70, image_shape=(3, 7), num_classes=classes)
    configs = {
        number: replace(
            PLAIN,
            batch_size=size,
            num_epochs=epochs[number],
            momentum=0.2 * (number % 4),
            weight_decay=0.01 * (number % 3),
            l1=0.001 * (number % 2),
        )
        for number, size in enumerate(sizes)
    }
    together = train_packed(configs, data)
    for number, config in configs.items():
        alone = train_packed({number: config}, data)[number]
        assert torch.equal(together[number].weights, alone.weights)
        assert torch.equal(together[number].curves, alone.curves)


@pytest.mark.parametrize("num_trials", [2, 4, 5, 7, 10, 13])
def test_a_column_s_place_does_not_change_a_single_bit(num_trials):
    """In the half of a panel that is computed, too, with all of the step's terms, in float32."""
    if cpu_kernels.find() is None:
        pytest.skip("no kernels are built here")
    data = random_data(310, 70, image_shape=(8, 8), num_classes=10)
    configs = {
        number: replace(
            PLAIN,
            batch_size=64 << number % 3,
            num_epochs=2,
            momentum=(0.9, 0.0, 0.5)[number % 3],
            weight_decay=(1e-3, 1e-2, 0.0)[number // 2 % 3],
            l1=(0.0, 1e-4)[number % 2],
        )
        for number in range(num_trials)
    }
    together = train_packed(configs, data)
    for number, config in configs.items():
        alone = train_packed({number: config}, data)[number]
        assert torch.equal(together[number].weights, alone.weights)
        assert torch.equal(together[number].curves, alone.curves)


@st.composite
def awkward_cases(draw):
    """Draw a tiny data set, a few configurations for it, and a smallest micro-batch."""
    num_classes = draw(st.integers(2, 4))
    data = random_data(
        draw(st.integers(1, 20)),
        draw(st.integers(1, 5)),
        image_shape=draw(st.sampled_from([(1, 1), (1, 3), (3, 2)])),
        num_classes=num_classes,
        labels=draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=6)),
    )
    config = st.builds(
        Config,
        batch_size=st.integers(1, 24),
        num_epochs=st.integers(1, 3),
        learning_rate=st.sampled_from([0.01, 0.1, 0.5]),
        learning_rate_schedule=st.sampled_from(SCHEDULES),
        weight_decay=st.sampled_from([0.0, 0.1]),
        l1=st.sampled_from([0.0, 0.01]),
        momentum=st.sampled_from([0.0, 0.5, 0.9]),
        hidden_units=st.sampled_from([0, 0, 3]),
    )
    configs = dict(enumerate(draw(st.lists(config, min_size=1, max_size=4))))
    return data, configs, draw(st.sampled_from([1, MIN_MICRO_BATCH]))


def _case(*batch_sizes, num_train=20, micro_batch=1, epochs=(2,), **data):
    configs = {
        i: replace(PLAIN, batch_size=size, num_epochs=epochs[i % len(epochs)], momentum=0.5)
        for i, size in enumerate(batch_sizes)
    }
    return random_data(num_train, 4, **data), configs, micro_batch


@settings(max_examples=30, deadline=None)
@given(
    case=awkward_cases(),
    reduction=st.sampled_from(["mean", "sum"]),
    kernels=st.sampled_from([None, cpu_kernels.find()]),
)
@example(
    case=_case(5, 10, num_train=21), reduction="mean", kernels=cpu_kernels.find()
)  # one sample is left over
@example(case=_case(5, 10, num_train=21), reduction="sum", kernels=cpu_kernels.find())
@example(
    case=_case(64, 4), reduction="mean", kernels=cpu_kernels.find()
)  # a batch larger than the data
@example(case=_case(8), reduction="mean", kernels=cpu_kernels.find())  # one trial
@example(
    case=_case(4, 2, labels=[0, 0, 0, 0, 1]), reduction="mean", kernels=cpu_kernels.find()
)  # classes not in a batch
@example(
    case=_case(8, 4, num_classes=2), reduction="mean", kernels=cpu_kernels.find()
)  # two classes
@example(
    case=_case(8, 4, image_shape=(1, 1)), reduction="mean", kernels=cpu_kernels.find()
)  # images of one pixel
@example(
    case=_case(7, 5), reduction="mean", kernels=cpu_kernels.find()
)  # a micro-batch of one image
@example(
    case=_case(7, 5, micro_batch=32), reduction="mean", kernels=cpu_kernels.find()
)  # coprime, in groups of their own
@example(case=_case(8, 8, 8), reduction="mean", kernels=cpu_kernels.find())  # equal sizes
@example(
    case=_case(8, 4, 2, epochs=(1, 3, 2)), reduction="mean", kernels=cpu_kernels.find()
)  # different epochs
@example(
    case=_case(1, 1, num_train=1), reduction="mean", kernels=cpu_kernels.find()
)  # a single image
def test_awkward_sizes_change_nothing(case, reduction, kernels):
    """Whatever the sizes of data, batches and images: a pack's trial is what it is alone."""
    data, configs, micro_batch = case
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(packed, "MIN_MICRO_BATCH", micro_batch),
            patch.object(cpu_kernels, "find", lambda: kernels),
        ):
            together = train_packed(configs, data, reduction=reduction)
        alone = train_alone(configs, data, reduction=reduction)
    finally:
        torch.set_default_dtype(torch.float32)
    for number in configs:
        assert difference(together[number], alone[number]) < 1e-9
        torch.testing.assert_close(
            together[number].curves, alone[number].curves, rtol=1e-9, atol=1e-12
        )


@pytest.mark.usefixtures("double_precision", "engine")
@pytest.mark.parametrize("hidden_units", [0, 4])
def test_large_logits_do_not_overflow(hidden_units):
    """Logits whose exponentials no float holds give the loss that they give alone."""
    data = random_data(20)
    configs = {
        0: Config(batch_size=20, num_epochs=3, learning_rate=1e6, hidden_units=hidden_units)
    }
    alone, together = train_alone(configs, data)[0], train_packed(configs, data)[0]
    assert alone.curves[-1, 0] > 1000
    torch.testing.assert_close(together.curves, alone.curves)
    torch.testing.assert_close(together.weights, alone.weights)


@pytest.mark.usefixtures("double_precision", "engine")
def test_the_sum_of_losses_is_reduced_as_alone(images):
    """With reduction `sum` a pack steps along sums, and still reports means."""
    configs = {
        number: replace(config, learning_rate=config.learning_rate / config.batch_size)
        for number, config in list(MIXED_24.items())[::4]
    }
    alone = train_alone(configs, images, reduction="sum")
    together = train_packed(configs, images, reduction="sum")
    for number in configs:
        assert difference(together[number], alone[number]) < 1e-8
        torch.testing.assert_close(together[number].curves, alone[number].curves)


@pytest.mark.usefixtures("double_precision", "engine")
@pytest.mark.parametrize("hidden_units", [0, 4])
def test_dropping_neighbours_changes_nothing(hidden_units):
    """A trial goes on as if the dropped ones were still there; those keep their last weights."""
    data = random_data(90)
    configs = {
        number: replace(
            PLAIN,
            batch_size=(8, 16, 32)[number % 3],
            num_epochs=4,
            momentum=0.3 * (number % 4),
            hidden_units=hidden_units * (number % 2),
        )
        for number in range(12)
    }
    undisturbed = Pack(configs, data, seed=0)
    dropping = Pack(configs, data, seed=0)
    left = {}
    for leaving in ([0, 3, 4], [7], [], []):
        expected, actual = undisturbed.train_epoch(), dropping.train_epoch()
        for number in actual:
            assert actual[number].train_loss == pytest.approx(expected[number].train_loss, 1e-12)
        left |= {number: flat_weights(undisturbed.weights(number)) for number in leaving}
        dropping.drop(leaving)
        assert not set(dropping.numbers) & set(left)
    for number in configs:
        weights = left.get(number, flat_weights(undisturbed.weights(number)))
        torch.testing.assert_close(
            flat_weights(dropping.weights(number)), weights, rtol=0, atol=1e-12
        )


def test_dropping_no_one_or_a_stranger_changes_nothing():
    """Neither an empty list nor an unknown number does any harm."""
    pack = Pack({5: PLAIN, 2: PLAIN}, random_data(), seed=0)
    pack.drop([])
    pack.drop([99])
    assert pack.numbers == [2, 5]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("hidden_units", [0, 4])
def test_a_diverging_neighbour_disturbs_no_one(hidden_units):
    """A trial full of NaN stays, is reported as it is, and leaves its neighbours alone."""
    data = random_data(90)
    calm = {n: replace(PLAIN, num_epochs=3, hidden_units=hidden_units) for n in (0, 2)}
    wild = replace(calm[0], batch_size=8, **DIVERGING)
    pack = Pack({**calm, 1: wild}, data, seed=0)
    for _ in range(3):
        measured = pack.train_epoch()
    assert not measured[1].is_finite
    assert flat_weights(pack.weights(1)).isnan().any()
    expected = train_packed(calm, data)
    for number in calm:
        torch.testing.assert_close(
            flat_weights(pack.weights(number)), expected[number].weights, rtol=1e-5, atol=1e-6
        )
        assert measured[number].is_finite


def test_a_diverged_trial_says_the_same_in_both_ways():
    """Single training stops at the epoch whose metrics a pack reports as not finite."""
    data = random_data(90)
    configs = {0: replace(PLAIN, num_epochs=3, **DIVERGING)}
    alone, together = train_alone(configs, data)[0], train_packed(configs, data)[0]
    assert len(alone.curves) == 1
    assert not alone.curves[0, ::2].isfinite().all()
    assert not together.curves[0, ::2].isfinite().all()


def test_the_order_of_the_mapping_does_not_matter():
    """The same trials in another order give the same weights, bit for bit."""
    data = random_data(90)
    configs = {n: replace(PLAIN, batch_size=(8, 16)[n % 2], momentum=0.1 * n) for n in range(8)}
    backwards = dict(reversed(configs.items()))
    assert plan_groups(configs, data) == plan_groups(backwards, data)
    forth, back = train_packed(configs, data), train_packed(backwards, data)
    for number in configs:
        assert torch.equal(forth[number].weights, back[number].weights)


def test_a_pack_s_size_does_not_matter():
    """64 trials in packs of 1, 7 and 64 have the same curves within rounding."""
    data = random_data(600, 100, image_shape=(4, 4), num_classes=10)
    configs = {
        n: replace(MIXED_24[n % 24], batch_size=(32, 48, 64)[n % 3], learning_rate=0.002 * (n + 1))
        for n in range(64)
    }
    whole = train_packed(configs, data)
    for size in (1, 7):
        for first in range(0, 64, size):
            numbers = range(first, min(first + size, 64))
            part = train_packed({n: configs[n] for n in numbers}, data)
            for n in numbers:
                torch.testing.assert_close(part[n].curves, whole[n].curves, rtol=1e-4, atol=2e-3)
                assert difference(part[n], whole[n]) < 1e-4


def test_the_same_seed_gives_the_same_pack():
    """Training twice gives the same bits; another seed or number gives others."""
    data = random_data(90)
    first, again = (train_packed({3: PLAIN}, data, seed=1)[3] for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.curves, again.curves)
    assert not torch.equal(first.weights, train_packed({3: PLAIN}, data, seed=2)[3].weights)
    assert not torch.equal(first.weights, train_packed({4: PLAIN}, data, seed=1)[4].weights)


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_a_pack_starts_from_the_drawn_weights(hidden_units):
    """Before the first epoch every trial has the initial weights of (seed, number), zero bias."""
    data = random_data()
    config = replace(PLAIN, hidden_units=hidden_units)
    pack = Pack({7: config, 8: config}, data, seed=3, initial_std=0.5)
    widths = (6, 5, 3) if hidden_units else (6, 3)
    for number in (7, 8):
        expected = initial_weights(3, number, widths, 0.5)
        for layer, weight in zip(pack.weights(number), expected, strict=True):
            np.testing.assert_array_equal(layer[:-1], weight.T)
            assert not layer[-1].any()


def test_trials_leave_after_their_own_last_epoch():
    """Only trials that still train are measured, and their weights stay to be had."""
    configs = {4: replace(PLAIN, num_epochs=1), 1: replace(PLAIN, num_epochs=3), 2: PLAIN}
    pack = Pack(configs, random_data(), seed=0)
    assert pack.numbers == [1, 2, 4]
    assert [list(pack.train_epoch()) for _ in range(3)] == [[1, 2, 4], [1, 2], [1]]
    assert pack.numbers == []
    assert pack.epoch == 3
    assert all(len(pack.weights(number)) == 1 for number in configs)


def test_weights_are_copies():
    """What `weights` returned does not change when training goes on."""
    pack = Pack({0: PLAIN}, random_data(), seed=0)
    before = flat_weights(pack.weights(0))
    kept = pack.weights(0)
    pack.train_epoch()
    assert torch.equal(flat_weights(kept), before)


def test_a_pack_shares_its_seconds_equally():
    """Each trial is charged the same part of the epoch."""
    measured = Pack({0: PLAIN, 1: PLAIN}, random_data(), seed=0).train_epoch()
    assert measured[0].seconds == measured[1].seconds > 0


def test_a_pack_of_no_trials_is_refused():
    """Neither an empty pack nor one that has finished can train."""
    with pytest.raises(PackError, match="at least one trial"):
        Pack({}, random_data(), seed=0)
    pack = Pack({0: replace(PLAIN, num_epochs=1)}, random_data(), seed=0)
    pack.train_epoch()
    with pytest.raises(PackError, match="no trial is left to train after epoch 1"):
        pack.train_epoch()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([0, 0, 4, 32]), st.integers(1, 80)), min_size=1, max_size=30
    ),
    num_train=st.integers(1, 300),
)
def test_groups_partition_the_trials(sizes, num_train):
    """Every trial is in one group, of one width, with a micro-batch that is long enough.

    A block, the trials of one width and one batch size, stays together; a wide one is a group.
    """
    configs = {
        n: replace(PLAIN, hidden_units=width, batch_size=size)
        for n, (width, size) in enumerate(sizes)
    }
    groups = plan_groups(configs, random_data(num_train))
    assert sorted(number for group in groups for number in group) == list(configs)
    blocks = {
        n: [m for m in configs if _block(configs[m], num_train) == _block(configs[n], num_train)]
        for n in configs
    }
    for group in groups:
        widths, batch_sizes = zip(*(_block(configs[n], num_train) for n in group), strict=True)
        assert len(set(widths)) == 1
        assert gcd(*batch_sizes) >= min(MIN_MICRO_BATCH, *batch_sizes)
        for n in group:
            assert set(blocks[n]) <= set(group)
            if len(blocks[n]) * (widths[0] or 3) >= MIN_COLUMNS:
                assert group == blocks[n]


def _block(config, num_train):
    return config.hidden_units, min(config.batch_size, num_train)


def test_narrow_blocks_join_where_their_micro_batch_stays_long():
    """48 and 250 keep apart, whose common divisor is 2; 64 and 128 share steps."""
    data = random_data(300)
    configs = dict(enumerate(replace(PLAIN, batch_size=size) for size in (48, 250, 64, 128)))
    assert sorted(map(sorted, plan_groups(configs, data))) == [[0], [1], [2, 3]]


def test_what_is_narrow_joins_a_wide_block_whose_steps_stay_as_long():
    """43 trials of batch 128, of 3 classes, fill 129 columns; slices of 64 rows end where 64 do.

    Batches of 48 would make its slices shorter, and without slices so would those of 64. No bit
    of a trial changes.
    """
    data = random_data(300)
    sizes = [*[128] * 43, 64, 256, 48]
    configs = dict(enumerate(replace(PLAIN, batch_size=size) for size in sizes))
    assert plan_groups(configs, data, slice_rows=64) == [[*range(45)], [45]]
    assert plan_groups(configs, data) == [[*range(43)], [45], [43, 44]]
    if cpu_kernels.find() is None:
        pytest.skip("no kernels are built here")
    together = train_packed(configs, data)
    for number in (0, 43, 44, 45):
        alone = train_packed({number: configs[number]}, data)[number]
        assert torch.equal(together[number].weights, alone.weights)
        assert torch.equal(together[number].curves, alone.curves)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.usefixtures("double_precision")
def test_a_cuda_device_gives_the_same(images):
    """A mixed pack on a GPU, hidden layers among it, has the weights of single training."""
    configs = {**MIXED_24, **{100 + number: config for number, config in HIDDEN.items()}}
    alone, together = train_alone(configs, images), train_packed(configs, on_gpu(images))
    for number in configs:
        assert difference(together[number], alone[number]) < 1e-6
        torch.testing.assert_close(
            together[number].curves, alone[number].curves, rtol=1e-6, atol=1e-6
        )


def test_a_pack_goes_on_from_the_states_of_another():
    """Trials that move to a new pack after an epoch end as they would have in the first."""
    data = random_data()
    configs = {
        0: replace(PLAIN, num_epochs=4, momentum=0.9, learning_rate_schedule="cosine"),
        1: replace(PLAIN, num_epochs=3, batch_size=8, weight_decay=1e-2),
        2: replace(PLAIN, num_epochs=4, hidden_units=5, momentum=0.5),
    }
    stayed = Pack(configs, data, seed=0)
    left = Pack(configs, data, seed=0)
    for pack in (stayed, left):
        pack.train_epoch()
    states = {number: left.state(number) for number in configs}
    moved = Pack(configs, data, seed=0, epoch=1, states=states)
    while stayed.numbers:
        expected, got = stayed.train_epoch(), moved.train_epoch()
        assert list(expected) == list(got)
        for number, metrics in expected.items():
            assert metrics.validation_loss == pytest.approx(got[number].validation_loss, rel=1e-5)
    for number in configs:
        for a, b in zip(stayed.weights(number), moved.weights(number), strict=True):
            np.testing.assert_allclose(a, b, rtol=1.3e-6, atol=1e-5)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("hidden_units", [0, 4])
@pytest.mark.parametrize("augmentation", [0.0, 0.5])
def test_arrays_train_as_tensors_do(hidden_units, augmentation):
    """A pack on arrays, which leaves torch out if it can, gives every bit of one on tensors."""
    data = random_data(90, 30)
    configs = {n: replace(PLAIN, batch_size=8 * (n + 1), momentum=0.5) for n in range(3)}
    configs[3] = replace(PLAIN, hidden_units=hidden_units, augmentation=augmentation)
    by_tensors, by_arrays = train_packed(configs, data), train_packed(configs, data.arrays)
    for number in configs:
        assert torch.equal(by_arrays[number].weights, by_tensors[number].weights)
        assert torch.equal(by_arrays[number].curves, by_tensors[number].curves)


def test_tf32_on_arrays_is_refused_as_on_tensors():
    """Arrays are for the CPU, which has no TF32."""
    with pytest.raises(PackError, match="tf32 is for GPUs alone"):
        Pack({0: PLAIN}, random_data().arrays, seed=0, precision="tf32")
