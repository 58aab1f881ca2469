"""Run every scenario, or those whose name holds one of the words given, and print the table."""

import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from faults import clusters, drivers, resuming, storage, workers  # noqa: F401 - they enter theirs
from faults.command import await_true, kill_all, left_folders, processes
from faults.scenarios import SCENARIOS, UnavailableError

# Two of Ray's agents outlive a killed driver by a minute or two.
LEFT_TIMEOUT_S = 200.0


def main(words):
    """Return 0 if everything held, 1 if not, 2 if no scenario has such a name."""
    chosen = [one for one in SCENARIOS if not words or any(word in one.name for word in words)]
    if not chosen:
        print(f"no scenario is named so; there are: {', '.join(one.name for one in SCENARIOS)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is cleared away
    print(f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores\n")
    print("| fault | how often | what must hold | what was seen | ok | s |")
    print("|---|---|---|---|---|---|", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as home:
            verdicts = [_row(one, Path(home) / str(n)) for n, one in enumerate(chosen)]
        left = _left()
    finally:
        kill_all()
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    print(f"\n{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; {left}")
    return int("**not**" in counts or left != NOTHING_LEFT)


NOTHING_LEFT = "no process and no temporary folder left"


def _row(one, folder):
    """Run one scenario, print its row, and return its verdict."""
    started = time.monotonic()
    try:
        seen, verdict = one.run(folder), "ok"
    except UnavailableError as error:
        seen, verdict = str(error), "skipped"
    except Exception as error:  # noqa: BLE001 - one row's failure is not the table's end
        traceback.print_exc()
        seen, verdict = " ".join(str(error).split())[:300], "**not**"
    row = (one.name, one.times, one.holds, seen, verdict, f"{time.monotonic() - started:.0f}")
    print("| " + " | ".join(row) + " |", flush=True)
    return verdict


def _left():
    """Say what is left of all the processes that were started."""
    try:
        await_true(lambda: not processes(), "every process has ended", LEFT_TIMEOUT_S)
    except AssertionError:
        return f"left: {len(processes())} processes"
    folders = left_folders()
    return f"left: {', '.join(map(str, folders))}" if folders else NOTHING_LEFT


def _processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
