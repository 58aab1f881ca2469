"""The compiled kernels: every level gives what torch's operations give, and the best is taken."""

import importlib.machinery
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import difference, random_data, train_packed

import tune_softmax
from tune_softmax.config import Config
from tune_softmax.engine import cpu_group, cpu_kernels
from tune_softmax.engine.arrays import ArrayData, ArrayImages
from tune_softmax.engine.cpu_group import CpuGroup
from tune_softmax.engine.cpu_kernels import LEVELS, Kernels, library_name
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.plan import Trial
from tune_softmax.engine.torch_group import LinearGroup

FOLDER = Path(tune_softmax.__file__).parent / "engine"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
CONFIGS = {
    n: Config(
        batch_size=(30, 60, 200)[n % 3],
        num_epochs=3,
        learning_rate=0.02 * (n + 1),
        weight_decay=1e-3 * (n % 2),
        l1=1e-4 * (n % 4),
        momentum=0.3 * (n % 3),
    )
    for n in range(7)
}


def runnable():
    """Return the levels that are built and that this processor can run."""
    flags = cpu_kernels._processor_flags()
    return [
        level
        for level, needed in LEVELS.items()
        if needed <= flags and (FOLDER / f"{library_name(level)}{SUFFIX}").is_file()
    ]


@contextmanager
def skipping_zeros(skips):
    """Let groups made in this context skip zero pixels in their products, or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_group, "MAX_NARROW_PANELS", 0)
        patch.setattr(cpu_group, "MAX_NONZERO_FRACTION", 2 if skips else 0)
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """Compute with one thread, for which the kernels are made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_plain_level_is_built_here():
    """The machine that runs these tests has a compiler, or the tests below would show nothing."""
    assert "v1" in runnable()


@pytest.mark.parametrize("level", runnable())
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("nonzero_fraction", [1.0, 0.4])
def test_every_level_gives_what_torch_gives(level, num_classes, nonzero_fraction, monkeypatch):
    """Weights and curves agree within rounding, in both types, whatever is left over or out."""
    data = random_data(
        205, 70, image_shape=(5, 7), num_classes=num_classes, nonzero_fraction=nonzero_fraction
    )
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        torch.set_default_dtype(dtype)
        try:
            view = replace(data)
            monkeypatch.setattr(cpu_kernels, "find", lambda: None)
            expected = train_packed(CONFIGS, view)
            kernels = Kernels(FOLDER / f"{library_name(level)}{SUFFIX}", level)
            monkeypatch.setattr(cpu_kernels, "find", lambda found=kernels: found)
            actual = train_packed(CONFIGS, view)
        finally:
            torch.set_default_dtype(torch.float32)
        for number in CONFIGS:
            assert difference(actual[number], expected[number]) < tolerance
            torch.testing.assert_close(
                actual[number].curves, expected[number].curves, rtol=10 * tolerance, atol=1e-6
            )


@pytest.mark.parametrize("level", runnable())
@settings(max_examples=25, deadline=None)
@given(
    num_trials=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    num_classes=st.integers(2, 11),
    nonzero_fraction=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    batch_size=st.sampled_from([1, 63, 64, 65, 150]),
    real=st.sampled_from([np.float32, np.float64]),
    are_inputs=st.booleans(),
)
def test_skipping_zeros_changes_no_bit(
    *, level, num_trials, shape, num_classes, nonzero_fraction, batch_size, real, are_inputs
):
    """Weights, velocities and curves are the same, whatever the images and however many trials."""
    view = random_data(
        150, 70, image_shape=shape, num_classes=num_classes, nonzero_fraction=nonzero_fraction
    )
    data = replace(view.arrays, real=np.dtype(real))
    generator = np.random.default_rng(0)
    start = generator.normal(size=(num_trials, data.num_features + 1, num_classes)).astype(real)
    configs = [
        replace(CONFIGS[n % len(CONFIGS)], batch_size=batch_size * (1 + n % 2))
        for n in range(num_trials)
    ]
    ones = np.ones((len(data.train), 1), real)
    inputs = np.hstack([data.train.pixels.astype(real) / real(data.pixel_max), ones])
    order = generator.permutation(len(data.train))
    found = []
    for skips in (False, True):
        kernels = Kernels(FOLDER / f"{library_name(level)}{SUFFIX}", level)
        trials = [
            Trial(n, config, [(start[n], np.zeros_like(start[n]))])
            for n, config in enumerate(configs)
        ]
        with skipping_zeros(skips):
            group = CpuGroup(trials, data, "mean", kernels)
        curves = []
        for epoch in (1, 2):
            given = inputs if are_inputs and not skips else None
            curves += [group.train_epoch(order, epoch, given), group.evaluate()]
        found.append((curves, [group.layers(p)[0] for p in range(num_trials)]))
    (plain_curves, plain_layers), (curves, layers) = found
    assert curves == plain_curves
    np.testing.assert_array_equal(layers, plain_layers)
    assert (np.array(layers)[:, 0, -1] != start[:, -1]).any()  # biases have moved


