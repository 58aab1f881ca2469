"""Every use of undocumented Ray: a faster start of a search, behind one switch.

`use` is the one way in. At three moments of a search it replaces parts of Ray for the length of a
context. `TUNE_SOFTMAX_FAST_START=0` turns all of it off, `1` on; without the variable it is on
for the releases of Ray that our tests have run with. Without it a search gives the same results,
some seconds later.

| piece | replaces | gains | what would break it |
|---|---|---|---|
| `lean_imports` | pandas and Ray Data while Ray Tune is imported | 0.5 s in the driver and in \
every worker, and their memory | Ray Tune using either while it is imported |
| `local_node` | helper processes of a local node, and waits of a second | about 5 s | other \
names of Ray's processes or of their options |
| `kept_workers` | how Ray Tune gets workers, and how many it keeps | a second a worker | other \
names in `ray.tune.execution` |

A Ray whose names differ is left as it is, piece by piece; `cluster.connect` starts a local node
again in the plain way if the fast one fails, and says so in the log.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from tune_softmax.errors import ClusterError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

__all__ = ["SWITCH", "TRIED", "is_on", "use"]

SWITCH = "TUNE_SOFTMAX_FAST_START"
# The releases of Ray (major.minor) that the tests have run with, fast and plain.
TRIED = ("2.59", "2.60")


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


@contextmanager
def use(
    moment: Literal["import", "start", "fit"],
    *,
    count_workers: Callable[[float, float], int] | None = None,
    is_wanted: threading.Event | None = None,
) -> Iterator[dict[str, Any]]:
    """Replace, for as long as the context lasts, what is slow of Ray at one moment of a search.

    Args:
        moment: "import": while Ray Tune is imported. "start": while `ray.init` starts a local
            node. "fit": while Ray Tune runs trials.
        count_workers: With "start": returns, for a node's CPUs and GPUs, how many workers will be
            needed at once.
        is_wanted: With "start": set once the driver has nothing better to do than to connect. It
            connects in one call that holds Python's lock until the first workers have come up.

    Yields:
        More options for `ray.init`; none where the switch is off.
    """
    options: dict[str, Any] = {}
    with ExitStack() as stack:
        if is_on():
            if moment == "import":
                from tune_softmax.cluster.fast_start.lean_imports import without_annotations

                stack.enter_context(without_annotations())
            elif moment == "start":
                from tune_softmax.cluster.fast_start.local_node import few_processes

                assert count_workers is not None
                assert is_wanted is not None
                options = stack.enter_context(few_processes(count_workers, is_wanted))
            else:
                from tune_softmax.cluster.fast_start.kept_workers import (
                    in_running_workers,
                    keeping_idle_workers,
                )
                from tune_softmax.cluster.fast_start.lean_imports import without_ray_data

                stack.enter_context(in_running_workers())
                stack.enter_context(keeping_idle_workers())
                stack.enter_context(without_ray_data())
        yield options
