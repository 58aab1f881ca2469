"""Stands in for an agent of Ray's: does nothing, for as long as the raylet that started it lives.

A script, run without site packages, so that it is there in no time and takes no memory.
"""

import os
import time

__all__ = ["main"]

CHECK_S = 0.5


def main() -> None:
    """Wait for the end of the raylet, whose process Ray names to its agents."""
    raylet = int(os.environ["RAY_RAYLET_PID"])
    while os.getppid() == raylet:
        time.sleep(CHECK_S)


if __name__ == "__main__":
    main()
