"""What the driver and a pack's worker send each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.engine.plan import TrialState
    from tune_softmax.metrics import Report
    from tune_softmax.scheduler.agenda import Task, View

__all__ = ["PackResult", "PackTask"]


@dataclass(frozen=True, slots=True)
class PackTask:
    """What a worker is to train.

    Attributes:
        pack: The pack's number.
        tasks: Its trials by number, all of one view.
        epoch: How many epochs the trials have behind them, in another pack.
        recorded: Up to which epoch an earlier attempt has reported; it parked nothing there.
    """

    pack: int
    tasks: Mapping[int, Task]
    epoch: int = 0
    recorded: int = 0

    @property
    def view(self) -> View:
        """What its trials train on."""
        return next(iter(self.tasks.values())).view

    def __deepcopy__(self, _memo: object) -> PackTask:
        """Return the task itself: it never changes, and Ray Tune copies what it is given."""
        return self


@dataclass(frozen=True, slots=True, repr=False)
class PackResult:
    """What a worker tells the driver.

    It has no representation of its own: Ray Tune would make one for every line that it logs, and
    log none.

    Attributes:
        pack: The pack's number.
        reports: Of its trials' epochs, in their order.
        error: The traceback, if the pack raised.
        out_of_memory: Whether memory was too little for a pack of this size.
        remark: What to tell who asked for it, if there is anything.
        states: Of the trials that it was told to park, by number.
    """

    pack: int
    reports: list[Report]
    error: str | None = None
    out_of_memory: bool = False
    remark: str | None = None
    states: dict[int, TrialState] = field(default_factory=dict)
