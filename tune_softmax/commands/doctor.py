"""`doctor`: whether this machine has what a search needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tune_softmax.data.dataset import default_data_dir
from tune_softmax.engine import cpu_kernels
from tune_softmax.engine.gpu_check import gpu_engine
from tune_softmax.engine.products import has_fast_bfloat16
from tune_softmax.run import environment

__all__ = ["examine"]


def examine(data_dir: Path | None) -> list[str]:
    """Examine this machine.

    Returns:
        One line a fact.
    """
    facts = environment.describe()
    packages = facts["packages"]
    assert isinstance(packages, dict)
    folder = data_dir or default_data_dir()
    found = sorted(path.parent.name for path in folder.glob("*/raw")) if folder.is_dir() else []
    free = shutil.disk_usage(Path.cwd()).free
    return [
        f"python     {facts['python']} on {facts['system']}",
        f"packages   {', '.join(f'{name} {release}' for name, release in packages.items())}",
        f"processor  {facts['processor']}, {facts['num_cpus']} CPUs to use",
        f"engine     {_engine()}",
        f"bfloat16   {_bfloat16()}",
        f"cuda       {_gpus()}",
        f"data       {folder}: {', '.join(found) if found else 'no dataset yet'}; digits built in",
        f"disk       {free / 2**30:.1f} GiB free here",
    ]


def _engine() -> str:
    kernels = cpu_kernels.find()
    if kernels is None:
        return (
            "torch's operations, because no kernels were compiled; install again with a C compiler"
        )
    return f"compiled kernels for CPU level {kernels.level}"


def _bfloat16() -> str:
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    fast = ["the processor"] if has_fast_bfloat16(torch.device("cpu")) else []
    fast += [f"GPU {gpu.index}" for gpu in gpus if has_fast_bfloat16(gpu)]
    if not fast:
        return "no fast products here (no AMX, no such GPU); use float32"
    return f"fast products on {', '.join(fast)}; model.precision bfloat16x2 uses them"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "no GPU; packs train on the CPU"
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    names = [f"{torch.cuda.get_device_name(gpu)} ({gpu_engine(gpu)})" for gpu in gpus]
    return f"{', '.join(names)}; use one with --gpus-per-pack 1"
