"""The Triton kernels in Triton's interpreter, through its compiler, and on a GPU if there is one.

Without a GPU the interpreter shows that they mean what training one trial alone means, and the
compiler that they become a GPU's code, its tensor cores' products in it and nothing spilled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import packs
import pytest
import torch
import triton
from packs import MIXED_24
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import build

from tune_softmax.engine import gpu_check, gpu_kernels, pack
from tune_softmax.engine.gpu_group import launch_options
from tune_softmax.engine.pack import Pack
from tune_softmax.engine.products import NUM_TERMS
from tune_softmax.errors import PackError

SUPPORT = Path(__file__).parents[1] / "support"
POINTERS = {
    "pixels": "*u8",
    **dict.fromkeys(["labels", "order"], "*i64"),
    "batch_sizes": "*i32",
    **dict.fromkeys(["weights", "velocity", "residuals", "coefficients"], "*fp32"),
}
TALLIES = {"train_epoch": ("*fp64", "*i64"), "evaluate": ("*fp32", "*i32")}
NUMBERS = {"pixel_max": "fp32", "N": "i32", "D": "i32", "C": "i32"}
PRODUCTS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def interpreted():
    """Run everything in Triton's interpreter, once."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SUPPORT / "gpu_interpreted.py")],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH")))
            ),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", ["small", "tiles", "slices", "summed", "kinds"])
def test_a_launch_means_what_training_alone_means(interpreted, case):
    """Batches of all lengths, tiles that are not full, gradients of more than one slice, sums."""
    assert interpreted[case]["weights"] < 1e-6
    assert interpreted[case]["curves"] < 1e-6


@pytest.mark.parametrize(
    ("precision", "weights", "curves"), [("bfloat16x2", 1e-4, 1e-6), ("bfloat16", 1e-2, 5e-2)]
)
def test_fewer_terms_are_less_exact(interpreted, precision, weights, curves):
    """Each by about the digits that it leaves out; three terms leave out none."""
    assert interpreted["small"]["weights"] < interpreted[precision]["weights"] < weights
    assert interpreted[precision]["curves"] < curves


def test_no_neighbour_changes_a_bit(interpreted):
    """A trial's program is its own, also beside one that diverges."""
    assert interpreted["neighbours"] == {"same": True, "diverged": True}


def test_trials_go_on_in_another_pack(interpreted):
    """With the weights and the velocity that they had."""
    assert interpreted["going on"]["same"]


def test_other_trials_of_a_pack_train_as_before(interpreted):
    """With a hidden layer, or on images that move, torch's operations do it, in the same pack."""
    assert interpreted["kinds"]["kinds"] == ["GpuGroup", "HiddenGroup", "LinearGroup"]


def test_the_check_finds_them_the_same(interpreted):
    """What a process asks before it uses them on a GPU."""
    assert interpreted["check"] < 1e-6 < gpu_check.TOLERANCE


@pytest.mark.parametrize(
    ("kernel", "columns", "capability"),
    [
        *((gpu_kernels.train_epoch, 16, capability) for capability in PRODUCTS),
        (gpu_kernels.train_epoch, 32, 80),
        (gpu_kernels.evaluate, 16, 90),
    ],
)
def test_they_compile_for_gpus_of(kernel, columns, capability, tmp_path):
    """Their products are the tensor cores', and what a thread keeps fits into its registers.

    For images of 784 pixels, that is, of a multiple of 16; others are read less smoothly.
    """
    losses, corrects = TALLIES[kernel.__name__]
    types = {**POINTERS, "losses": losses, "corrects": corrects, **NUMBERS}
    fixed = {"IS_MEAN": True, "COLUMNS": columns, "TERMS": NUM_TERMS["float32"]}
    names = kernel.arg_names
    aligned = [i for i, name in enumerate(names) if name == "D" or "*" in types.get(name, "")]
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): fixed[name] for name in fixed if name in names},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=launch_options(columns))
    assert PRODUCTS[capability] in made.asm["ptx"]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run(
        [tool, "-res-usage", str(binary)], capture_output=True, text=True, check=True
    )
    assert "STACK:0" in usage.stdout
    assert "LOCAL:0" in usage.stdout


