"""A machine that does not let a local cluster have what it needs is named before Ray starts."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tune_softmax.cluster import limits
from tune_softmax.errors import ClusterError

PROGRAM = str(Path(sys.executable).parent / "tune-softmax")
EXPERIMENT = """
dataset: {name: digits}
space: {batch_size: 64, num_epochs: 2, learning_rate: {log_uniform: [1.0e-2, 1]}}
search: {num_trials: 2}
"""


@pytest.mark.parametrize(
    ("which", "value", "says"),
    [
        (resource.RLIMIT_NOFILE, 48, r"needs \d+ open files \(ulimit -n\), and 48 are allowed"),
        (resource.RLIMIT_AS, 10**9, r"bytes of address space .* 1,000,000,000 are allowed"),
        (resource.RLIMIT_FSIZE, 10**6, r"bytes in a file .* 1,000,000 are allowed"),
    ],
    ids=["files", "address space", "file size"],
)
def test_a_limit_that_is_too_small_is_named(tmp_path, which, value, says):
    """One message and exit code 2; nothing is written."""
    path = tmp_path / "limited.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    done = subprocess.run(
        [PROGRAM, "search", str(path), "--run-dir", str(tmp_path / "run")],
        preexec_fn=lambda: resource.setrlimit(which, (value, value)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (message,) = done.stderr.splitlines()
    assert re.search(says, message), message
    assert not (tmp_path / "run").exists()


def test_threads_of_a_user_are_counted():
    """Root's too, whom the limit does not bind."""
    assert limits._num_threads() >= sum(1 for _ in Path("/proc/self/task").iterdir())


@pytest.mark.parametrize(
    ("files", "memory", "store"),
    [
        ({}, None, 512),
        ({"memory.max": "max"}, None, 512),
        ({"memory.max": str(1000 * limits.MIB)}, 1000, 300),
        ({"memory/memory.limit_in_bytes": str(600 * limits.MIB)}, 600, 180),
        ({"memory.max": str(100 * limits.MIB)}, 100, 80),
    ],
    ids=["none", "no limit", "version 2", "version 1", "too little"],
)
def test_a_cgroup_bounds_the_memory(tmp_path, monkeypatch, files, memory, store):
    """The object store is a part of it, within Ray's bounds and ours."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n", encoding="ascii")
    if memory is not None:
        assert limits._memory_bytes() == memory * limits.MIB
    assert limits.object_store_bytes() <= store * limits.MIB
    if memory is not None and memory * limits.MIB < limits.LEAST_MEMORY_BYTES:
        with pytest.raises(ClusterError, match="100 MiB are allowed here: give this container"):
            limits.check_limits(1)
    else:
        limits.check_limits(1)


def test_a_full_temporary_folder_is_named(monkeypatch):
    """With how to choose another."""
    monkeypatch.setattr(limits, "LEAST_DISK_BYTES", 2**80)
    with pytest.raises(ClusterError, match=r"MiB are free: make room, or name another .* TMPDIR"):
        limits.check_limits(1)
