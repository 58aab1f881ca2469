"""What `environment.json` says: the versions and the hardware that a run was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe"]

PACKAGES = ("tune-softmax", "torch", "torchvision", "ray", "optuna", "pandas", "numpy")


def describe(more_packages: Iterable[str] = ()) -> dict[str, object]:
    """Return versions and hardware of this machine, without importing what is heavy.

    Args:
        more_packages: To name beside our own dependencies; what is not installed is left out.
    """
    return {
        "python": platform.python_version(),
        "packages": _versions([*PACKAGES, *more_packages]),
        "system": platform.platform(),
        "processor": _processor(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the engine runs where torch alone is
            continue
    return found


def _processor() -> str:
    """Return the processor's name, which Linux tells in a file alone."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
