"""What this machine lets a local cluster have: looked at before Ray starts.

Ray aborts, hangs or says nothing where the system refuses it files, threads or memory; a message
beforehand says which limit, its value, and what is needed. The needs were measured with Ray 2.60.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from tune_softmax.errors import ClusterError

__all__ = ["check_limits", "object_store_bytes"]

MIB = 2**20
# The dataset is what a local object store holds. Ray refuses less than 75 MB.
MOST_STORE_BYTES = 512 * MIB
LEAST_STORE_BYTES = 80 * MIB
STORE_FRACTION = 0.3  # of the memory; Ray's own default
LEAST_MEMORY_BYTES = 512 * MIB
LEAST_ADDRESS_SPACE_BYTES = 3 * 2**30
LEAST_DISK_BYTES = 64 * MIB
# Of Ray's two servers and the driver, and of each worker.
FILES, FILES_PER_WORKER = 56, 4
THREADS, THREADS_PER_WORKER = 250, 60
CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1
CGROUPS = Path("/sys/fs/cgroup")


def check_limits(num_workers: int) -> None:
    """Refuse to start Ray where it cannot run.

    Raises:
        ClusterError: A limit of this process, its memory, or its temporary folder is too small.
    """
    _check(
        resource.RLIMIT_NOFILE,
        "open files (ulimit -n)",
        FILES + FILES_PER_WORKER * num_workers,
    )
    _check(
        resource.RLIMIT_AS,
        "bytes of address space (ulimit -v counts KiB)",
        LEAST_ADDRESS_SPACE_BYTES,
    )
    _check(
        resource.RLIMIT_FSIZE,
        "bytes in a file (ulimit -f counts KiB)",
        object_store_bytes(),
    )
    if os.geteuid():  # the limit does not bind root
        _check(
            resource.RLIMIT_NPROC,
            "threads and processes of this user (ulimit -u)",
            _num_threads() + THREADS + THREADS_PER_WORKER * num_workers,
        )
    memory = _memory_bytes()
    if memory < LEAST_MEMORY_BYTES:
        raise ClusterError(
            f"a search on this machine takes {LEAST_MEMORY_BYTES // MIB} MiB of memory at least, "
            f"and {memory // MIB} MiB are allowed here: give this container or job more"
        )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < LEAST_DISK_BYTES:
        raise ClusterError(
            f"{folder}: Ray needs {LEAST_DISK_BYTES // MIB} MiB for its files, and {free // MIB} "
            "MiB are free: make room, or name another folder by TMPDIR"
        )


def object_store_bytes() -> int:
    """Return how large the object store of a local cluster is to be."""
    wanted = int(STORE_FRACTION * _memory_bytes())
    return min(max(wanted, LEAST_STORE_BYTES), MOST_STORE_BYTES)


def _check(which: int, what: str, needed: int) -> None:
    allowed, most = resource.getrlimit(which)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        hard = "no limit" if most == resource.RLIM_INFINITY else f"{most:,}"
        raise ClusterError(
            f"a search on this machine needs {needed:,} {what}, and {allowed:,} are allowed here "
            f"(the most that may be asked for: {hard}): raise the limit, or run on a cluster with "
            "--address"
        )


def _num_threads() -> int:
    count, user = 0, os.getuid()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                count += sum(1 for _ in (process / "task").iterdir())
        except OSError:  # it has ended
            continue
    return count


def _memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or what its cgroup allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in (CGROUPS, CGROUPS / _cgroup()):
        for name in CGROUP_LIMITS:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:  # the other version, or not mounted
                continue
            if text.isdigit():
                limits.append(int(text))
    return min(limits)


def _cgroup() -> str:
    """Return this process's folder among the cgroups of version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
