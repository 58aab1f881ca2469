"""Products in less than float32: what is exact, what is lost, and that it is said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packs import random_data, train_packed

from tune_softmax.commands.doctor import examine
from tune_softmax.config import Config
from tune_softmax.engine import cpu_kernels, products
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.products import (
    Products,
    bfloat16_terms,
    check_precision,
    has_fast_bfloat16,
    remark_on,
)
from tune_softmax.errors import PackError

CPU = torch.device("cpu")
REDUCED = ("bfloat16x2", "bfloat16")
# What a precision may lose of sum |x| |w|: of a term's last digit half, and float32's rounding.
LOSS = {"bfloat16x2": 2**-16, "bfloat16": 2**-8}


@pytest.fixture(autouse=True)
def _one_thread():
    """Compute with one thread, as a pack does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fast(monkeypatch):
    """Take this processor for one with fast products of bfloat16, to oneDNN's setting and all."""
    monkeypatch.setattr(products, "has_fast_bfloat16", lambda _: True)


def terms_of(matrix, count):
    """Split a matrix into so many terms."""
    return bfloat16_terms(matrix, tuple(torch.empty_like(matrix) for _ in range(count)))


# Without the smallest normal numbers, whose second term would be a denormal one.
NUMBERS = st.floats(2**-100, 2**100, width=32) | st.floats(-(2**100), -(2**-100), width=32)
MATRICES = arrays.arrays("float32", st.integers(1, 40), elements=NUMBERS | st.just(0.0))


@settings(max_examples=300, deadline=None)
@given(matrix=MATRICES.map(torch.tensor))
def test_two_terms_hold_sixteen_digits(matrix):
    """Every term is a bfloat16, and two of them miss at most 2**-16 of any number, one 2**-8."""
    for count, most in ((1, 2**-8), (2, 2**-16), (3, 0)):
        terms = terms_of(matrix, count)
        for term in terms:
            assert torch.equal(term, term.bfloat16().float())
        left = (matrix.double() - sum(term.double() for term in terms)).abs()
        assert (left <= most * matrix.abs().double()).all()


def test_terms_round_to_the_nearest_and_keep_what_is_not_finite():
    """Ties go to even; an infinity or a NaN shows in the first term."""
    step = 2.0**-7  # of bfloat16 above 1
    matrix = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, torch.inf, torch.nan])
    (term,) = terms_of(matrix, 1)
    assert term[:4].tolist() == [1.0, 1 + 2 * step, 1 + step, torch.inf]
    assert term[4].isnan()


def test_pixels_are_exact_in_every_precision():
    """All 256 values survive in bfloat16, and have at most the 11 digits of TF32."""
    pixels = torch.arange(256.0)
    assert torch.equal(pixels.bfloat16().float(), pixels)
    assert torch.equal(pixels.view(torch.int32) & 0x1FFF, torch.zeros(256, dtype=torch.int32))


def matrices(seed=0, *, num_rows=50, num_columns=24):
    """Return data with its images, and weights and residuals to multiply them by."""
    data = random_data(num_rows, image_shape=(9, 7))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(64, num_columns, generator=generator)
    residual = torch.randn(num_rows, num_columns, generator=generator)
    return data, weights, residual


@pytest.mark.parametrize("precision", ["float32", *REDUCED])
@pytest.mark.parametrize("is_moved", [False, True])
def test_products_lose_what_their_terms_lose(precision, is_moved):
    """Both products are off float64's by what the terms lose, and one term loses more than two.

    Images that are integers lose nothing; moved ones lose as much again.
    """
    data, weights, residual = matrices()
    multiply = Products(precision, data)
    images = data.train_inputs.double()
    inputs = multiply.moved(data.train_inputs.clone()) if is_moved else (multiply.train_inputs,)
    logits = multiply.logits(inputs, multiply.weights(weights), torch.empty_like(residual))
    gradient = torch.ones_like(weights)
    multiply.add_gradient(inputs, residual.clone(), gradient)
    for found, left, right in (
        (logits, images, weights.double()),
        (gradient - 1, images.T, residual.double()),
    ):
        error = (found - left @ right).abs() / (left.abs() @ right.abs())
        most = LOSS.get(precision, 0) * (1 + is_moved) + 2e-6
        assert error.max() <= most
        if precision == "bfloat16":
            assert error.max() > 2 * (LOSS["bfloat16x2"] * (1 + is_moved) + 2e-6)


def test_products_are_those_of_bfloat16_tensors():
    """Torch's own product of bfloat16 tensors gives the same, but for rounding its result."""
    data, weights, _ = matrices()
    multiply = Products("bfloat16", data)
    ours = multiply.logits(
        (multiply.train_inputs,), multiply.weights(weights), torch.empty(50, 24)
    )
    torchs = torch.mm(multiply.train_inputs.bfloat16(), weights.bfloat16()) / data.pixel_max
    torch.testing.assert_close(torchs.float(), ours, rtol=2**-7, atol=2**-7)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("precision", REDUCED)
