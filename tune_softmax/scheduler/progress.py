"""The progress of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_softmax.metrics import State

if TYPE_CHECKING:
    from collections import Counter

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The progress of a search, for a display.

    Attributes:
        phase: What is being done now, in words.
        num_trials: How many trials the search has in all.
        states: How many trials are in each state.
        num_packs: Packs that are training now.
        best: Number and value of the best complete trial; None before the first.
        num_epochs: Trial-epochs trained.
        seconds: Since the search or resume started.
        seconds_left: An estimate; None before the first trial has ended.
        remark: A message for the user, to be printed once; empty for none.
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
        """How many trials will not run again."""
        return sum(count for state, count in self.states.items() if state.is_final)

    def __str__(self) -> str:
        """Return the progress in one line."""
        if not self.states:
            return self.phase
        done, states, best, clock, left = self._parts()
        return " | ".join(part for part in (done, states, best, clock, left) if part)

    def by_importance(self) -> list[str]:
        """Return the same in parts, the most important first, for a line with less room."""
        if not self.states:
            return []
        done, states, best, clock, left = self._parts()
        return [part for part in (best, left, done, states, clock) if part]

    def _parts(self) -> tuple[str, str, str, str, str]:
        states = self.states
        packs = "1 pack" if self.num_packs == 1 else f"{self.num_packs} packs"
        counts = (
            f"{states[State.COMPLETE]} complete, {states[State.PRUNED]} stopped early, "
            f"{states[State.FAIL]} failed, {states[State.RUNNING]} running in {packs}"
        )
        return (
            f"{self.num_done} of {self.num_trials} trials done",
            counts,
            f"best {self.best[1]:.4f} (trial {self.best[0]})" if self.best else "",
            _clock(self.seconds),
            "" if self.seconds_left is None else f"about {_clock(self.seconds_left)} left",
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