@pytest.mark.parametrize("skips", [False, True])
def test_a_trial_that_diverges_is_seen_to(skips):
    """Its weights are no numbers, whatever zeros would have met; its neighbours train on."""
    data = random_data(300, 100, image_shape=(20, 20), num_classes=10, nonzero_fraction=0.5)
    configs = {n: replace(CONFIGS[0], batch_size=64) for n in range(6)}
    configs[3] = replace(configs[3], learning_rate=1e38)
    with skipping_zeros(skips):
        pack = Pack(configs, data, seed=0)
    assert pack._groups[0]._skips_zeros == skips
    measured = pack.train_epoch()
    assert [n for n, metrics in measured.items() if not metrics.is_finite] == [3]


@pytest.mark.parametrize(
    ("nonzero_fraction", "num_trials", "skips"), [(0.5, 4, True), (0.5, 3, False), (0.8, 6, False)]
)
def test_zeros_are_skipped_where_that_is_faster(nonzero_fraction, num_trials, skips):
    """That is where many pixels are zero, and each would meet the columns of many trials."""
    data = random_data(
        300, image_shape=(20, 20), num_classes=10, nonzero_fraction=nonzero_fraction
    )
    configs = {n: replace(CONFIGS[0], batch_size=64) for n in range(num_trials)}
    (group,) = Pack(configs, data, seed=0)._groups
    assert group._skips_zeros == skips


@pytest.mark.parametrize("nonzero_fraction", [0.0, 0.3, 1.0])
def test_the_nonzero_fraction_of_a_sample_is_that_of_all_images(nonzero_fraction):
    """It is counted on a sample where there are more than a thousand."""
    data = random_data(4_500, image_shape=(10, 10), nonzero_fraction=nonzero_fraction).arrays
    found = np.count_nonzero(data.train.pixels) / data.train.pixels.size
    assert data.nonzero_fraction == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize("shape", [1, (3, 5), (7, 11, 16)])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_memory_for_kernels_begins_with_a_line_of_the_cache(shape, real):
    """However NumPy came by it."""
    for _ in range(20):
        array = cpu_kernels.empty(shape, np.dtype(real))
        assert array.ctypes.data % 64 == 0
        assert array.dtype == real
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.flags.c_contiguous


@pytest.mark.parametrize("level", runnable())
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_pixels_are_divided_as_a_division_rounds(level, real):
    """Whatever the largest pixel, bytes train to the same bits as their quotients by numpy."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, -1)
    images = ArrayImages(pixels, np.zeros(1, np.int64))
    kernels = Kernels(FOLDER / f"{library_name(level)}{SUFFIX}", level)
    config = Config(batch_size=1, num_epochs=1, learning_rate=0.5)
    start = np.linspace(-1, 1, 257 * 2, dtype=real).reshape(257, 2)
    for pixel_max in range(1, 256):
        data = ArrayData(images, images, (16, 16), 2, pixel_max, np.dtype(real))
        inputs = np.append(pixels.astype(real) / real(pixel_max), real(1)).reshape(1, -1)
        found = []
        for taken in (None, inputs):
            trial = Trial(0, config, [(start, np.zeros_like(start))])
            group = CpuGroup([trial], data, "mean", kernels)
            group.train_epoch(np.zeros(1, np.int64), 1, taken)
            found.append(group.layers(0)[0][0])
        np.testing.assert_array_equal(*found)
        assert (found[0] != start).any()


@pytest.mark.parametrize("initial_std", [0.01, 1.0, 30.0])
def test_exp_is_torchs_over_its_whole_range(initial_std, monkeypatch):
    """Logits close together or hundreds apart have torch's losses, to float32's rounding."""
    config = {0: Config(batch_size=40, num_epochs=1, learning_rate=1e-30)}
    data = random_data(200, 200, image_shape=(6, 6), num_classes=5)
    measured = Pack(config, data, seed=0, initial_std=initial_std).train_epoch()[0]
    monkeypatch.setattr(cpu_kernels, "find", lambda: None)
    expected = Pack(config, data, seed=0, initial_std=initial_std).train_epoch()[0]
    assert measured.train_loss == pytest.approx(expected.train_loss, rel=2e-6)
    assert measured.validation_loss == pytest.approx(expected.validation_loss, rel=2e-6)
    assert measured.validation_accuracy == expected.validation_accuracy


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ({"avx2"}, "v1"),
        (LEVELS["v3"], "v3"),
        (LEVELS["v3"] | LEVELS["v4"], "v4"),
    ],
)
def test_the_best_level_that_the_processor_has_is_taken(flags, level, monkeypatch):
    """A level is never taken on a processor that lacks one of its instructions."""
    monkeypatch.setattr(cpu_kernels, "_processor_flags", lambda: flags)
    found = cpu_kernels.find.__wrapped__()
    assert found.level == level


def test_without_kernels_torch_trains(monkeypatch):
    """Where nothing is built a pack has a group of torch's operations."""
    monkeypatch.setattr(cpu_kernels, "find", lambda: None)
    pack = Pack(CONFIGS, random_data(), seed=0)
    assert all(isinstance(group, LinearGroup) for group in pack._groups)


def test_more_than_one_thread_trains_with_torch():
    """The kernels use one core; a pack that was given more uses torch's products."""
    torch.set_num_threads(2)
    assert isinstance(Pack(CONFIGS, random_data(), seed=0)._groups[0], LinearGroup)
    torch.set_num_threads(1)
    assert isinstance(Pack(CONFIGS, random_data(), seed=0)._groups[0], CpuGroup)
