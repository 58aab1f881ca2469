"""What goes on beside a search and never in its way: copies elsewhere, an Optuna study."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune_softmax.run.folder import RunFolder

__all__ = ["NO_EXTRAS", "Extras"]

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class Extras:
    """What to do beside a search.

    Attributes:
        sync_to: An address to copy the run to, now and then and at the end.
        track: Whether to keep an Optuna study of it up to date, for dashboards.
        report: Takes what they have to say, a line at a time.
    """

    sync_to: str | None = None
    track: bool = False
    report: Callable[[str], None] = logger.info

    @contextmanager
    def beside(self, folder: RunFolder) -> Iterator[None]:
        """Do it for as long as the context lasts.

        Args:
            folder: The run that the search writes.

        Raises:
            StorageError: The address cannot be written to, said before the search begins.
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


NO_EXTRAS = Extras()