def test_onednn_is_told_for_our_products_alone(precision, monkeypatch):
    """During each of our products it may round to bfloat16; before and after it is as it was."""
    backend = torch.backends.mkldnn.matmul
    seen = []
    mm = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *a, **k: seen.append(backend.fp32_precision) or mm(*a, **k)
    )
    data, weights, residual = matrices()
    before = backend.fp32_precision
    multiply = Products(precision, data)
    inputs = (multiply.train_inputs,)
    multiply.logits(inputs, multiply.weights(weights), torch.empty_like(residual))
    assert seen == ["bf16"]
    assert backend.fp32_precision == before
    with pytest.raises(RuntimeError):
        multiply.logits(inputs, (weights[:-1],), torch.empty_like(residual))
    assert backend.fp32_precision == before


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("precision", REDUCED)
def test_a_fast_processor_multiplies_the_same_terms(precision, monkeypatch):
    """What it would round is nothing, so that here it gives the same bits as a slow one."""
    data = random_data(90)
    configs = {n: Config(batch_size=16, num_epochs=2, learning_rate=0.1 * (n + 1)) for n in (0, 1)}

    def weights():
        pack = Pack(configs, data, seed=0, precision=precision)
        pack.train_epoch()
        return pack.weights(1)[0]

    quick = weights()
    monkeypatch.setattr(products, "has_fast_bfloat16", lambda _: False)
    np.testing.assert_array_equal(quick, weights())


@pytest.mark.skipif(cpu_kernels.find() is None, reason="no kernels are built here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2])
def test_the_kernel_steps_and_splits_as_torch_does(dtype, count):
    """It moves the weights, splits them, and leaves the bias without penalties."""
    generator = torch.Generator().manual_seed(1)
    weights, velocity = torch.randn(2, 13, 24, generator=generator, dtype=dtype)
    now, next_ = torch.rand(2, 4, 24, generator=generator, dtype=dtype)
    rates, (_, momentum, weight_decay, l1) = now[0], next_
    weights[0, 0] = torch.nan
    moved = weights - rates * velocity
    following = momentum * velocity
    following[:-1] += weight_decay * moved[:-1] + l1 * moved[:-1].sign()
    terms = tuple(torch.empty_like(weights) for _ in range(count))
    cpu_kernels.find().step(weights, velocity, terms, now, next_)
    torch.testing.assert_close(weights, moved, equal_nan=True)
    torch.testing.assert_close(velocity[1:], following[1:])
    assert velocity[0, 0].isnan()
    for ours, torchs in zip(terms, terms_of(weights, count), strict=True):
        assert torch.equal(ours.nan_to_num(), torchs.nan_to_num())
        assert ours[0, 0].isnan()


def test_tf32_is_refused_where_there_is_no_gpu():
    """Neither a pack nor its products fall back to another precision."""
    with pytest.raises(PackError, match=r"tf32 is for GPUs alone.* the cpu; set resources"):
        check_precision("tf32", CPU)
    with pytest.raises(PackError, match="tf32 is for GPUs alone"):
        Pack(
            {0: Config(batch_size=4, num_epochs=1, learning_rate=0.1)},
            random_data(),
            seed=0,
            precision="tf32",
        )
    for precision in ("float32", *REDUCED):
        check_precision(precision, CPU)


@pytest.mark.parametrize(
    ("flags", "is_fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, False),
        ({}, False),
    ],
)
def test_amx_alone_is_fast(flags, is_fast, monkeypatch):
    """OneDNN computes float32 matrices in bfloat16 with AMX alone; others and doctor say so."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert has_fast_bfloat16(CPU) == is_fast
    assert remark_on("float32", CPU) is None
    (line,) = [line for line in examine(None) if line.startswith("bfloat16 ")]
    assert ("fast products on the processor" in line) == is_fast
    for precision in REDUCED:
        remark = remark_on(precision, CPU)
        if is_fast:
            assert remark is None
        else:
            assert f"model.precision: {precision} will not be faster here, with no AMX" in remark


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("precision", "most"), [("bfloat16x2", 1e-5), ("bfloat16", 1e-2), ("tf32", 2e-3)]
)
def test_a_gpu_computes_in_every_precision(precision, most):
    """A GPU's weights after an epoch are those of float32, but for what the precision loses."""
    data = random_data(90, image_shape=(6, 5))
    configs = {n: Config(batch_size=16, num_epochs=1, learning_rate=0.05) for n in range(4)}
    expected = train_packed(configs, data)
    cuda = type(data)(
        *(type(s)(s.pixels.cuda(), s.labels.cuda()) for s in (data.train, data.validation)),
        data.image_shape,
        data.num_classes,
        data.pixel_max,
    )
    pack = Pack(configs, cuda, seed=0, precision=precision)
    pack.train_epoch()
    for number in configs:
        found = torch.from_numpy(pack.weights(number)[0]).flatten()
        assert torch.dist(found, expected[number].weights) <= most * found.norm()
