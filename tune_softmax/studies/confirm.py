"""Confirm a search: train its best trials again with new seeds, and test them.

The trials train on training and validation images together, because nothing is left to choose.
Their test results are in the run's folder `confirm/`, which is a run itself. The winner goes to
`best/`: of the trials that no other is shown to beat, the best by the search's validation.
"""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tune_softmax.data.seeding import derive_seed
from tune_softmax.errors import DamagedRunError, ResultsError, command
from tune_softmax.metrics import State
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.notebook import html
from tune_softmax.scheduler.agenda import DataView, FixedList, Task
from tune_softmax.stats.margins import check_margin
from tune_softmax.stats.winners import winners
from tune_softmax.stats.wording import and_list, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune_softmax.data.dataset import Dataset
    from tune_softmax.run.results import Results
    from tune_softmax.scheduler.progress import Snapshot

__all__ = ["KIND", "Confirmation", "confirm", "load", "stale_winner"]

KIND = "confirm"
DEFAULT_TOP = 5
DEFAULT_SEEDS = 10

logger = logging.getLogger("tune_softmax")


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The test results of a search's best trials.

    Attributes:
        folder: The search's.
        top: How many trials were asked for.
        seeds: Which seeds each was trained with.
        replicates: One row a trial and seed: `trial`, `seed`, `test_loss`, `test_accuracy`; NaN
            for what failed.
        winners: What `stats.winners` says of them, the best on the test set first; by the
            test loss if the search's metric is a loss, else by the accuracy.
        winner: The trial in `best/`: of those that no other is shown to beat, the best by the
            search's validation, so that the test set chooses as little as it can. None if all
            diverged.
        num_test_images: In the test set.
        stale: Why the confirmation is out of date, in a sentence: the search has gone on since
            and has better trials now. Empty while its best trials are those confirmed.
    """

    folder: RunFolder
    top: int
    seeds: tuple[int, ...]
    replicates: pd.DataFrame = field(repr=False)
    winners: pd.DataFrame = field(repr=False)
    winner: int | None
    num_test_images: int
    stale: str = ""

    def _repr_html_(self) -> str:
        lines = [
            (
                f"{self.folder.path}: {len(self.winners)} trials trained again over "
                f"{len(self.seeds)} seeds, on {self.num_test_images:,} test images."
            ),
            "No winner: all diverged." if self.winner is None else f"Winner: trial {self.winner}.",
        ]
        lines += [self.stale] if self.stale else []
        columns = [
            *("trial", "mean_test_accuracy", "accuracy_low", "accuracy_high"),
            *("mean_test_loss", "loss_low", "loss_high", "validation_loss", "is_winner"),
        ]
        return html(lines, self.winners[columns])


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which trials are confirmed, and with how many seeds.

    Attributes:
        top: How many trials were asked for.
        num_seeds: How many seeds each is trained with.
        pairs: (trial, which seed) by number in the confirmation's ledger.
    """

    top: int
    num_seeds: int
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, meta: dict[str, str], place: Path) -> _Plan:
        try:
            content = json.loads(meta["plan"])
            pairs = tuple((int(trial), int(seed)) for trial, seed in content["pairs"])
            return cls(int(content["top"]), int(content["num_seeds"]), pairs)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedRunError(
                f"{place}: table meta, key plan: cannot be read ({error!r}); restore the folder "
                "from a copy"
            ) from error

    @property
    def text(self) -> str:
        content = {"top": self.top, "num_seeds": self.num_seeds, "pairs": self.pairs}
        return json.dumps(content)

    def grown(self, trials: list[int], top: int, num_seeds: int) -> _Plan:
        """Return the plan with more trials or seeds; those already in it keep their numbers."""
        wanted = dict.fromkeys([*(trial for trial, _ in self.pairs), *trials])
        pairs = {
            **dict.fromkeys(self.pairs),
            **{(trial, seed): None for seed in range(num_seeds) for trial in wanted},
        }
        return _Plan(top, num_seeds, tuple(pairs))


