"""The switch, and the plain way where the fast one is off or fails."""

import os
import subprocess
import sys

import pytest

from tune_softmax.cluster import fast_start
from tune_softmax.errors import ClusterError


@pytest.mark.parametrize(
    ("switch", "release", "is_on"),
    [
        ("", "2.60.3", True),
        ("", "2.61.0", False),
        ("", "3.0.0", False),
        ("1", "2.61.0", True),
        ("0", "2.60.0", False),
    ],
)
def test_the_switch_decides_before_the_release(monkeypatch, switch, release, is_on):
    """Without it the fast way is on for the releases that the tests have run with."""
    monkeypatch.setenv(fast_start.SWITCH, switch)
    monkeypatch.setattr(fast_start, "version", lambda _package: release)
    assert fast_start.is_on() is is_on


def test_another_value_of_the_switch_is_refused(monkeypatch):
    """The message says what may be written."""
    monkeypatch.setenv(fast_start.SWITCH, "yes")
    with pytest.raises(ClusterError, match=r"FAST_START=yes: must be 0 .* or 1"):
        fast_start.is_on()


START = """
import logging, sys
from tune_softmax.cluster.connect import connect
from tune_softmax.experiment.sections import Resources
if "missing" in sys.argv:
    from tune_softmax.cluster.fast_start import kept_workers
    def fail():
        raise AttributeError("another release of Ray Tune")
    kept_workers.in_running_workers = fail
if "broken" in sys.argv:
    from tune_softmax.cluster.fast_start import local_node
    local_node.SYSTEM_CONFIG["no_such_option"] = 1
    from ray._private import services
    def fail(*_arguments, **_options):
        raise AttributeError("another release of Ray")
    local_node._alone = fail
logging.basicConfig(level="WARNING", format="%(message)s")
with connect(None, Resources()) as connecting:
    import ray
    assert len(connecting.result().nodes()) == 1
    print(ray.get(ray.remote(lambda: 7).remote()))
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("switch", "how"),
    [("0", "sound"), ("1", "missing"), pytest.param("1", "broken", marks=pytest.mark.slow)],
)
def test_ray_starts_in_the_plain_way(switch, how):
    """Where the fast one is off, and where it fails, which the log says."""
    done = subprocess.run(
        [sys.executable, "-c", START, how],
        env=os.environ | {fast_start.SWITCH: switch},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7"]
    said = "Ray started in the plain way, for the fast one failed" in done.stderr
    assert said == (how != "sound")


LATE = """
import sys
import ray
from tune_softmax.cluster.connect import connect
from tune_softmax.errors import ClusterError
from tune_softmax.experiment.experiment import Resources
def late(**_options):
    raise Exception("The current node timed out during startup.")
ray.init = late
with connect(None, Resources()) as connecting:
    try:
        connecting.result()
    except ClusterError as error:
        print(error)
"""


def test_a_node_that_is_late_is_one_message():
    """Ray raises a bare Exception after 30 s, as on a machine that is too busy."""
    done = subprocess.run(
        [sys.executable, "-c", LATE],
        env=os.environ | {fast_start.SWITCH: "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Ray does not start on this machine: 'The current node timed out" in done.stdout
    assert "try again when it is less busy" in done.stdout
