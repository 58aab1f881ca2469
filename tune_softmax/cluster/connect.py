"""Where a search runs: a local Ray cluster of its own, or an existing one by address.

It says what is there and refuses what can never be met; what runs on it is not its business.
Ray is imported inside functions, because a local cluster's token must be in the environment by
then.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

from tune_softmax.cluster import fast_start, limits, sandbox
from tune_softmax.errors import ClusterError, ClusterLostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tune_softmax.experiment.sections import Resources

__all__ = ["Cluster", "Connecting", "Node", "connect"]

logger = logging.getLogger("tune_softmax")

CONNECT_TIMEOUT_S = 5.0
# Leaving takes a second; of a cluster whose processes had a signal before us it takes for ever.
LEAVE_TIMEOUT_S = 10.0
# A head that is silent for so long is gone. After 60 s Ray would end the process by itself, with
# exit code 1 and no word of what to do.
HEAD_SILENCE_S = 45.0
HEAD_CHECK_S = 5.0
# Options of Ray Tune that it reads from the environment alone.
TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger holds the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a search stops well by itself
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # Ray's own snapshots are not read
    "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),  # the dispatcher counts what fits
    "RAY_AIR_NEW_OUTPUT": "0",
}


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
        import ray

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
    ClusterLostError's exit code.

    Args:
        address: HOST:PORT of a cluster's head; None starts a local cluster of our own, whatever
            other Ray runs on this machine or is named in the environment.
        resources: What a pack takes, for as many workers to be started at once.

    Yields:
        The cluster to be.

    Raises:
        ClusterError: This process is connected to a cluster already, or this machine does not
            let a local one have what it needs.
    """
    is_wanted, is_over = threading.Event(), threading.Event()
    with ExitStack() as stack:
        stack.enter_context(sandbox.variables(TUNE_VARIABLES))
        if address is None:
            here = Node("here", num_cpus=os.cpu_count() or 1, num_gpus=0)
            limits.check_limits(num_workers=max(1, here.num_packs(resources)))
            stack.enter_context(sandbox.token_required())
        _import_ray()
        folder = stack.enter_context(sandbox.private_folder())
        executor = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        cluster = executor.submit(_connect, address, folder, resources, is_wanted, is_over)
        try:
            yield Connecting(cluster, is_wanted)
        finally:
            is_wanted.set()
            wait([cluster])
            is_over.set()
            _disconnect()


def _import_ray() -> None:
    """Import Ray, and refuse a process that is connected already."""
    with warnings.catch_warnings():
        # In a notebook tqdm, which Ray imports, misses ipywidgets for displays of no use here.
        warnings.filterwarnings("ignore", "IProgress not found")
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
        import ray
    if ray.is_initialized():
        raise ClusterError(
            "this Python process is connected to Ray already, and a search makes a connection of "
            "its own: call ray.shutdown() first; to run on that cluster, give its HOST:PORT as "
            "address then"
        )


def _disconnect() -> None:
    """Leave the cluster; a local one ends. One whose processes are dead may never answer."""
    leaving = threading.Thread(target=_leave, daemon=True)
    leaving.start()
    leaving.join(LEAVE_TIMEOUT_S)
    if leaving.is_alive():
        logger.warning("Ray did not let go within %g s, and is left as it is", LEAVE_TIMEOUT_S)


def _leave() -> None:
    import ray

    # Handles of actors left in reference cycles would else be collected whenever Python likes, by
    # the display's thread too, and touching Ray while it shuts down ends the process.
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def _connect(
    address: str | None,
    folder: Path,
    resources: Resources,
    is_wanted: threading.Event,
    is_over: threading.Event,
) -> Cluster:
    import ray

    if address is None:
        _start_local(folder, resources, is_wanted)
    else:
        _join(address)
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch, args=(head, folder, is_over), daemon=True).start()
    return Cluster(address, folder)


def _start_local(folder: Path, resources: Resources, is_wanted: threading.Event) -> None:
    """Start a cluster of this machine alone, the fast way if that is on."""

    def count_workers(num_cpus: float, num_gpus: float) -> int:
        num_packs = Node("here", num_cpus, num_gpus).num_packs(resources)
        return max(1, min(num_packs, resources.max_concurrent_packs or num_packs))

    if fast_start.start(folder, _init, count_workers=count_workers, is_wanted=is_wanted):
        return
    # Workers start in an empty folder; Ray would have them import from the driver's.
    empty = folder.parent / "empty"
    empty.mkdir(exist_ok=True)
    try:
        _init(folder, runtime_env={"working_dir": str(empty)})
    except ClusterError:
        raise
    except Exception as error:  # Ray raises that very class where its node is late
        raise ClusterError(
            f"Ray does not start on this machine: {_first_line(error)!r}; try again when it is "
            "less busy, or look with `tune-softmax doctor`"
        ) from error


def _init(folder: Path, **more: Any) -> None:  # noqa: ANN401 - options of `ray.init`
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=limits.object_store_bytes(),
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        **more,
    )
    if os.environ.get("RAY_AUTH_MODE") != "token":  # Ray below 2.59 leaves the cluster open
        ray.shutdown()
        raise ClusterError(
            f"Ray {version('ray')} was imported before the search and leaves a local cluster "
            "open to everybody: set RAY_AUTH_MODE=token before Ray is imported, or use Ray 2.59 "
            "or later"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _watch(address: str, folder: Path, is_over: threading.Event) -> None:
    """End this process once the cluster is gone: Ray Tune would wait for it in C++."""
    last_answer = time.monotonic()
    while not is_over.wait(HEAD_CHECK_S):
        if not sandbox.is_there(folder):
            _end_lost(f"{folder}, where Ray keeps its sockets, was removed while a search ran")
        if _why_unreachable(address) is None:
            last_answer = time.monotonic()
        elif time.monotonic() - last_answer >= HEAD_SILENCE_S:
            _end_lost(
                f"the head of the Ray cluster at {address} has not answered for "
                f"{HEAD_SILENCE_S:g} s"
            )


def _end_lost(reason: str) -> NoReturn:
    lost = (
        f"{reason}; nothing done is lost, go on with `tune-softmax resume RUN`, on this cluster "
        "once it is back or on another"
    )
    logger.error(lost)
    sys.stderr.write(f"error: {lost}\n")
    sys.stderr.flush()
    os._exit(ClusterLostError.exit_code)


def _join(address: str) -> None:
    import ray

    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: Ray says {_first_line(error)!r}; start the head with "
            "`ray start --head`, and use the same Ray version and authentication token here"
        ) from error


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens, which Ray would wait for."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--address {address!r}: write HOST:PORT, for example 10.0.0.5:6379")
    reason = _why_unreachable(address)
    if reason is not None:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({reason}); start its head with "
            "`ray start --head --port=6379`, or leave --address out to run on this machine"
        )


def _why_unreachable(address: str) -> str | None:
    """Return why nothing answers at HOST:PORT; None where something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None
