"""Under what conditions something was measured: hardware, versions, commit, date, other load."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_softmax.run import environment

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Conditions"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a figure needs beside it, so that another can be held against it.

    Attributes:
        hardware: Processor, cores and memory.
        packages: Versions by name, as far as they are installed.
        commit: Of our own source, with `-dirty` where files were changed; `unknown` outside git.
        date: Of the measurement, UTC.
        load: Processes that ran or waited for a core in the minute before it.
    """

    hardware: str
    packages: dict[str, str]
    commit: str
    date: str
    load: float

    @classmethod
    def now(cls, more_packages: Iterable[str] = ()) -> Conditions:
        """Return the conditions that hold now.

        Args:
            more_packages: To name beside our own dependencies.
        """
        facts: dict[str, Any] = environment.describe(more_packages)
        memory = round(facts["memory_bytes"] / 2**30)
        return cls(
            hardware=f"{facts['num_cpus']} cores of {facts['processor']}, {memory} GiB",
            packages={"python": facts["python"], **facts["packages"]},
            commit=_commit(),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            load=round(os.getloadavg()[0], 2),
        )

    def __str__(self) -> str:
        """Say it all in two lines."""
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return (
            f"{self.hardware}; commit {self.commit}; {self.date}; "
            f"load before it {self.load:g}\n{versions}"
        )


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run(  # noqa: S603 - git itself, on our own folder
        [git, "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
