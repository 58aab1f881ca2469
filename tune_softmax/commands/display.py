"""Show how far a search is: live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from tune_softmax.scheduler.progress import Snapshot

__all__ = ["Display"]

# Seconds between two plain lines, where nobody watches them change.
PLAIN_PERIOD_S = 5.0


class Display:
    """Shows snapshots as they come; use it as a context and call it with each one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._phase = ""
        self._remark = ""
        self._shown_at = 0.0
        self._bar_width = max(4, min(24, console.width // 4))
        is_unicode = console.encoding.lower().startswith("utf")
        self._live = Progress(
            SpinnerColumn("dots" if is_unicode else "line"),
            BarColumn(bar_width=self._bar_width),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._task = self._live.add_task("", total=None, text="")

    def __enter__(self) -> Self:
        if self._is_live:
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
            self._console.print(snapshot.remark, soft_wrap=True)
        if self._is_live:
            self._live.update(
                self._task,
                total=snapshot.num_trials if snapshot.states else None,
                completed=snapshot.num_done,
                text=self._text(snapshot),
            )
            return
        now = time.monotonic()
        is_last = snapshot.num_done == snapshot.num_trials
        if is_last or snapshot.phase != self._phase or now - self._shown_at >= PLAIN_PERIOD_S:
            self._phase, self._shown_at = snapshot.phase, now
            self._console.print(str(snapshot), soft_wrap=True)

    def _text(self, snapshot: Snapshot) -> str:
        """Return as many of the parts of a snapshot as fit beside the bar, each of them whole."""
        room = self._console.width - self._bar_width - len("s  ")  # the spinner and two spaces
        text = ""
        for part in [*snapshot.by_importance(), snapshot.phase]:
            longer = f"{text}  {part}" if text else part
            if len(longer) <= room:
                text = longer
        return text
