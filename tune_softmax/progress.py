"""How far a search is, and showing it: live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tune_softmax.metrics import State

if TYPE_CHECKING:
    from collections import Counter
    from types import TracebackType

    from rich.console import Console

__all__ = ["Display", "Snapshot"]

# Seconds between two plain lines, where nobody watches them change.
PLAIN_PERIOD_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a search is, for a display.

    Attributes:
        phase: What is being done, for people.
        num_trials: How many trials the search has in all.
        states: How many trials are in each state.
        num_packs: Packs that are training now.
        best: The best finished trial's number and value, if there is one.
        num_epochs: Trial-epochs trained.
        seconds: Since the search began.
        seconds_left: An estimate, once there is something to base it on.
        remark: What the search does and who asked for it should know, to be said once.
    """

    phase: str
    num_trials: int
    states: Counter[State]
    num_packs: int = 0
    best: tuple[int, float] | None = None
    num_epochs: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    remark: str = ""

    @property
    def num_done(self) -> int:
        """Trials that will not run again."""
        return sum(count for state, count in self.states.items() if state.is_final)

    def __str__(self) -> str:
        """Say it all in one line."""
        if not self.states:
            return self.phase
        states = self.states
        parts = [
            f"{self.num_done} of {self.num_trials} trials done",
            (
                f"{states[State.COMPLETE]} complete, {states[State.PRUNED]} stopped early, "
                f"{states[State.FAIL]} failed, {states[State.RUNNING]} running in "
                f"{self.num_packs} packs"
            ),
        ]
        if self.best:
            parts.append(f"best {self.best[1]:.4f} (trial {self.best[0]})")
        parts.append(_clock(self.seconds))
        if self.seconds_left is not None:
            parts.append(f"about {_clock(self.seconds_left)} left")
        return " | ".join(parts)


class Display:
    """Shows snapshots as they come; use it as a context and call it with each one.

    Args:
        console: Where to show them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._remark = ""
        self._shown_at = 0.0
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._task = self._live.add_task("", total=None, text="")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        if snapshot.remark != self._remark:
            self._remark = snapshot.remark
            self._console.print(snapshot.remark, highlight=False, soft_wrap=True)
        if self._console.is_terminal:
            started = bool(snapshot.states)
            self._live.update(
                self._task,
                total=snapshot.num_trials if started else None,
                completed=snapshot.num_done,
                description=snapshot.phase,
                text=str(snapshot) if started else "",
            )
            return
        now = time.monotonic()
        is_last = snapshot.num_done == snapshot.num_trials
        if is_last or snapshot.phase != self._phase or now - self._shown_at >= PLAIN_PERIOD_S:
            self._phase, self._shown_at = snapshot.phase, now
            self._console.print(str(snapshot), highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
