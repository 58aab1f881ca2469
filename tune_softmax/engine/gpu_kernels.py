"""Softmax regression on a GPU: one launch trains every trial of a pack for an epoch, in Triton.

One program trains one trial, one mini-batch after another. So the GPU does not wait for the host
within an epoch, programs do not wait for one another, batch sizes need no common divisor, and only
a trial's own few columns of zeros are computed in vain.

Pixels are integers up to 255, which bfloat16 holds exactly. Weights and residuals become sums of
one to three bfloat16 terms, see `products.py`; three hold all 24 digits of a float32, so tensor
cores then multiply as exactly as float32 does.

Shape letters: P trials, N images, D pixels, C classes, of which COLUMNS are stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BLOCK_ROWS", "SLICE_ROWS", "evaluate", "train_epoch"]

# Images and pixels of a tile of a tensor core's product, whose sums four warps hold in registers.
BLOCK_ROWS = tl.constexpr(64)
BLOCK_PIXELS = tl.constexpr(64)
# A gradient is added to the velocity after this many images; their residuals, 32 KB, stay in the
# first-level cache.
SLICE_ROWS = tl.constexpr(512)


@triton.jit
def _multiply_add(pixels, matrix, sums, TERMS: tl.constexpr):
    """Return sums plus pixels times a float32 matrix, which is split into TERMS bfloat16 terms."""
    rest = matrix
    for _ in tl.static_range(TERMS):
        term = rest.to(tl.bfloat16)
        sums = tl.dot(pixels, term, sums)
        rest -= term.to(tl.float32)  # exact: the term holds the leading digits
    return sums


@triton.jit
def _tile(pixels, image, is_row, first, D):
    """Return a tile of images as bfloat16, (BLOCK_ROWS, BLOCK_PIXELS), from pixel `first` on."""
    k = first + tl.arange(0, BLOCK_PIXELS)
    inside = is_row[:, None] & (k < D)[None, :]
    tile = tl.load(pixels + image[:, None] * D + k[None, :], mask=inside, other=0)
    return tile.to(tl.float32).to(tl.bfloat16)


@triton.jit
def _tally(
    pixels, labels, image, is_row, weights, pixel_max, D, C,
    COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Return a tile's summed loss, correct predictions, softmax and one-hot labels."""
    columns = tl.arange(0, COLUMNS)
    sums = tl.zeros((BLOCK_ROWS, COLUMNS), tl.float32)
    for first in range(0, D, BLOCK_PIXELS):
        k = first + tl.arange(0, BLOCK_PIXELS)
        places = k[:, None] * COLUMNS + columns[None, :]
        w = tl.load(weights + places, mask=(k < D)[:, None], other=0.0)
        sums = _multiply_add(_tile(pixels, image, is_row, first, D), w, sums, TERMS)
    bias = tl.load(weights + D * COLUMNS + columns)
    logits = tl.where((columns < C)[None, :], sums / pixel_max + bias[None, :], float("-inf"))
    largest = tl.max(logits, 1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, 1)
    label = tl.load(labels + image, mask=is_row, other=0)
    is_label = columns[None, :] == label[:, None]
    of_label = tl.sum(tl.where(is_label, logits, 0.0), 1)
    loss = tl.sum(tl.where(is_row, tl.log(total) - (of_label - largest), 0.0), 0)
    num_correct = tl.sum((is_row & (tl.argmax(logits, 1) == label)).to(tl.int32), 0)
    return loss, num_correct, powers / total[:, None], is_label


@triton.jit
def _step(weights, velocity, gradient, places, inside, begins, ends, rate, momentum, decay, l1):
    """Add a slice's gradient to the velocity; at the end of a mini-batch move the weights.

    As torch's SGD: a mini-batch's first slice multiplies the velocity by the momentum and adds the
    penalties; the weights move by the learning rate times the velocity.
    """
    w = tl.load(weights + places, mask=inside, other=0.0)
    v = tl.load(velocity + places, mask=inside, other=0.0)
    if begins:
        sign = (w > 0).to(tl.float32) - (w < 0).to(tl.float32)
        v = momentum * v + decay * w + l1 * sign
    v += gradient
    tl.store(velocity + places, v, mask=inside)
    if ends:
        tl.store(weights + places, w - rate * v, mask=inside)


