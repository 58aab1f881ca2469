"""Every use of undocumented Ray: a faster start of a search, behind one switch.

`TUNE_SOFTMAX_FAST_START=0` turns all of it off, `1` on; without the variable it is on for the
releases of Ray that our tests have run with. Without it a search gives the same results, some
seconds later.

| piece | replaces | gains | what would break it |
|---|---|---|---|
| `lean_imports` | pandas and Ray Data while Ray Tune is imported | 0.5 s in the driver and in \
every worker, and their memory | Ray Tune using either while it is imported |
| `local_node` | helper processes of a local node, and waits of a second | about 5 s | other \
names of Ray's processes or of their options |
| `kept_workers` | how Ray Tune gets workers, and how many it keeps | a second a worker | other \
names in `ray.tune.execution` |

What fails here is left out, with a warning in the log: Ray Tune is imported once more, in whole,
and `cluster.connect` starts a local node once more, in the plain way.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tune_softmax.errors import ClusterError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["SWITCH", "TRIED", "import_tune", "is_on", "start", "tuning"]

SWITCH = "TUNE_SOFTMAX_FAST_START"
# The releases of Ray (major.minor) that the tests have run with, fast and plain.
TRIED = ("2.59", "2.60")

logger = logging.getLogger("tune_softmax")


def is_on() -> bool:
    """Return whether Ray is to be started in the fast way.

    Raises:
        ClusterError: The switch is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in {"", "0", "1"}:
        raise ClusterError(
            f"{SWITCH}={switch}: must be 0 (start Ray in the plain way) or 1 (in the fast one); "
            "leave it out to decide by Ray's release"
        )
    return switch == "1" if switch else version("ray").rpartition(".")[0] in TRIED


def import_tune() -> Any:  # noqa: ANN401 - Ray is not typed
    """Import Ray Tune and return it."""
    if is_on():
        try:
            from tune_softmax.cluster.fast_start.lean_imports import without_annotations

            with without_annotations():
                return importlib.import_module("ray.tune")
        except Exception as error:  # noqa: BLE001 - whatever a release of Ray does otherwise
            _warn("Ray Tune was imported", error)
            for name in [name for name in sys.modules if name.startswith(IMPORTED_WITH_TUNE)]:
                del sys.modules[name]
    return importlib.import_module("ray.tune")


# Modules of Ray that a failed import of Ray Tune may leave half made.
IMPORTED_WITH_TUNE = ("ray.tune", "ray.train", "ray.air", "ray.data")


def start(
    folder: Path,
    init: Callable[..., None],
    *,
    count_workers: Callable[[float, float], int],
    is_wanted: threading.Event,
) -> bool:
    """Start a local node in the fast way, and connect to it.

    Args:
        folder: Where Ray may write.
        init: Calls `ray.init` with the folder and more options.
        count_workers: Returns, for a node's CPUs and GPUs, how many workers will be needed at
            once.
        is_wanted: Set once the driver has nothing better to do than to connect. It connects in one
            call that holds Python's lock until the first workers have come up.

    Returns:
        Whether it is there; if not, nothing of it is left.
    """
    if not is_on():
        return False
    try:
        from tune_softmax.cluster.fast_start.kept_workers import in_running_workers
        from tune_softmax.cluster.fast_start.local_node import few_processes

        with in_running_workers():  # which a node without agents needs
            pass
        with few_processes(count_workers, is_wanted) as options:
            init(folder, **options)
    except Exception as error:  # noqa: BLE001 - as above
        _warn("Ray started", error)
        importlib.import_module("ray").shutdown()
        return False
    return True


@contextmanager
def tuning() -> Iterator[None]:
    """Replace, while Ray Tune runs trials, how it gets workers and how many it keeps."""
    with ExitStack() as stack:
        if is_on():
            from tune_softmax.cluster.fast_start import kept_workers, lean_imports

            for piece in (
                kept_workers.in_running_workers,
                kept_workers.keeping_idle_workers,
                lean_imports.without_ray_data,
            ):
                try:
                    stack.enter_context(piece())
                except Exception as error:  # noqa: BLE001 - as above
                    _warn("Ray Tune got workers", error)
        yield


def _warn(what: str, error: Exception) -> None:
    logger.warning(
        "%s in the plain way, for the fast one failed (%s: %s); %s=0 leaves it out",
        *(what, type(error).__name__, error, SWITCH),
    )
