"""Move the training images a little, anew in every epoch: flip, scale, rotate and shift them.

One number governs it all: at strength s in (0, 1] every range is s times the widest, which is
near what is usual: rotation by 15 degrees as Ciresan et al. 2010, section 3, shift by a tenth of
the side and a flip of half the images as He et al. 2016, section 4.2 (4 pixels of 32).
How an image moves depends on the experiment's seed, the epoch and the image's index alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grid_sample

from tune_softmax.data.seeding import derive_seed
from tune_softmax.engine.tensors import scale

if TYPE_CHECKING:
    from torch import Tensor

    from tune_softmax.engine.tensors import TensorData

__all__ = ["augment", "augmented_epoch", "draw", "inverse_maps", "warp"]

# The widest ranges, those of strength 1; all but the flip's are symmetric about no change.
FLIP_PROBABILITY = 0.5
MAX_SCALE = 1.1  # a factor for both sides; its logarithm is uniform
MAX_ROTATION = math.radians(15)
MAX_SHIFT = 0.1  # of the image's width, and of its height

# Pixels moved at once: enough to hide what a call costs, and few enough for 20 MB of buffers.
CHUNK_PIXELS = 2**20


def augmented_epoch(
    data: TensorData, *, strength: float, seed: int, epoch: int, out: Tensor | None = None
) -> Tensor:
    """Return what an epoch trains on: `TensorData.train_inputs`, with every image moved.

    Args:
        data: The training images, on the device on which they are moved.
        strength: In [0, 1]; 0 moves nothing.
        seed: The experiment's seed.
        epoch: 1 for the first.
        out: Where to write, (N, D + 1); a new tensor by default.

    Returns:
        Images in [0, 1] with a last column of ones, float32, (N, D + 1), in the data's order.
    """
    if out is None:
        out = torch.empty(len(data.train), data.num_features + 1, device=data.device)
    out[:, -1] = 1
    augment(
        data.train.pixels,
        data.image_shape,
        strength=strength,
        seed=seed,
        epoch=epoch,
        pixel_max=data.pixel_max,
        out=out[:, :-1],
    )
    return out


def augment(
    images: Tensor,
    image_shape: tuple[int, int],
    *,
    strength: float,
    seed: int,
    epoch: int,
    pixel_max: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Return one epoch's version of the training images.

    Args:
        images: All of them, (N, D): uint8, or float32 in [0, 1].
        image_shape: (H, W), with H * W = D.
        strength: In [0, 1]; 0 returns the images as they are.
        seed: The experiment's seed.
        epoch: 1 for the first.
        pixel_max: The pixel value that becomes 1.0; 1 for images that are scaled already.
        out: Where to write, (N, D), any strides; a new tensor by default.

    Returns:
        Images in [0, 1], float32, (N, D), on the same device.
    """
    if strength == 0:
        return scale(images, pixel_max, out=out)
    maps = inverse_maps(draw(seed, epoch, len(images)), image_shape, strength)
    return warp(images, image_shape, maps, pixel_max=pixel_max, out=out)


