"""Ray Tune, imported without what it names in annotations alone: pandas and Ray Data.

The two take most of the time of `import ray.tune`, in the driver and in every worker, and memory
besides. So while Ray Tune is imported, something else stands for them; whatever uses more of
them than these names gets the real module, then and later.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tune_softmax.cluster.fast_start.deferred import leave_out, put_off
from tune_softmax.gc_paused import lasting

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["tune", "without_ray_data"]


@contextmanager
def without_ray_data() -> Iterator[None]:
    """Let Ray Tune run without Ray Data, of which it asks whether a trial was given a dataset."""
    with put_off("ray.data", "Dataset"):
        yield


with ExitStack() as stack:
    stack.enter_context(lasting())
    stack.enter_context(without_ray_data())
    stack.enter_context(put_off("pandas", "DataFrame"))
    stack.enter_context(put_off("requests"))  # it asks only whether it is installed
    stack.enter_context(leave_out("rich.layout"))  # of an output that is off
    from ray import tune
