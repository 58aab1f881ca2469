"""Nodes of a cluster die or freeze, and its head dies."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.command import PROGRAM, Run, await_true, processes, variables
from faults.drivers import EPOCH_S
from faults.oracle import Oracle, events
from faults.scenarios import digits, scenario

__all__ = ["Cluster"]

# How soon Ray notices that a node is frozen; its default is about a minute.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Node:
    """One node of a cluster.

    Attributes:
        process: Its `ray start`.
        mark: What all its processes have in their environment.
    """

    process: subprocess.Popen
    mark: str

    def signal(self, number, title=b""):
        """Send a signal to every process of the node whose title holds some text."""
        for pid in processes(title, self.mark):
            _signal(pid, number)

    def kill(self):
        """Kill every process of the node at once."""
        self.signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.signal(signal.SIGKILL)  # what was started meanwhile


class Cluster:
    """A Ray cluster of our own on this machine: a head without CPUs, and nodes of one CPU.

    Every node has a loopback address of its own, so that a driver joins the head and no other.

    Args:
        run: Whose driver joins it; its workers have the run's faults.
    """

    def __init__(self, run):
        self._folder = run.home / f"cluster-{secrets.token_hex(2)}"
        self._folder.mkdir(parents=True)
        # Sockets below Ray's folder need a short path.
        self._place = Path(tempfile.mkdtemp(prefix="faults-"))
        run.environment = QUICK_HEALTH_CHECKS | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        # Workers inherit their node's environment, not the driver's.
        self._environment = run.environment | variables(run.all_faults)
        self._num_started = 0
        self.nodes = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        head = ("--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={self._place}")
        self.head = self._start(*head, "--include-dashboard=false")

    def add_node(self):
        """Start a node with one CPU."""
        self.nodes.append(self._start(f"--address={self.address}", "--num-cpus=1"))

    def _start(self, *options):
        self._num_started += 1
        log = self._folder / f"node-{self._num_started}.txt"
        mark = secrets.token_hex(8)
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    *(str(Path(PROGRAM).parent / "ray"), "start", "--block", *options),
                    f"--node-ip-address=127.0.0.{self._num_started}",
                    *("--disable-usage-stats", "--object-store-memory=100000000"),
                ],
                env=os.environ | self._environment | {"TUNE_SOFTMAX_FAULT_NODE": mark},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        node = Node(process, mark)
        try:
            await_true(lambda: "block" in log.read_text() or process.poll(), "a node")
            assert process.poll() is None, log.read_text()
        except AssertionError:
            node.kill()
            raise
        return node

    def kill_node(self, node):
        """Kill a node, and forget it."""
        node.kill()
        self.nodes.remove(node)

    def training_node(self, run):
        """Return the node whose worker trained last, or None."""
        lines = [x for x in run.witness.read_text().splitlines() if x.startswith("epoch")]
        pid = int(lines[-1].split()[1])
        return next((node for node in self.nodes if pid in processes(mark=node.mark)), None)

    def close(self):
        """Kill all that was started here."""
        for node in [*self.nodes, self.head]:
            node.kill()
        shutil.rmtree(self._place, ignore_errors=True)


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@contextmanager
def joined(run, num_nodes):
    """Have a cluster for as long as the context lasts."""
    cluster = Cluster(run)
    try:
        for _ in range(num_nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.close()


@scenario("3 killed, 1 frozen", "their packs go on elsewhere; no trial lost, none final run again")
def nodes_killed_and_frozen(folder):
    """Three nodes; the one that trains is killed three times and replaced, then one freezes."""
    experiment = digits(folder, trials=300, pack=10, places=2)
    run = Run(folder / "run", {"epoch_s": 0.3})
    with joined(run, 3) as cluster:
        run.search(experiment, "--address", cluster.address)
        for _ in range(3):
            _await_next(run)
            cluster.kill_node(await_true(lambda: cluster.training_node(run), "a training node"))
            cluster.add_node()
        _await_next(run)
        num_died = len(events(run, "worker_died"))
        frozen = await_true(lambda: cluster.training_node(run), "a training node")
        thawed = processes(mark=frozen.mark)
        frozen.signal(signal.SIGSTOP)
        await_true(lambda: len(events(run, "worker_died")) > num_died, "it is missed")
        _await_next(run)
        frozen.signal(signal.SIGCONT)
        run.finish()
    Oracle(run).complete(300, besides=thawed)
    num_died = len(events(run, "worker_died"))
    assert num_died >= 4, num_died
    return f"{num_died} packs lost a worker, 300 of 300 trials; the frozen node thawed in vain"


def _await_next(run):
    """Wait until packs that were lost before are done, and others train."""
    assert run.await_epochs(14), run.last_text()


@scenario("1 of 1", "it says that no node can run a pack, and goes on when one has joined")
def the_last_node_killed(folder):
    """Kill the one node that can run a pack; another joins later."""
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    with joined(run, 1) as cluster:
        run.search(digits(folder, trials=60, pack=10), "--address", cluster.address)
        _await_next(run)
        cluster.kill_node(cluster.nodes[0])
        killed = time.monotonic()
        lost = "no node of the cluster can run a pack now: waiting for one with 1 CPUs and 0 GPUs"
        await_true(lambda: lost in run.last_text() and lost in run.log(), "it says so", 120)
        seconds = time.monotonic() - killed
        cluster.add_node()
        back = "a node of the cluster can run packs again: the search goes on"
        await_true(lambda: back in run.last_text() and back in run.log(), "it says so", 60)
        run.finish()
    Oracle(run).complete(60)
    return f"said so after {seconds:.0f} s; 60 of 60 trials with the node that joined then"


@scenario("1", "exit code 7 within 60 s; resumed on another cluster, none final run again")
def the_gcs_killed(folder):
    """SIGKILL the cluster's control service in mid-search."""
    experiment = digits(folder, trials=120, pack=10)
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    with joined(run, 1) as cluster:
        run.search(experiment, "--address", cluster.address)
        assert run.await_epochs(8), run.last_text()
        cluster.head.signal(signal.SIGKILL, b"gcs_server")
        killed = time.monotonic()
        run.finish(7)
        seconds = time.monotonic() - killed
    assert "tune-softmax resume" in run.last_text(), run.last_text()
    oracle = Oracle(run)
    oracle.look()
    num_kept = oracle.num_final
    assert num_kept < 120, "the search had ended before"
    run.faults["epoch_s"] = 0
    with joined(run, 1) as cluster:
        run.resume("--address", cluster.address)
        run.finish()
    oracle.complete(120)
    assert seconds < 60, seconds
    return f"exit code 7 after {seconds:.0f} s, {num_kept} trials kept; resumed: 120 of 120"
