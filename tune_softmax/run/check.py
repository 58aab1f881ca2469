"""`check`: hold a run against every rule that its files must keep, and name each that is broken.

What the ledger itself finds comes first: SQLite's own checks, checksums and the seal. Then come
the rules that no checksum knows: numbers without a gap, states that fit the epochs,
configurations inside the space.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tune_softmax import files
from tune_softmax.config import HYPERPARAMETERS
from tune_softmax.errors import DamagedRunError, ExperimentError
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tune_softmax.experiment.experiment import Experiment
    from tune_softmax.metrics import EpochMetrics, FinalTest
    from tune_softmax.run.ledger import Contents
    from tune_softmax.run.records import TrialRecord

    _Curve = dict[int, EpochMetrics]  # by epoch

__all__ = ["CheckedRun", "check"]

_SEARCH = "search"  # what a ledger holds that names no other kind in its meta

_MOST_SHOWN = 100  # broken rules; a file that lost a page may break thousands


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run that keeps every rule."""

    num_trials: int
    num_epochs: int


def check(run: Path | str) -> CheckedRun:
    """Check a run, finished or not; a search may be writing it.

    Args:
        run: The run folder, which need not be writable.

    Raises:
        ResultsError: There is no run at that path.
        DamagedRunError: Rules are broken; the message names each, with its file, table and row.
    """
    folder = RunFolder(Path(run))
    with closing(Ledger.open(folder.ledger)) as ledger:
        contents = ledger.contents()
    broken = [*contents.faults, *_broken_rules(folder, contents)]
    if broken:
        lines = [f"\n  {rule}" for rule in broken[:_MOST_SHOWN]]
        if len(broken) > _MOST_SHOWN:
            lines.append(f"\n  and {len(broken) - _MOST_SHOWN:,} more")
        count = "one rule is" if len(broken) == 1 else f"{len(broken):,} rules are"
        raise DamagedRunError(
            f"{folder.path}: {count} broken; restore the folder from a copy, or search again into "
            f"another one:{''.join(lines)}"
        )
    return CheckedRun(len(contents.trials), len(contents.epochs))


def _broken_rules(folder: RunFolder, contents: Contents) -> Iterator[str]:
    curves: dict[int, _Curve] = {trial.number: {} for trial in contents.trials}
    for number, epoch, metrics in contents.epochs:
        curves.setdefault(number, {})[epoch] = metrics
    is_search = contents.meta.get("kind", _SEARCH) == _SEARCH
    yield from _environment(folder, contents.meta)
    yield from _numbers(contents.trials, curves)
    for trial in contents.trials:
        for rule in _trial(trial, curves[trial.number], is_search=is_search):
            yield f"table trials, number {trial.number}: {rule}"
        if trial.state is not State.FAIL:
            yield from _curve(trial, curves[trial.number])
    yield from _tests(contents)
    yield from _events(contents)
    yield from _experiment(folder, contents, is_search=is_search)


def _environment(folder: RunFolder, meta: Mapping[str, str]) -> Iterator[str]:
    recorded, name = meta.get("dataset_checksum"), folder.environment.name
    if recorded is None:
        yield "table meta: has no dataset_checksum"
    try:
        found = files.read_json(folder.environment)["dataset_checksum"]
    except OSError as error:
        yield f"{name}: cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{name}: is not what a search writes ({error!r})"
    else:
        if recorded not in {None, found}:
            yield f"{name}: has dataset_checksum {found}, the ledger's table meta {recorded}"


def _numbers(trials: list[TrialRecord], curves: Mapping[int, _Curve]) -> Iterator[str]:
    known = {trial.number for trial in trials}
    for missing in sorted(set(range(max(known, default=-1))) - known):
        yield f"table trials: has no number {missing}, though there is {max(known)}"
    for number in sorted(curves.keys() - known):
        yield f"table epochs, number {number}: belongs to no trial"


def _trial(trial: TrialRecord, curve: _Curve, *, is_search: bool) -> Iterator[str]:
    last = max(curve, default=0)
    if min(trial.number, trial.pack, trial.attempts - 1) < 0:
        yield f"must have a pack >= 0 and attempts >= 1, got {trial.pack} and {trial.attempts}"
    if missing := sorted(set(range(1, last)) - curve.keys()):
        yield f"has epoch {last}, but not {', '.join(map(str, missing))}"
    if curve and min(curve) < 1:
        yield f"has epoch {min(curve)}, but epochs begin with 1"
    if trial.rung is not None and not 1 <= trial.rung <= last:
        yield f"must be on a rung within its {last} epochs, got {trial.rung}"
    if trial.state is State.FAIL and not trial.error:
        yield "is FAIL without a reason"
    if trial.state is not State.FAIL and trial.error is not None:
        yield f"is {trial.state}, but has a reason to fail: {trial.error!r}"
    yield from _state(trial, last, is_search=is_search)


