"""The processes of a bench: what they take, and that none of them outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tune_softmax.bench.processes import Child, our_command

SLEEP = "import time; time.sleep(600)"


def lives(pid):
    """Say whether a process is there, and more than an entry that nobody has collected yet."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


def await_line(log):
    """Return what a child has printed, once that is a line."""
    deadline = time.monotonic() + 60
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return log.read_text().split()


def test_a_child_ends_with_all_that_it_started(tmp_path):
    """A grandchild in a session of its own, with a changed title, is found by the mark."""
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
        f"{SLEEP!r}], start_new_session=True); print(p.pid, flush=True); p.wait()"
    )
    log = tmp_path / "log"
    with Child([sys.executable, "-c", code], log) as child:
        (grandchild,) = map(int, await_line(log))
        assert {child.process.pid, grandchild} <= set(child.pids())
        assert os.getpid() not in child.pids()
    assert not lives(child.process.pid)
    assert not lives(grandchild)


def test_a_child_that_will_not_end_is_killed(tmp_path, monkeypatch):
    """SIGTERM comes first, SIGKILL when it has had its time."""
    monkeypatch.setattr("tune_softmax.bench.processes._END_TIMEOUT_S", 0.2)
    code = f"import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); {SLEEP}"
    log = tmp_path / "log"
    with Child([sys.executable, "-c", code], log) as child:
        await_line(log)
    assert child.process.returncode == -signal.SIGKILL


def test_memory_is_told_apart_by_role(tmp_path):
    """A child that fills 50 MB is the driver; what Ray would call a worker counts apart."""
    code = (
        "import subprocess, sys; data = bytearray(b'x') * 50_000_000; "
        "subprocess.Popen(['ray::work', '-c', "
        f"\"data = bytearray(b'x') * 30_000_000; {SLEEP}\"], executable=sys.executable); "
        f"print(1, flush=True); {SLEEP}"
    )
    log = tmp_path / "log"
    with Child([sys.executable, "-c", code], log) as child:
        await_line(log)
        deadline = time.monotonic() + 60
        while (memory := child.memory()).workers < 30_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert 50_000_000 < memory.driver < 80_000_000
    assert memory.workers < 60_000_000
    assert memory.others == 0


def test_our_command_is_the_command_line(tmp_path):
    """It runs in a folder of its own and says what went wrong in its last line."""
    with Child(our_command("results", "nowhere"), tmp_path / "log") as child:
        assert child.process.wait() == 2
        assert child.last_words().startswith("error: nowhere")


def test_a_bench_that_is_terminated_ends_its_children_and_removes_its_files(tmp_path):
    """SIGTERM unwinds it like Ctrl-C does."""
    code = f"""
import sys, tempfile
from pathlib import Path
from tune_softmax.bench.processes import Child, ending_on_sigterm
with ending_on_sigterm(), tempfile.TemporaryDirectory() as place:
    with Child([sys.executable, "-c", {SLEEP!r}], Path(place) / "log") as child:
        print(place, child.process.pid, flush=True)
        child.process.wait()
"""
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output)
    place, pid = await_line(log)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not Path(place).exists()
    assert not lives(int(pid))


def test_a_command_that_said_nothing_has_no_last_words(tmp_path):
    """An empty log is told as such."""
    with Child([sys.executable, "-c", ""], tmp_path / "log") as child:
        assert child.wait(60) == 0
        assert child.last_words() == "it said nothing"


def test_waiting_ends_before_the_child(tmp_path):
    """No exit code is known of one that runs."""
    with Child([sys.executable, "-c", SLEEP], tmp_path / "log") as child:
        assert child.wait(0.01) is None