def confirm(
    run: Path | str,
    *,
    top: int | None = None,
    seeds: int | None = None,
    margin: float | None = None,
    address: str | None = None,
    data_dir: Path | str | None = None,
    observe: Callable[[Snapshot], None] = lambda _snapshot: None,
) -> Confirmation:
    """Train a search's best trials again over seeds, and evaluate them on the test set.

    No trial is trained twice: an interrupted confirmation goes on, a finished one is returned,
    and more trials or seeds are added to it.

    Args:
        run: The search's run folder.
        top: How many of its best complete trials; by default as many as before, or 5.
        seeds: How many seeds, at least 2; by default as many as before, or 10.
        margin: The smallest difference that matters, >= 0, in nats, or in accuracy where that is
            the search's metric; by default as before, or `margins.default_margin`.
        address: HOST:PORT of a Ray cluster; by default a local one of our own.
        data_dir: Where datasets are.
        observe: Called with every change, to display it.

    Raises:
        ExperimentError: The margin is out of range.
        ResultsError: There is no search, no trial is complete, it has other images now, or it
            was confirmed with more trials or seeds.
        SearchInterruptedError: A signal stopped it; to confirm again goes on.
    """
    if margin is not None:
        check_margin(margin)
    found = results.load(run)
    before = _recorded(found)
    plan = _wanted(found, before, top, seeds)
    if left := found.experiment.num_trials - found.count(*(s for s in State if s.is_final)):
        logger.warning(
            "%s: the search is not finished, %s of %s left; its best trials may change, and then "
            "this confirmation is out of date; finish it first with: %s",
            found.folder.path,
            f"{left:,}",
            count(found.experiment.num_trials, "trial"),
            command("resume", found.folder.path),
        )
    known = load(run) if plan == before else None
    if known is None:
        _train(found, plan, before, address, data_dir, observe)
        known = load(run)
        assert known is not None, "a run that ends without an error is finished"
    if margin is not None and margin != known.winners["margin"].iloc[0]:
        known = _with_margin(found, known, margin)
    if known.winner is not None and not found.folder.best.evaluation.exists():
        from tune_softmax.studies import winner

        seed = known.seeds[0]
        with found.folder.writing():
            winner.save(found, known.winner, seed=seed, data_dir=data_dir)
    return known


def load(run: Path | str) -> Confirmation | None:
    """Read the confirmation of a search.

    Returns:
        The confirmation; None if there is none or it is not finished.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Its files contradict themselves.
    """
    found = results.load(run)
    plan = _recorded(found)
    if plan is None:
        return None
    with closing(Ledger.open(found.folder.confirm.ledger)) as ledger, ledger.snapshot():
        states = {record.number: record.state for record in ledger.trials()}
        tests = ledger.test_results()
        recorded = ledger.meta().get("margin")
    if len(states) < len(plan.pairs) or not all(state.is_final for state in states.values()):
        return None
    if not tests:
        raise ResultsError(
            f"{found.folder.confirm.path}: every trial failed when it was trained again; see "
            f"`{command('results', found.folder.confirm.path, '--format', 'csv')}`, "
            "column error"
        )
    rows = [
        {
            "trial": trial,
            "seed": _seed(found, seed),
            "test_loss": tests[number].loss if number in tests else float("nan"),
            "test_accuracy": tests[number].accuracy if number in tests else float("nan"),
        }
        for number, (trial, seed) in enumerate(plan.pairs)
    ]
    replicates = pd.DataFrame(rows)
    seen = found.trials.rename(columns={"number": "trial"})
    for name in ("validation_loss", "validation_accuracy"):
        seen[name] = seen[f"last_{name}"]
    metric = found.experiment.search.metric
    num_images = sum(map(sum, next(iter(tests.values())).confusion))
    table = winners(
        replicates,
        seen,
        num_images,
        metric=metric.replace("validation", "test"),
        margin=None if recorded is None else _margin(recorded, found.folder.confirm.ledger),
    )
    candidates = set(table.loc[table["is_winner"], "trial"])
    ranked = [int(number) for number in found.ranked()["number"] if number in candidates]
    return Confirmation(
        folder=found.folder,
        top=plan.top,
        seeds=tuple(_seed(found, seed) for seed in range(plan.num_seeds)),
        replicates=replicates,
        winners=table,
        winner=ranked[0] if ranked else None,
        num_test_images=num_images,
        stale=_stale(found, plan),
    )


def _with_margin(found: Results, known: Confirmation, margin: float) -> Confirmation:
    """Record another margin, by which another trial may be the winner; none is trained again."""
    folder = found.folder.confirm
    with folder.writing(), closing(Ledger.open(folder.ledger, writable=True)) as ledger:
        ledger.set_meta({"margin": repr(margin)}, "margin", margin=margin)
    judged = load(found.folder.path)
    assert judged is not None, "it was finished before"
    if judged.winner != known.winner:
        with found.folder.writing():
            found.folder.best.remove()
    return judged


def _margin(recorded: str, place: object) -> float:
    try:
        margin = float(recorded)
        check_margin(margin)
    except ValueError as error:
        raise DamagedRunError(
            f"{place}: table meta, key margin: must be a number >= 0, got {recorded!r}; restore "
            "the folder from a copy"
        ) from error
    return margin


