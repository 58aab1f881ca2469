"""Where a search runs: a local Ray cluster of its own, or an existing one by address.

It says what is there and refuses what can never be met; what runs on it is not its business.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.cluster.fast_start.deferred import put_off
from tune_softmax.errors import ClusterError, ClusterLostError
from tune_softmax.gc_paused import lasting

# Of the two that are put off Ray uses nothing here, and they take a third of its time to import.
# In a notebook Ray and tqdm, which it imports, miss ipywidgets for displays that we do not use.
with lasting(), put_off("requests"), put_off("jsonschema"), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    import ray
    import ray._common.usage.usage_lib  # `ray.init` does, and it imports requests

    from tune_softmax.cluster import sandbox
    from tune_softmax.cluster.fast_start import local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tune_softmax.experiment.experiment import Resources

__all__ = ["Cluster", "Connecting", "Node", "connect"]

logger = logging.getLogger("tune_softmax")

CONNECT_TIMEOUT_S = 5.0
# A head that is silent for 50 s is gone. After 60 s Ray would end the process by itself, with exit
# code 1 and no word of what to do.
HEAD_CHECK_S = 5.0
MAX_MISSED_CHECKS = 10


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster.

    Attributes:
        name: Its address.
        num_cpus: CPUs that Ray may give out.
        num_gpus: GPUs that Ray may give out.
    """

    name: str
    num_cpus: float
    num_gpus: float

    def num_packs(self, resources: Resources) -> int:
        """Return how many packs fit on the node side by side."""
        fit = int(self.num_cpus // resources.cpus_per_pack)
        if resources.gpus_per_pack:
            per_gpu = int(1 / resources.gpus_per_pack)
            fit = min(fit, int(self.num_gpus) * per_gpu)
        return fit


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that this process is connected to.

    Attributes:
        address: Of its head; None for a local cluster of our own.
        folder: Where Ray may write; gone when the search ends.
    """

    address: str | None
    folder: Path

    def nodes(self) -> list[Node]:
        """Return the machines that are alive now."""
        return [
            Node(
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def num_packs(self, resources: Resources) -> int:
        """Return how many packs run side by side.

        Raises:
            ClusterError: No node could ever run a single one.
        """
        nodes = self.nodes()
        fit = sum(node.num_packs(resources) for node in nodes)
        if not fit:
            largest = max(nodes, key=lambda node: (node.num_gpus, node.num_cpus))
            raise ClusterError(
                f"a pack asks for {resources.cpus_per_pack} CPUs and {resources.gpus_per_pack:g} "
                f"GPUs on one node; the largest of {len(nodes)} has {largest.num_cpus:g} CPUs and "
                f"{largest.num_gpus:g} GPUs ({largest.name}): lower resources.cpus_per_pack or "
                "resources.gpus_per_pack, or add such a node"
            )
        return min(fit, resources.max_concurrent_packs or fit)


class Connecting:
    """A cluster to be, which starts in the background.

    A local one lets this process in only once somebody asks for it: until its first workers have
    come up Ray would hold Python's lock, and whatever is imported meanwhile would stand still.

    Args:
        cluster: What the background will give.
        is_wanted: Set to let this process in.
    """

    def __init__(self, cluster: Future[Cluster], is_wanted: threading.Event) -> None:
        self._cluster = cluster
        self._is_wanted = is_wanted

    def result(self) -> Cluster:
        """Return the cluster as soon as it is there.

        Raises:
            ClusterError: There is none at the address, or it does not let us in.
        """
        self._is_wanted.set()
        return self._cluster.result()


@contextmanager
def connect(address: str | None, resources: Resources) -> Iterator[Connecting]:
    """Connect to a Ray cluster for as long as the context lasts.

    Connecting takes seconds of waiting, so it goes on in the background; ask for its result once
    it is needed. If the cluster's head goes away for good, this process ends with
    ClusterLostError's exit code. What was frozen by `gc.freeze` is thawed at the end.

    Args:
        address: HOST:PORT of a cluster's head; None starts a local cluster of our own, whatever
            other Ray runs on this machine or is named in the environment.
        resources: What a pack takes, for as many workers to be started at once.

    Yields:
        The cluster to be.
    """
    folder = sandbox.make_folder()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the ledger holds the results
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `search` stops well by itself
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)  # Ray's own snapshots are not read
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(10**6)  # `search` counts what fits
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    is_wanted, is_over = threading.Event(), threading.Event()
    with ThreadPoolExecutor(max_workers=1) as executor:
        cluster = executor.submit(_connect, address, folder, resources, is_wanted, is_over)
        try:
            yield Connecting(cluster, is_wanted)
        finally:
            is_wanted.set()
            wait([cluster])
            is_over.set()
            # Handles of actors left in reference cycles would else be collected whenever Python
            # likes, by the display's thread too, and touching Ray while it shuts down ends the
            # process.
            gc.collect()
            gc.unfreeze()
            gc.disable()
            ray.shutdown()
            gc.enable()
            sandbox.remove_folder(folder)


def _connect(
    address: str | None,
    folder: Path,
    resources: Resources,
    is_wanted: threading.Event,
    is_over: threading.Event,
) -> Cluster:
    def count_workers(num_cpus: float, num_gpus: float) -> int:
        num_packs = Node("here", num_cpus, num_gpus).num_packs(resources)
        return max(1, min(num_packs, resources.max_concurrent_packs or num_packs))

    if address is None:
        local_ray.start(folder, count_workers, is_wanted)
    else:
        _join(address)
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch_head, args=(head, is_over), daemon=True).start()
    return Cluster(address, folder)


def _watch_head(address: str, is_over: threading.Event) -> None:
    """End this process once the cluster's head is gone: Ray Tune would wait for it in C++."""
    num_missed = 0
    while not is_over.wait(HEAD_CHECK_S):
        try:
            _check_reachable(address)
            num_missed = 0
        except ClusterError:
            num_missed += 1
        if num_missed == MAX_MISSED_CHECKS:
            lost = (
                f"the head of the Ray cluster at {address} has not answered for "
                f"{MAX_MISSED_CHECKS * HEAD_CHECK_S:g} s; nothing done is lost, go on with "
                "`tune-softmax resume RUN`, on this cluster once it is back or on another"
            )
            logger.error(lost)
            sys.stderr.write(f"error: {lost}\n")
            sys.stderr.flush()
            os._exit(ClusterLostError.exit_code)


def _join(address: str) -> None:
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: Ray says {str(error).splitlines()[0]!r}; start the head with "
            "`ray start --head`, and use the same Ray version and authentication token here"
        ) from error


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens, which Ray would wait for."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--address {address!r}: write HOST:PORT, for example 10.0.0.5:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({error}); start its head with "
            "`ray start --head --port=6379`, or leave --address out to run on this machine"
        ) from error