@triton.jit
def train_epoch(
    pixels,  # uint8 (num_images, D)
    labels,  # int64 (num_images,)
    order,  # int64 (N,): which image comes when
    weights,  # float32 (P, D + 1, COLUMNS), the bias last; columns of no class are zero
    velocity,  # the same
    batch_sizes,  # int32 (P,)
    coefficients,  # float32 (steps, 4, P): rows as in plan.COEFFICIENTS
    residuals,  # float32 (P, SLICE_ROWS, COLUMNS): scratch
    losses,  # float64 (P,): sums of cross-entropy
    corrects,  # int64 (P,): correct predictions
    pixel_max,
    N,
    D,
    C,
    IS_MEAN: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
) -> None:
    """Train the trial whose program this is for one epoch."""
    trial = tl.program_id(0).to(tl.int64)
    weights += trial * (D + 1) * COLUMNS
    velocity += trial * (D + 1) * COLUMNS
    residuals += trial * SLICE_ROWS * COLUMNS
    batch_size = tl.load(batch_sizes + trial)
    num_trials = tl.num_programs(0)
    of_batch = coefficients + trial
    columns = tl.arange(0, COLUMNS)
    loss = tl.zeros((), tl.float64)
    num_correct = tl.zeros((), tl.int64)
    for batch in range(0, N, batch_size):
        end = tl.minimum(batch + batch_size, N)
        rate = tl.load(of_batch)
        momentum = tl.load(of_batch + num_trials)
        decay = tl.load(of_batch + 2 * num_trials)
        l1 = tl.load(of_batch + 3 * num_trials)
        of_batch += 4 * num_trials
        image_weight = 1.0 / (end - batch).to(tl.float32) if IS_MEAN else 1.0
        for start in range(batch, end, SLICE_ROWS):
            num_rows = tl.minimum(end - start, SLICE_ROWS)
            begins = start == batch
            ends = start + num_rows == end
            of_bias = tl.zeros((COLUMNS,), tl.float32)
            for first in range(0, num_rows, BLOCK_ROWS):
                row = first + tl.arange(0, BLOCK_ROWS)
                is_row = row < num_rows
                image = tl.load(order + start + row, mask=is_row, other=0)
                tile_loss, tile_correct, softmax, is_label = _tally(
                    pixels, labels, image, is_row, weights, pixel_max, D, C, COLUMNS, TERMS
                )
                loss += tile_loss.to(tl.float64)
                num_correct += tile_correct
                # weight * (softmax - one-hot): Murphy 2022, equation 10.60.
                residual = image_weight * (softmax - is_label.to(tl.float32))
                residual = tl.where(is_row[:, None], residual, 0.0)
                tl.store(residuals + row[:, None] * COLUMNS + columns[None, :], residual)
                of_bias += tl.sum(residual, 0)
            tl.debug_barrier()  # all residuals are written and all reads of the weights done
            for first in range(0, D, BLOCK_PIXELS):
                k = first + tl.arange(0, BLOCK_PIXELS)
                gradient = tl.zeros((BLOCK_PIXELS, COLUMNS), tl.float32)
                for above in range(0, num_rows, BLOCK_ROWS):
                    row = above + tl.arange(0, BLOCK_ROWS)
                    is_row = row < num_rows
                    image = tl.load(order + start + row, mask=is_row, other=0)
                    residual = tl.load(residuals + row[:, None] * COLUMNS + columns[None, :])
                    x = tl.trans(_tile(pixels, image, is_row, first, D))
                    gradient = _multiply_add(x, residual, gradient, TERMS)
                places = k[:, None] * COLUMNS + columns[None, :]
                inside = (k < D)[:, None] & (columns < C)[None, :]
                _step(
                    weights, velocity, gradient / pixel_max, places, inside,
                    begins, ends, rate, momentum, decay, l1,
                )  # fmt: skip
            _step(
                weights, velocity, of_bias, D * COLUMNS + columns, columns < C,
                begins, ends, rate, momentum, 0.0, 0.0,  # no penalty on the bias
            )  # fmt: skip
            tl.debug_barrier()  # all weights are written and all reads of the residuals done
    tl.store(losses + trial, loss)
    tl.store(corrects + trial, num_correct)


@triton.jit
def evaluate(
    pixels,  # uint8 (N, D)
    labels,  # int64 (N,)
    weights,  # float32 (P, D + 1, COLUMNS)
    losses,  # float32 (P, tiles): sums of cross-entropy over a tile's images
    corrects,  # int32 (P, tiles)
    pixel_max,
    N,
    D,
    C,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
) -> None:
    """Evaluate one trial on one tile of images: a grid of (P, tiles)."""
    trial = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    image = tile.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    loss, num_correct, _, _ = _tally(
        pixels, labels, image, image < N, weights + trial * (D + 1) * COLUMNS,
        pixel_max, D, C, COLUMNS, TERMS,
    )  # fmt: skip
    at = trial * tl.num_programs(1) + tile
    tl.store(losses + at, loss)
    tl.store(corrects + at, num_correct)