def draw(seed: int, epoch: int, num_images: int) -> Tensor:
    """Return the random numbers that move an epoch's images.

    They know nothing of the strength, so that two strengths differ in how far each image moves,
    not in its direction: what one gains over the other is seen with less noise.

    Args:
        seed: The experiment's seed.
        epoch: 1 for the first.
        num_images: N; an image's numbers are the same for every larger N.

    Returns:
        Uniform in [0, 1), float64, (N, 5), on the CPU: for flip, scale, rotation, shift to the
        right, shift downwards.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "augmentation", epoch))
    return torch.rand(num_images, 5, generator=generator, dtype=torch.float64)


def inverse_maps(draws: Tensor, image_shape: tuple[int, int], strength: float) -> Tensor:
    """Return where each moved image's pixels come from.

    An image is flipped left to right, then scaled, then rotated, both about its centre, then
    shifted. With o a place in the moved image and p the place in the image that shows there,
    both (x, y) in pixels from the centre, x to the right and y downwards:

        o = R S F p + t,  so that  p = F S^-1 R^T (o - t).

    The inverse is what is needed, because it leaves no hole: Szeliski 2022, section 3.6.1.

    Args:
        draws: Uniform in [0, 1), float64, (N, 5), as `draw` returns them.
        image_shape: (H, W).
        strength: In (0, 1].

    Returns:
        A and b of p = A o + b as one matrix [A b] each, float64, (N, 2, 3).
    """
    height, width = image_shape
    flip = torch.where(draws[:, 0] < FLIP_PROBABILITY * strength, -1.0, 1.0)
    log_scale, angle, right, down = (strength * (2 * draws[:, 1:] - 1)).unbind(1)
    factor = torch.exp(-log_scale * math.log(MAX_SCALE))
    cos = factor * torch.cos(angle * MAX_ROTATION)
    sin = factor * torch.sin(angle * MAX_ROTATION)
    right, down = right * MAX_SHIFT * width, down * MAX_SHIFT * height
    # A positive angle turns x towards y: clockwise, as y points downwards.
    rows = [
        flip * cos,
        flip * sin,
        -flip * (cos * right + sin * down),
        -sin,
        cos,
        sin * right - cos * down,
    ]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(
    images: Tensor,
    image_shape: tuple[int, int],
    maps: Tensor,
    *,
    pixel_max: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Move every image by its own map, with bilinear interpolation and zeros around it.

    Args:
        images: uint8 or float32, (N, D).
        image_shape: (H, W), with H * W = D.
        maps: float64, (N, 2, 3), on the CPU, as `inverse_maps` returns them.
        pixel_max: The pixel value that becomes 1.0.
        out: Where to write, (N, D), any strides; a new tensor by default.

    Returns:
        Images in [0, 1], float32, (N, D). Each depends on its own row and map alone.
    """
    height, width = image_shape
    if out is None:
        out = torch.empty(images.shape, device=images.device)
    num_rows = max(1, CHUNK_PIXELS // (height * width))
    # Padded at the right and bottom to powers of two, so that a whole pixel is exact in the
    # coordinates of `grid_sample`: only so is a flip, or a shift by whole pixels, unrounded.
    padded = out.new_zeros(num_rows, 1, _power_of_two(height), _power_of_two(width))
    grid = out.new_empty(num_rows, 2, height, width)
    maps = _in_grid_coordinates(maps, image_shape, padded.shape).to(out)
    x = torch.arange(width).to(out)  # (W,)
    y = torch.arange(height).to(out).unsqueeze(1)  # (H, 1)
    for still, map_, moved in zip(*(t.split(num_rows) for t in (images, maps, out)), strict=True):
        n = len(still)
        padded[:n, :, :height, :width] = still.view(n, 1, height, width)
        by_x, by_y, start = map_.view(n, 2, 1, 3).split(1, dim=3)  # (n, 2, 1, 1) each
        torch.add(by_x * x, by_y * y + start, out=grid[:n])
        sampled = grid_sample(padded[:n], grid[:n].permute(0, 2, 3, 1), align_corners=False)
        # Weights may add up to a hair above 1, which must not make white whiter than white.
        scale(sampled.flatten(1).clamp_(max=pixel_max), pixel_max, out=moved)
    return out


def _in_grid_coordinates(maps: Tensor, image_shape: tuple[int, int], padded: torch.Size) -> Tensor:
    """Return maps from an output pixel's column and row, from 0, to `grid_sample`'s coordinates.

    In these the padded image, (1, H', W'), reaches from -1 to 1 and pixel k's centre is at
    (2k + 1) / size - 1.
    """
    side = torch.tensor(image_shape[::-1], dtype=maps.dtype)  # x first
    size = torch.tensor(padded[:1:-1], dtype=maps.dtype)
    centre = (side - 1) / 2
    matrix, shift = maps[:, :, :2], maps[:, :, 2]
    start = shift + centre - matrix @ centre  # where pixel (0, 0) comes from
    return torch.cat([matrix * 2 / size[:, None], ((2 * start + 1) / size - 1)[..., None]], dim=2)


def _power_of_two(side: int) -> int:
    """Return the smallest power of two that is not below a side's length."""
    return 1 << (side - 1).bit_length()
