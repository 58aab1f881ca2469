"""Augmentation: the maps, their distribution, and what they make of images."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import random_data
from scipy import ndimage, stats

from tune_softmax.engine import augmentation
from tune_softmax.engine.augmentation import augment, augmented_epoch, draw, inverse_maps, warp

SHAPES = [(28, 28), (8, 8), (5, 9), (9, 5), (1, 7), (7, 1), (1, 1), (33, 20)]
IDENTITY = torch.eye(2, dtype=torch.float64)


def random_images(num_images, image_shape, seed=0):
    """Make random images in [0, 1], float32, (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, math.prod(image_shape), generator=generator)


def same_map(num_images, matrix, shift=(0.0, 0.0)):
    """Return p = A o + b for every image, as `warp` takes it."""
    column = torch.tensor(shift, dtype=torch.float64).unsqueeze(1)
    return torch.cat([matrix, column], dim=1).expand(num_images, 2, 3)


def random_maps(num_images, image_shape, strength=1.0, seed=0):
    """Return the maps of one epoch."""
    return inverse_maps(draw(seed, 1, num_images), image_shape, strength)


def parameters(maps):
    """Take maps apart into flipped, log of the scale, angle and shift, by linear algebra."""
    matrix, start = maps[:, :, :2], maps[:, :, 2]
    determinant = torch.linalg.det(matrix)
    angle = torch.atan2(-matrix[:, 1, 0], matrix[:, 1, 1])
    shift = -torch.linalg.solve(matrix, start)
    return determinant < 0, -determinant.abs().log() / 2, angle, *shift.unbind(1)


def with_scipy(image, map_):
    """Move one image, (H, W), in float64, with SciPy, whose axes are row and column."""
    matrix, start = map_[:, :2].flip(0, 1).numpy(), map_[:, 2].flip(0).numpy()
    centre = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(
        image.double().numpy(),
        matrix,
        offset=start + centre - matrix @ centre,
        order=1,
        mode="grid-constant",
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_no_change_changes_no_bit(shape):
    """The identity gives back every image as it is."""
    images = random_images(3, shape)
    assert torch.equal(warp(images, shape, same_map(3, IDENTITY)), images)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_is_exact(shape):
    """A flip without anything else mirrors left and right, bit for bit."""
    images = random_images(3, shape)
    flip = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    expected = images.view(3, *shape).flip(2).flatten(1)
    assert torch.equal(warp(images, shape, same_map(3, flip)), expected)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("side", [28, 7, 1])
def test_a_quarter_turn_is_exact(side, quarters):
    """Turning by 90, 180 and 270 degrees is what torch.rot90 does."""
    images = random_images(3, (side, side))
    cos, sin = (f(quarters * math.pi / 2) for f in (math.cos, math.sin))
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    expected = images.view(3, side, side).rot90(quarters, (1, 2)).flatten(1)
    assert torch.equal(warp(images, (side, side), same_map(3, turn)), expected)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-2, 3), (4, -1), (9, 0), (0, -50)])
@pytest.mark.parametrize("shape", [(5, 9), (28, 28)])
def test_a_shift_by_whole_pixels_is_exact(shape, right, down):
    """It is torch.roll with zeros for what comes in from the other side."""
    images = random_images(3, shape)
    height, width = shape
    expected = images.view(3, *shape).roll((down, right), (1, 2))
    columns, rows = torch.arange(width), torch.arange(height).unsqueeze(1)
    expected[:, (columns < right) | (columns >= width + right) | (rows < down)] = 0
    expected[:, (rows >= height + down).expand(shape)] = 0
    moved = warp(images, shape, same_map(3, IDENTITY, (-right, -down)))
    assert torch.equal(moved, expected.flatten(1))


def test_half_a_pixel_is_the_mean_of_two():
    """Interpolation is linear, and beyond the edge there are zeros."""
    image = torch.tensor([[0.2, 0.6, 1.0]])
    moved = warp(image, (1, 3), same_map(1, IDENTITY, (0.5, 0.0)))
    torch.testing.assert_close(moved, torch.tensor([[0.4, 0.8, 0.5]]))


