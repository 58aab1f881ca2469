"""What the driver and a pack's worker send each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.engine.plan import TrialState
    from tune_softmax.metrics import Report
    from tune_softmax.scheduler.agenda import DataView, Task

__all__ = ["Decision", "PackResult", "PackTask"]


@dataclass(frozen=True, slots=True)
class PackTask:
    """What a worker trains.

    Attributes:
        pack: The pack's number.
        tasks: Its trials by number, all of one view.
        epoch: How many epochs the trials have trained before, in another pack.
        recorded: The last epoch that an earlier attempt has reported; nothing parks up to it.
    """

    pack: int
    tasks: Mapping[int, Task]
    epoch: int = 0
    recorded: int = 0

    @property
    def view(self) -> DataView:
        """What its trials train on."""
        return next(iter(self.tasks.values())).view

    def __deepcopy__(self, _memo: object) -> PackTask:
        """Return the task itself: it never changes, and Ray Tune copies what it is given."""
        return self


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pack that waits on a rung is told before it continues.

    Attributes:
        stopped: The trials that end here.
        parks: Whether the pack returns the states of its other trials and ends.
    """

    stopped: frozenset[int] = frozenset()
    parks: bool = False

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.parks or bool(self.stopped)


@dataclass(frozen=True, slots=True, repr=False)
class PackResult:
    """What a worker reports to the driver.

    It has no `repr`: Ray Tune would make one for every line of its log, and logs none.

    Attributes:
        pack: The pack's number.
        reports: Of its trials' epochs, in their order.
        error: The traceback, if the pack raised.
        out_of_memory: Whether memory was too small for a pack of this size.
        remark: A message for the user, if there is one.
        states: Of the trials that the pack was told to park, by number.
        held: Trials of the pack whose last reports are kept back until the round ends.
    """

    pack: int
    reports: list[Report]
    error: str | None = None
    out_of_memory: bool = False
    remark: str | None = None
    states: dict[int, TrialState] = field(default_factory=dict)
    held: frozenset[int] = frozenset()