def _state(trial: TrialRecord, last: int, *, is_search: bool) -> Iterator[str]:
    """Say whether a trial's state contradicts its last epoch.

    In a search a complete trial has all its epochs; elsewhere it may have lost patience before.
    """
    total = trial.config.num_epochs
    if last > total:
        yield f"has {last} epochs, but its configuration asks for {total}"
    is_wrong = {
        State.WAITING: last >= total,
        State.RUNNING: last >= total,
        State.PARKED: not 0 < last < total,
        State.PRUNED: not 0 < last < total,
        State.COMPLETE: last != total if is_search else last == 0,
        State.FAIL: False,
    }
    if is_wrong[trial.state]:
        yield f"is {trial.state} after {last} of {total} epochs"
    if trial.state is State.PRUNED and trial.rung not in {None, last}:
        yield f"is PRUNED after {last} epochs, but on the rung of {trial.rung}"


def _curve(trial: TrialRecord, curve: _Curve) -> Iterator[str]:
    """Say which epochs of a trial that has not failed have values that there cannot be."""
    for epoch, metrics in curve.items():
        values = asdict(metrics)
        wrong = [name for name, value in values.items() if not _is_possible(name, value)]
        if wrong:
            named = ", ".join(f"{name} {values[name]}" for name in wrong)
            yield f"table epochs, number {trial.number}, epoch {epoch}: cannot have {named}"


def _is_possible(name: str, value: float) -> bool:
    return 0 <= value <= (1 if name.endswith("accuracy") else math.inf) and math.isfinite(value)


def _tests(contents: Contents) -> Iterator[str]:
    states = {trial.number: trial.state for trial in contents.trials}
    for number, test in contents.tests.items():
        for rule in _test(test, states.get(number)):
            yield f"table tests, number {number}: {rule}"
    if contents.tests and all(kind != "test_opened" for _, kind, _ in contents.events):
        yield "table tests: has rows, but no event says that the test set was opened"


def _test(test: FinalTest, state: State | None) -> Iterator[str]:
    if state is not State.COMPLETE:
        yield f"must belong to a COMPLETE trial, got {state or 'none'}"
    if not (_is_possible("loss", test.loss) and _is_possible("accuracy", test.accuracy)):
        yield f"cannot have loss {test.loss} and accuracy {test.accuracy}"
    rows = test.confusion
    total = sum(map(sum, rows))
    if any(len(row) != len(rows) or min(row) < 0 for row in rows) or not total:
        yield "must have a square confusion matrix of numbers of images"
        return
    right = sum(row[c] for c, row in enumerate(rows))
    if not math.isclose(right / total, test.accuracy, abs_tol=1e-6):
        yield f"has an accuracy of {test.accuracy}, but its confusion matrix another"


def _events(contents: Contents) -> Iterator[str]:
    ended: str | None = None  # why the last search or resume ended; None while one is open
    is_open = False
    for index, (at, kind, detail) in enumerate(contents.events, 1):
        if not _is_time(at):
            yield f"table events, id {index}: must have a time, got {at!r}"
        if kind == "ended" and not is_open:
            yield f"table events, id {index}: ends what was not started"
        if kind in {"started", "ended"}:
            is_open = kind == "started"
            ended = None if is_open else str(detail.get("reason"))
    # Where a cluster was lost, trials stay as they were.
    left: dict[str, set[State]] = {"finished": set(), "stopped": {State.WAITING, State.PARKED}}
    allowed = left.get((ended or "").partition(" ")[0])
    for trial in contents.trials:
        if allowed is not None and not trial.state.is_final and trial.state not in allowed:
            yield (
                f"table trials, number {trial.number}: is {trial.state}, though the last event "
                f"says that the search has ended ({ended})"
            )


def _is_time(text: object) -> bool:
    try:
        datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return True


def _experiment(folder: RunFolder, contents: Contents, *, is_search: bool) -> Iterator[str]:
    """Say what contradicts the experiment, and whether its file is the one of the ledger."""
    name = folder.experiment.name
    text = contents.meta.get("experiment")
    if text is None:
        yield "table meta: has no experiment"
        return
    try:
        asked = experiments.load(folder.experiment)
        made = experiments.parse(text, "table meta, key experiment")
    except ExperimentError as error:
        yield "; ".join(str(error).splitlines())
        return
    if (made.space, made.model) != (asked.space, asked.model):
        yield f"{name}: its space or model is not that of the ledger's table meta"
    if is_search:
        yield from _search(contents.trials, made)


def _search(trials: list[TrialRecord], made: Experiment) -> Iterator[str]:
    if len(trials) > made.num_trials:
        yield f"table trials: has {len(trials)} rows, the experiment asks for {made.num_trials}"
    for trial in trials:
        place = f"table trials, number {trial.number}"
        config = asdict(trial.config)
        for name in HYPERPARAMETERS:
            if not made.space.contains(name, config[name]):
                yield f"{place}: has {name} {config[name]!r}, which is not in the space"
        if trial.state is State.PRUNED and made.search.asha is None:
            yield f"{place}: is PRUNED, but the experiment stops no trial early"