@given(
    shape=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    num_images=st.integers(1, 7),
    strength=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
    chunk_pixels=st.integers(1, 300),
)
def test_images_move_as_scipy_moves_them(shape, num_images, strength, seed, chunk_pixels):
    """Any number of images of any shape agree with SciPy's affine map, taken one by one."""
    images = random_images(num_images, shape, seed)
    maps = random_maps(num_images, shape, strength, seed)
    with mock.patch.object(augmentation, "CHUNK_PIXELS", chunk_pixels):
        moved = warp(images, shape, maps).view(-1, *shape)
    for image, map_, actual in zip(images.view(-1, *shape), maps, moved, strict=True):
        np.testing.assert_allclose(actual, with_scipy(image, map_), atol=2e-6)


@pytest.mark.parametrize("shape", [(28, 28), (12, 20)])
def test_parameters_mean_what_torchvision_means(shape):
    """Flip, then scale, then a turn about the centre, then a shift: torchvision's order."""
    # Seconds, which else every process spends that collects these tests.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    images = random_images(20, shape)
    draws = draw(0, 1, 20)
    moved = augment(images, shape, strength=0.8, seed=0, epoch=1).view(-1, *shape)
    for image, (flip, log_scale, angle, right, down), actual in zip(
        images.view(-1, 1, *shape), draws.tolist(), moved, strict=True
    ):
        expected = functional.affine(
            functional.horizontal_flip(image) if flip < 0.4 else image,
            angle=0.8 * 15 * (2 * angle - 1),
            scale=1.1 ** (0.8 * (2 * log_scale - 1)),
            translate=[
                0.8 * 0.1 * shape[1] * (2 * right - 1),
                0.8 * 0.1 * shape[0] * (2 * down - 1),
            ],
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(actual, expected[0], rtol=0, atol=1e-5)


def test_parameters_are_uniform_over_their_ranges():
    """Each fills its range at strength 1 evenly, and no two of them go together."""
    flipped, *others = parameters(random_maps(20_000, (10, 20)))
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.015)
    widest = [math.log(1.1), math.radians(15), 2.0, 1.0]
    for values, limit in zip(others, widest, strict=True):
        assert values.abs().max() <= limit * (1 + 1e-9)
        assert stats.kstest(values / limit, stats.uniform(-1, 2).cdf).pvalue > 0.001
    correlations = torch.corrcoef(torch.stack([flipped.double(), *others]))
    assert correlations.fill_diagonal_(0).abs().max() < 0.03


@pytest.mark.parametrize("strength", [0.5, 0.1])
def test_strength_scales_every_range(strength):
    """The same draws move the same images the same way, by less; fewer are flipped."""
    flipped, *full = parameters(random_maps(5000, (28, 28)))
    fewer, *less = parameters(random_maps(5000, (28, 28), strength))
    for weak, strong in zip(less, full, strict=True):
        torch.testing.assert_close(weak, strength * strong)
    assert not (fewer & ~flipped).any()
    assert fewer.double().mean().item() == pytest.approx(0.5 * strength, abs=0.025)


def test_draws_depend_on_seed_epoch_and_index_alone():
    """They come again, differ between epochs and seeds, and do not know how many images are."""
    draws = draw(3, 2, 40)
    torch.rand(5)
    draw(3, 1, 7)
    assert torch.equal(draw(3, 2, 40), draws)
    for num_images in (1, 3, 39):
        assert torch.equal(draw(3, 2, num_images), draws[:num_images])
    others = torch.cat([draws, draw(3, 3, 40), draw(4, 2, 40)])
    assert len(others.flatten().unique()) == 3 * 40 * 5


def test_torch_s_own_random_numbers_are_left_alone():
    """Augmentation neither reads nor moves the global generator."""
    state = torch.get_rng_state()
    augment(random_images(3, (4, 4)), (4, 4), strength=1.0, seed=0, epoch=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_moves_anew_in_every_epoch():
    """Another epoch or seed is another version of every image, the same ones the same."""
    images = random_images(10, (28, 28))
    versions = [
        augment(images, (28, 28), strength=0.5, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 1), (0, 2), (1, 1), (0, 1)]
    ]
    assert torch.equal(versions[0], versions[3])
    for other in versions[1:3]:
        assert (versions[0] != other).any(1).all()


