"""Whether processes that a test looks at have ended."""

import time
from pathlib import Path

DEADLINE_S = 30.0


def is_running(process):
    """Say whether a process is there, and no zombie."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for_end(process):
    """Wait until a process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while is_running(process):
        assert time.monotonic() < deadline, f"process {process} is still there"
        time.sleep(0.05)
