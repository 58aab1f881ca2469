"""Train a list of trials in a run folder of their own and evaluate each on the test set.

A study of remedies and a confirmation are such lists. One that was interrupted goes on. The
folder's ledger records that the test set is opened before it is.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tune_softmax.data.dataset import load_test_for
from tune_softmax.run.ledger import Ledger
from tune_softmax.studies import session, stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tune_softmax.data.dataset import Dataset
    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.scheduler.agenda import Agenda
    from tune_softmax.scheduler.progress import Snapshot

__all__ = ["TrialList"]


@dataclass(frozen=True, slots=True)
class TrialList:
    """A list of trials to train in a run folder.

    Attributes:
        folder: Its run folder. Where that has a ledger already, the list goes on.
        kind: What kind of run it is, for the ledger.
        experiment: Where dataset, model options and resources come from.
        agenda: The trials.
        train_fraction: What part of the training images to load; the trials' own fractions are
            fractions of these.
        meta: What else to write into the ledger's table meta. Where it differs from what is
            there, the ledger records that the run was extended.
    """

    folder: RunFolder
    kind: str
    experiment: Experiment
    agenda: Agenda
    train_fraction: float = 1.0
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to go on with."""
        ledger = self.folder.ledger
        return not isinstance(ledger, Path) or ledger.exists()

    def train(
        self,
        *,
        address: str | None,
        data_dir: Path | str | None,
        observe: Callable[[Snapshot], None],
        before: Callable[[Dataset], None],
    ) -> None:
        """Train what is left, and evaluate every complete trial on the test set.

        Args:
            address: HOST:PORT of a Ray cluster; by default a local one of our own.
            data_dir: Where datasets are.
            observe: Called with every change, to display it.
            before: Called with training and validation images before anything is written or the
                test set is opened, to refuse them or to record the opening elsewhere too.

        Raises:
            DataError: The dataset cannot be had.
            ClusterError: A request that no node can ever meet.
            ResultsError: The folder is in use, or its dataset or experiment has changed.
            SearchInterruptedError: A signal stopped it; it can be gone on with.
        """

        def show(snapshot: Snapshot) -> None:
            # The best trial by validation means nothing here.
            phase = "training" if snapshot.phase == "searching" else snapshot.phase
            observe(replace(snapshot, phase=phase, best=None))

        loaded = self.experiment.dataset.model_copy(update={"train_fraction": self.train_fraction})
        source = self.experiment.model_copy(update={"dataset": loaded})
        with (
            stopping.interruptible() as stop,
            session.prepared(source, address, data_dir, show) as (dataset, cluster),
        ):
            before(dataset)
            with self._opened(dataset) as ledger:
                from tune_softmax.scheduler.dispatcher import Job

                _record_opening(ledger, self.kind)
                job = Job(
                    experiment=self.experiment,
                    agenda=self.agenda,
                    ledger=ledger,
                    dataset=dataset,
                    num_places=cluster.num_packs(self.experiment.resources),
                    should_stop=lambda: stop.is_due,
                    observe=show,
                    test=load_test_for(self.experiment.dataset, data_dir),
                )
                session.run(self.folder, job, cluster, stop)

    @contextmanager
    def _opened(self, dataset: Dataset) -> Iterator[Ledger]:
        """Make the folder and its ledger, or open them and check that nothing has changed."""
        folder, meta = self.folder, {"kind": self.kind, **self.meta}
        is_begun = self.is_begun
        if not folder.path.exists():
            folder.create()
        with folder.writing(), session.logging_to(folder.log):
            if is_begun:
                ledger = Ledger.open(folder.ledger, writable=True)
            else:
                session.write_description(folder, self.experiment, dataset)
                meta |= {
                    "dataset_checksum": dataset.checksum,
                    "experiment": self.experiment.to_yaml(),
                }
                ledger = Ledger.create(folder.ledger, meta)
            with closing(ledger):
                recorded = ledger.meta()
                session.check_unchanged(folder, recorded, self.experiment)
                session.check_dataset(folder, recorded["dataset_checksum"], dataset)
                if recorded != recorded | dict(self.meta):
                    ledger.set_meta(self.meta, "extended", **self.meta)
                yield ledger


def _record_opening(ledger: Ledger, kind: str) -> None:
    """Record that the test set is about to be opened, once for each list of trials."""
    kinds = [event for _, event, _ in ledger.events()]
    before = kinds[::-1].index("extended") if "extended" in kinds else len(kinds)
    if "test_opened" not in kinds[len(kinds) - before :]:
        ledger.event("test_opened", command=kind)