@pytest.mark.parametrize("chunk_pixels", [1, 5 * 6 * 3, 5 * 6 * 4 + 1, 5 * 6 * 13])
def test_chunks_leave_no_trace(monkeypatch, chunk_pixels):
    """However many images are moved at once, every bit is the same."""
    images = random_images(13, (5, 6))
    expected = augment(images, (5, 6), strength=1.0, seed=0, epoch=1)
    monkeypatch.setattr(augmentation, "CHUNK_PIXELS", chunk_pixels)
    assert torch.equal(augment(images, (5, 6), strength=1.0, seed=0, epoch=1), expected)


def test_neighbours_leave_no_trace():
    """An image moved among others in any order is, bit for bit, the image moved alone."""
    images, maps = random_images(30, (28, 28)), random_maps(30, (28, 28))
    moved = warp(images, (28, 28), maps)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warp(images[order], (28, 28), maps[order]), moved[order])
    assert torch.equal(warp(images[7:8], (28, 28), maps[7:8]), moved[7:8])


@pytest.mark.parametrize(("white", "pixel_max"), [(1.0, 1), (16, 16), (255, 255)])
def test_pixels_stay_in_range(white, pixel_max):
    """White images are nowhere whiter than white, nowhere negative, and still reach both ends."""
    dtype = torch.float32 if pixel_max == 1 else torch.uint8
    images = torch.full((2000, 28 * 28), white, dtype=dtype)
    moved = augment(images, (28, 28), strength=1.0, seed=0, epoch=1, pixel_max=pixel_max)
    assert moved.min() == 0
    assert moved.max() == 1


@pytest.mark.parametrize("pixel_max", [16, 255])
def test_strength_zero_scales_and_does_no_more(pixel_max):
    """Bytes become exactly what they are without augmentation, and fractions stay."""
    data = random_data(9, image_shape=(4, 5))
    expected = data.train.pixels / float(pixel_max)
    options = {"strength": 0.0, "seed": 0, "epoch": 1}
    scaled = augment(data.train.pixels, (4, 5), pixel_max=pixel_max, **options)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, expected)
    assert torch.equal(augment(expected, (4, 5), **options), expected)


def test_bytes_and_fractions_move_alike():
    """It makes no difference beyond rounding whether pixels are scaled before or on the way."""
    pixels = random_data(50, image_shape=(28, 28)).train.pixels
    options = {"strength": 1.0, "seed": 0, "epoch": 1}
    moved = augment(pixels, (28, 28), pixel_max=255, **options)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, augment(pixels / 255.0, (28, 28), **options))


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_an_epoch_s_inputs_have_a_column_of_ones(strength):
    """They are the moved images and a one each, also in a tensor that was used before."""
    data = random_data(13, image_shape=(3, 4))
    pixels = data.train.pixels.clone()
    inputs = augmented_epoch(data, strength=strength, seed=5, epoch=2)
    images = augment(
        data.train.pixels, (3, 4), strength=strength, seed=5, epoch=2, pixel_max=data.pixel_max
    )
    assert inputs.shape == data.train_inputs.shape
    assert inputs.dtype == data.train_inputs.dtype
    assert torch.equal(inputs, torch.cat([images, torch.ones(13, 1)], dim=1))
    assert torch.equal(inputs, data.train_inputs) == (strength == 0)
    used = torch.full_like(inputs, math.nan)
    assert augmented_epoch(data, strength=strength, seed=5, epoch=2, out=used) is used
    assert torch.equal(used, inputs)
    assert torch.equal(data.train.pixels, pixels)


def test_torch_s_default_type_is_kept():
    """Where torch computes in float64 the images are moved in it, and agree with SciPy's."""
    shape = (6, 7)
    maps = random_maps(5, shape)
    torch.set_default_dtype(torch.float64)
    try:
        images = random_images(5, shape)
        moved = warp(images, shape, maps)
    finally:
        torch.set_default_dtype(torch.float32)
    assert moved.dtype == torch.float64
    for image, map_, actual in zip(images, maps, moved, strict=True):
        expected = with_scipy(image.view(shape), map_)
        np.testing.assert_allclose(actual.view(shape), expected, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_moves_images_the_same_way():
    """The device decides no more than rounding."""
    images = random_images(100, (28, 28))
    options = {"strength": 1.0, "seed": 0, "epoch": 1}
    moved = augment(images.cuda(), (28, 28), **options)
    assert moved.device.type == "cuda"
    torch.testing.assert_close(
        moved.cpu(), augment(images, (28, 28), **options), rtol=0, atol=1e-5
    )