def stale_winner(run: Path | str) -> str:
    """Return why a search's saved winner is out of date, in a sentence; empty if it is not.

    Args:
        run: The search's run folder. Its ledger is read if it is a file; a winner that was copied
            without it, or whose ledger is on a server, is taken as it is.

    Raises:
        DamagedRunError: The run's files contradict themselves.
    """
    folder = RunFolder(Path(run))
    if not (isinstance(folder.ledger, Path) and folder.ledger.exists()):
        return ""
    found = results.load(run)
    plan = _recorded(found)
    return "" if plan is None else _stale(found, plan)


def _stale(found: Results, plan: _Plan) -> str:
    confirmed = {trial for trial, _ in plan.pairs}
    new = [trial for trial in _best_complete(found, plan.top) if trial not in confirmed]
    if not new:
        return ""
    names = f"{'trial' if len(new) == 1 else 'trials'} {and_list(new)}"
    return (
        f"The confirmation is out of date: since then the search has found {names}, which "
        f"{'is' if len(new) == 1 else 'are'} among its {plan.top} best; confirm again with: "
        f"{command('confirm', found.folder.path)}"
    )


def _best_complete(found: Results, top: int) -> list[int]:
    complete = found.trials[found.trials["state"] == State.COMPLETE]
    return [int(number) for number in found.ranked(complete)["number"].head(top)]


def _recorded(found: Results) -> _Plan | None:
    """Return which trials have been confirmed, or are being; None for none."""
    folder = found.folder.confirm
    if not (isinstance(folder.ledger, Path) and folder.ledger.exists()):
        return None
    with closing(Ledger.open(folder.ledger)) as ledger:
        return _Plan.read(ledger.meta(), folder.ledger)


def _wanted(found: Results, before: _Plan | None, top: int | None, num_seeds: int | None) -> _Plan:
    place = found.folder.path
    if found.experiment.remedies is not None:
        raise ResultsError(
            f"{place}: a study of remedies has its test results already; confirm takes a search"
        )
    least = before or _Plan(DEFAULT_TOP, DEFAULT_SEEDS, ())
    plan = _Plan(top or least.top, num_seeds or least.num_seeds, ())
    for name, value, recorded in (
        ("top", plan.top, least.top),
        ("seeds", plan.num_seeds, least.num_seeds),
    ):
        if before is not None and value < recorded:
            raise ResultsError(
                f"{place}: --{name} {value}: it was confirmed with {recorded} already, and a "
                "confirmation can be extended, not cut short; give more, or leave it out"
            )
    complete = found.trials[found.trials["state"] == State.COMPLETE]
    if complete.empty:
        raise ResultsError(
            f"{place}: no trial is complete yet; go on with `{command('resume', place)}`"
        )
    trials = _best_complete(found, plan.top)
    known = before.pairs if before else ()
    return _Plan(plan.top, plan.num_seeds, known).grown(trials, plan.top, plan.num_seeds)


def _train(  # noqa: PLR0917 - each is what it says
    found: Results,
    plan: _Plan,
    before: _Plan | None,
    address: str | None,
    data_dir: Path | str | None,
    observe: Callable[[Snapshot], None],
) -> None:
    from tune_softmax.studies import session
    from tune_softmax.studies.trial_list import TrialList

    with closing(Ledger.open(found.folder.ledger)) as ledger:
        checksum = ledger.meta()["dataset_checksum"]

    def check(dataset: Dataset) -> None:
        session.check_dataset(found.folder, checksum, dataset)
        if plan != before:  # else its opening is recorded
            trials = sorted({trial for trial, _ in plan.pairs})
            found.folder.record_test_opening(
                command="confirm", trials=trials, seeds=plan.num_seeds
            )
            # What was the best may no longer be.
            found.folder.best.remove()

    tasks = [
        Task(found.config(trial), DataView(_seed(found, seed), with_validation=True))
        for trial, seed in plan.pairs
    ]
    trials = TrialList(
        folder=found.folder.confirm,
        kind=KIND,
        experiment=found.experiment,
        agenda=FixedList(tasks),
        train_fraction=found.experiment.dataset.train_fraction,
        meta={"plan": plan.text},
    )
    trials.train(address=address, data_dir=data_dir, observe=observe, before=check)


def _seed(found: Results, index: int) -> int:
    """Return one of the confirmation's seeds; none is the search's own."""
    return derive_seed(found.experiment.search.seed, "confirm", index)