def test_without_triton_torch_s_operations_train(monkeypatch):
    """Triton comes with torch on Linux alone; the reason is told."""
    monkeypatch.setattr(gpu_check, "find_spec", lambda _name: None)
    gpu_check.fallback_reason.cache_clear()
    gpu = torch.device("cuda")
    assert "is not there" in gpu_check.fallback_reason(gpu)
    assert gpu_check.gpu_engine(gpu).startswith("torch's operations, because Triton, which")
    gpu_check.fallback_reason.cache_clear()


@pytest.fixture
def a_gpu_is_there(monkeypatch):
    """Let the check take the CPU for a GPU that the kernels support."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    gpu_check.fallback_reason.cache_clear()
    yield
    gpu_check.fallback_reason.cache_clear()


@pytest.mark.usefixtures("a_gpu_is_there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver that Triton can use")
def test_without_a_driver_torch_s_operations_train():
    """Triton's own RuntimeError ends in one line, where it was an exception before."""
    with pytest.raises(RuntimeError):
        gpu_check.disagreement(torch.device("cpu"))
    reason = gpu_check.fallback_reason(torch.device("cpu"))
    assert reason.startswith("Triton could not compile or run the kernels (RuntimeError: ")
    assert "\n" not in reason


@pytest.mark.usefixtures("a_gpu_is_there")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(None, "RuntimeError: Failed to find C compiler"), ("false", "CalledProcessError: Command")],
)
def test_without_a_c_compiler_torch_s_operations_train(compiler, reason, monkeypatch, tmp_path):
    """Triton builds its launcher in C; here its own build finds no compiler, or a broken one."""
    monkeypatch.delenv("CC", raising=False)
    if compiler is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CC", compiler)

    def build_launcher(_device):
        build._find_compiler.cache_clear()
        build._build("launcher", str(tmp_path / "launcher.c"), str(tmp_path), [], [], [], [])

    monkeypatch.setattr(gpu_check, "disagreement", build_launcher)
    device = torch.device("cuda")
    assert reason in gpu_check.fallback_reason(device)
    remark = gpu_check.remark_on_fallback("float32")
    assert remark.startswith(
        "packs train with torch's operations on the GPU, more slowly, because"
    )
    assert reason in remark
    assert gpu_check.remark_on_fallback("tf32") is None
    told = gpu_check.gpu_engine(device)
    assert told.startswith("torch's operations, because Triton could not compile or run")
    assert "\n" not in told
    build._find_compiler.cache_clear()


@pytest.mark.usefixtures("a_gpu_is_there")
@pytest.mark.parametrize(
    ("found", "reason"), [(0.5, "differ from theirs by 5.0e-01"), (float("nan"), "theirs by nan")]
)
def test_a_gpu_that_computes_otherwise_is_found_out(monkeypatch, found, reason):
    """Before a trial is trained by them."""
    monkeypatch.setattr(gpu_check, "disagreement", lambda _device: found)
    assert reason in gpu_check.fallback_reason(torch.device("cuda"))


def test_on_a_cpu_no_gpu_kernel_trains():
    """The compiled kernels, or torch's operations, train there."""
    data = packs.random_data()
    kinds = {type(group).__name__ for group in Pack(MIXED_24, data, seed=0)._groups}
    assert "GpuGroup" not in kinds
    assert not pack._has_gpu_kernels(data, "float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_means_what_training_alone_means():
    """The same on the real thing, which first finds nothing against them."""
    data = packs.random_data(2000, 500, image_shape=(28, 28), num_classes=10)
    on_gpu = packs.on_gpu(data)
    assert gpu_check.fallback_reason(on_gpu.device) is None
    together, alone = packs.train_packed(MIXED_24, on_gpu), packs.train_alone(MIXED_24, data)
    for number in MIXED_24:
        assert packs.difference(together[number], alone[number]) < 1e-4


def test_tf32_is_torch_s_own():
    """A GPU's TF32 is a precision of torch's products, not of terms."""
    assert "tf32" not in NUM_TERMS
    with pytest.raises(PackError, match="tf32"):
        Pack(MIXED_24, packs.random_data(), seed=0, precision="tf32")
