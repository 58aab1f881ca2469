"""The compiled kernels for one CPU core: an epoch of softmax regression in one call.

They are compiled when the package is installed, for three levels of the x86-64 instruction set, or
once for another processor. `find` takes the best level that this processor has. Where there was no
compiler, packs train with torch's operations, which compute the same.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

__all__ = ["PANEL", "SLICE_ROWS", "Kernels", "empty", "find", "library_name"]

PANEL = 16
"""Columns of a panel; the weights of a group fill whole ones."""

SLICE_ROWS = 64
"""Rows of a micro-batch's slice, MAX_ROWS in `cpu_kernels.c`."""

LINE_BYTES = 64  # of a cache line

# Part of the libraries' names. It changes with the functions' arguments, so that a library built
# before such a change is not loaded.
ABI = 2

# Levels of x86-64, the newest first, and the processor flags that each needs.
LEVELS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "v1": set[str](),
}
TYPES: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def _epoch_structure(real: Any) -> Any:  # noqa: ANN401 - ctypes' types are made at run time
    """Return the structure `Epoch` of `cpu_kernels.c` for one type of number."""
    counts = ["num_images", "num_features", "num_classes", "num_trials", "num_columns"]
    flags_and_rows = ["num_rows", "skips_zeros", "has_l1"]
    pointers = ["loss_weights", "coefficients", "scratch", "loss", "num_correct"]
    fields = [
        *(("pixels", ctypes.c_void_p), ("inputs", ctypes.c_void_p), ("pixel_max", real)),
        *(("labels", ctypes.c_void_p), ("order", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in counts),
        *(("weights", ctypes.c_void_p), ("velocity", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in flags_and_rows),
        *((name, ctypes.c_void_p) for name in pointers),
    ]
    return type("Epoch", (ctypes.Structure,), {"_fields_": fields})


class Kernels:
    """The compiled kernels of one level.

    Attributes:
        level: "v4", "v3" or "v1" of x86-64; "v1" is also the plain build for other processors.
    """

    def __init__(self, path: Path, level: str) -> None:
        self.level = level
        self._library = ctypes.CDLL(str(path))
        self._structures = {name: _epoch_structure(real) for name, real in TYPES.items()}

    def scratch(
        self,
        real: np.dtype[Any],
        *,
        num_features: int,
        num_classes: int,
        num_trials: int,
        num_columns: int,
    ) -> Array:
        """Return the working memory that an epoch needs."""
        size = self._function("scratch_size", real.name)
        size.restype = ctypes.c_int64
        counts = (num_features, num_classes, num_trials, num_columns)
        return empty(size(*map(ctypes.c_int64, counts)), real)

    def train_epoch(self, arrays: Mapping[str, Array | None], numbers: dict[str, float]) -> None:
        """Train a group for an epoch; `EPOCH_FIELDS` in `cpu_kernels.c` describes every argument.

        Args:
            arrays: Contiguous; reals of the weights' type.
            numbers: Counts, flags and `pixel_max`.
        """
        self._call("train_epoch", arrays, numbers)

    def evaluate(self, arrays: Mapping[str, Array | None], numbers: dict[str, float]) -> None:
        """Add up a group's loss and correct predictions on images; arguments as `train_epoch`."""
        self._call("evaluate", arrays, numbers)

    def copy_trial(
        self, weights: Array, trial: Array, p: int, num_trials: int, *, skips: bool, out: bool
    ) -> None:
        """Copy one trial's weights, or velocity, into a group's, or out of them.

        Args:
            weights: The group's, (D + 1, N), in the kernels' order of columns.
            trial: Contiguous, (D + 1, C), of the same type.
            p: The trial's place among the group's.
            num_trials: Of the group.
            skips: Whether the group's products skip zeros, which decides where columns are stored.
            out: Whether to copy out of the group.
        """
        counts = (p, *trial.shape, num_trials, weights.shape[1], skips, out)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (weights, trial))
        self._function("copy_trial", weights.dtype.name)(*pointers, *map(ctypes.c_int64, counts))

    def shuffled(self, random: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return a permutation of 0..N-1, int64, (N,), by N random numbers of 32 bits."""
        order = np.empty(len(random), np.int64)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (order, random))
        self._library.shuffle(*pointers, ctypes.c_int64(len(random)))
        return order

    def step(
        self,
        weights: Tensor,
        velocity: Tensor,
        terms: Sequence[Tensor],
        now: Tensor,
        following: Tensor,
    ) -> None:
        """End one step of SGD and begin the next in one pass over the weights.

        Args:
            weights: (D + 1, N), moved by -rate * velocity.
            velocity: The same shape; set to the next step's, without its gradient.
            terms: One or two of the same shape: the weights as bfloat16 terms.
            now: The step's coefficients, (4, N), rows as in `plan.COEFFICIENTS`.
            following: Those of the next step.
        """
        function = self._function("step", str(weights.dtype).removeprefix("torch."))
        second = terms[1] if len(terms) > 1 else None
        tensors = (weights, velocity, terms[0], second, now, following)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        function(*map(ctypes.c_void_p, pointers), *map(ctypes.c_int64, weights.shape))

    def _call(
        self, name: str, arrays: Mapping[str, Array | None], numbers: dict[str, float]
    ) -> None:
        weights = arrays["weights"]
        assert weights is not None
        real = weights.dtype.name
        pointers = {key: None if a is None else a.ctypes.data for key, a in arrays.items()}
        self._function(name, real)(ctypes.byref(self._structures[real](**pointers, **numbers)))

    def _function(self, name: str, real: str) -> Any:  # noqa: ANN401 - ctypes'
        return getattr(self._library, f"{name}_{real}")


def empty(shape: int | tuple[int, ...], real: np.dtype[Any]) -> Array:
    """Return an uninitialized array that begins at a cache line.

    NumPy's arrays begin 16 bytes after one, so every second vector of 32 bytes would span two.
    """
    size = int(np.prod(shape))
    memory = np.empty(size * real.itemsize + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + size * real.itemsize].view(real).reshape(shape)


def library_name(level: str) -> str:
    """Return the name of a level's library in this folder, without its suffix."""
    return f"_cpu_kernels_abi{ABI}_{level}"


@cache
def find() -> Kernels | None:
    """Return the best kernels that are built and that this processor can run, or None."""
    folder = Path(__file__).parent
    flags = _processor_flags()
    for level, needed in LEVELS.items():
        if needed <= flags:
            for suffix in importlib.machinery.EXTENSION_SUFFIXES:
                path = folder / f"{library_name(level)}{suffix}"
                if path.is_file():
                    return Kernels(path, level)
    return None


def _processor_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not cpuinfo.is_file():
        return set()
    lines = cpuinfo.read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
