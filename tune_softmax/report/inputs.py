"""The inputs of a report, and `gather`, which reads them from a run folder.

Only the run itself is required; for other missing inputs the page names the command that makes
them.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tune_softmax import files
from tune_softmax.errors import DamagedRunError, ExperimentError, StorageError, command
from tune_softmax.oracle.cache import ForeignFileError, PathFile, frame
from tune_softmax.report.evaluation import read_evaluation
from tune_softmax.run import results
from tune_softmax.run.ledger import Ledger
from tune_softmax.stats.wording import and_list, words
from tune_softmax.studies import confirm, remedies

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.report.evaluation import WinnerEvaluation
    from tune_softmax.run.results import Results
    from tune_softmax.studies.confirm import Confirmation
    from tune_softmax.studies.remedies import Remedies

__all__ = ["Inputs", "gather"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a report is made from.

    Attributes:
        folder: The run folder.
        experiment: What was asked.
        search: The search's results, if the run is one.
        environment: Versions, hardware, seeds, checksums, command.
        openings: (UTC time, for what) of each look at the test set.
        path: The regularization path's points, one row a weight decay, if it is cached.
        confirmation: If the best trials were confirmed.
        stale: Why there is a confirmation that is left out: it is out of date.
        remedies: If remedies were studied.
        evaluation: If the winner was evaluated.
    """

    folder: Path
    experiment: Experiment
    search: Results | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    openings: tuple[tuple[str, str], ...] = ()
    path: pd.DataFrame | None = None
    confirmation: Confirmation | None = None
    remedies: Remedies | None = None
    evaluation: WinnerEvaluation | None = None
    stale: str = ""

    def command(self, verb: str, *arguments: object) -> str:
        """Return a command to type, about this run if no arguments are given."""
        return command(verb, *(arguments or [self.folder]))


def gather(run: Path) -> Inputs:
    """Read everything that a report of a run can use.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Its files contradict themselves.
    """
    found = results.load(run)
    is_study = found.experiment.remedies is not None
    with closing(Ledger.open(found.folder.ledger)) as ledger:
        events, meta = ledger.events(), ledger.meta()
    confirmation = None if is_study else confirm.load(run)
    stale = confirmation.stale if confirmation is not None else ""
    return Inputs(
        folder=run,
        experiment=found.experiment,
        search=None if is_study else found,
        environment=_environment(found.folder.environment),
        openings=tuple(
            (str(at), _purpose(detail)) for at, kind, detail in events if kind == "test_opened"
        ),
        path=_path(found, meta.get("dataset_checksum", "")),
        confirmation=None if stale else confirmation,
        remedies=remedies.load(run) if is_study else None,
        evaluation=None if stale else read_evaluation(found.folder.best.evaluation),
        stale=stale,
    )


def _path(found: Results, checksum: str) -> pd.DataFrame | None:
    """Return the oracle's cached points for a run's images.

    A cache that cannot be read counts as none; `oracle` reports why and computes it again.
    """
    try:
        found.experiment.check_convex()
        points = PathFile(found.experiment.dataset.name, checksum).read()
    except (ExperimentError, StorageError, ForeignFileError):
        return None
    return frame(points) if points else None


def _purpose(detail: Mapping[str, Any]) -> str:
    """Return what the test set was opened for: "confirm, trials 5 and 7, seeds 10"."""
    others = {name: value for name, value in detail.items() if name != "command"}
    parts = [
        f"{words(name)} {and_list(value) if isinstance(value, list) else value}"
        for name, value in others.items()
    ]
    return ", ".join([str(detail.get("command", "unknown")), *parts])


def _environment(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = files.read_json(path)
    except ValueError as error:
        raise DamagedRunError(
            f"{path}: cannot be read ({error}); restore the file from a copy"
        ) from error
    if not isinstance(content, dict):
        raise DamagedRunError(f"{path}: must hold one mapping; restore the file from a copy")
    return content
