"""Tasks in the background of a search: copies of the run elsewhere, an Optuna study of it.

None of them holds the search up, and none that fails ends it.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune_softmax.run.folder import RunFolder

__all__ = ["NO_TASKS", "BackgroundTasks"]

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class BackgroundTasks:
    """What to do in the background of a search.

    Attributes:
        sync_to: The address of a store to copy the run to, now and then and at the end.
        track: Whether to keep an Optuna study of it up to date, for dashboards.
        report: Called with each line that the tasks have to say.
    """

    sync_to: str | None = None
    track: bool = False
    report: Callable[[str], None] = logger.info

    @contextmanager
    def running(self, folder: RunFolder) -> Iterator[None]:
        """Run the tasks for as long as the context lasts.

        Raises:
            StorageError: The store cannot be written to; raised before the search begins.
        """
        with ExitStack() as stack:
            if self.sync_to is not None:
                from tune_softmax.export import copies, stores, sync

                store = stores.Store.at(self.sync_to)
                copies.prepare(folder, store)
                stack.enter_context(sync.syncing(folder, store, report=self.report))
            if self.track:
                from tune_softmax.export import optuna_tracking

                stack.enter_context(optuna_tracking.tracking(folder, report=self.report))
            yield


NO_TASKS = BackgroundTasks()
