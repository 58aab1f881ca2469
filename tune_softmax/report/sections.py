"""The report's sections, in order: paragraphs, commands, tables and figures.

A section that has no data yet names the command that produces it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_softmax.errors import command
from tune_softmax.metrics import State
from tune_softmax.report import findings, search_sections, test_sections
from tune_softmax.report.parts import (
    Command,
    Facts,
    Listing,
    Paragraph,
    Part,
    Section,
    Source,
    Table,
    TrialTable,
)
from tune_softmax.stats.wording import count, words

if TYPE_CHECKING:
    import pandas as pd

    from tune_softmax.report.inputs import Inputs
    from tune_softmax.run.results import Best, Results

__all__ = ["sections"]


def sections(inputs: Inputs) -> list[Section]:
    """Return the sections of a report, in order."""
    search = inputs.search
    best = findings.best_of(search) if search is not None else None
    made: list[tuple[str, str, list[Part]]] = [
        ("summary", "Summary", [Listing(findings.sentences(inputs))])
    ]
    if search is not None:
        made.append(("best", "Best configuration", _best(inputs, search, best)))
        if best is not None:
            made.append(("curves", "Learning curves", search_sections.curves(search, best)))
            made.append(("gap", "Generalization gap", search_sections.gap(search, best)))
        made.append(("path", "Regularization path", search_sections.path(inputs, search, best)))
    if inputs.remedies is not None:
        made.append(("remedies", "Remedies", test_sections.remedies(inputs)))
    if search is not None:
        drawn = search_sections.hyperparameters(search)
        made += [
            ("rungs", "Early stopping", search_sections.rungs(search)),
            ("progress", "Progress", search_sections.progress(inputs, search)),
            ("hyperparameters", "Hyperparameters", drawn),
            ("confusion", "Confusion matrix", test_sections.confusion(inputs)),
            ("trials", "All trials", [TrialTable(_readable(search.trials))]),
        ]
    made.append(("reproduction", "Reproduce", _reproduction(inputs)))
    return [Section(*section) for section in made]


def _best(inputs: Inputs, search: Results, best: Best | None) -> list[Part]:
    if best is None:
        return [Paragraph("No trial has a result yet.")]
    row = search.trials.set_index("number").loc[best.number]
    rows = [("trial", f"{best.number} ({str(row['state']).lower()})")]
    rows += [
        (words(name), _value(getattr(best.config, name)))
        for name in search.experiment.space.searched
    ]
    held = search.experiment.space.constants
    rows += [(f"{words(name)} (fixed)", _value(value)) for name, value in held.items()]
    rows += [
        ("validation loss", f"{row['last_validation_loss']:.4f}"),
        ("validation accuracy", f"{row['last_validation_accuracy']:.4f}"),
        ("training loss", f"{row['last_train_loss']:.4f}"),
    ]
    if best.num_averaged > 1:
        name = words(best.metric)
        rows.append((f"mean {name}, {best.span}", f"{best.value:.4f}"))
    if inputs.confirmation is not None and len(inputs.confirmation.winners):
        return [Facts(rows), *test_sections.confirmed(inputs.confirmation)]
    text = inputs.stale or (
        "Its test accuracy is not known yet. To train the best trials again over several seeds "
        "and test them:"
    )
    return [Facts(rows), Command(text, inputs.command("confirm"))]


def _readable(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with only the last line of each error."""
    error = trials["error"].map(
        lambda text: text.strip().rpartition("\n")[2][:200], na_action="ignore"
    )
    return trials.assign(error=error)


def _reproduction(inputs: Inputs) -> list[Part]:
    parts: list[Part] = []
    environment = dict(inputs.environment)
    made_by, packages = environment.pop("command", None), environment.pop("packages", None)
    if isinstance(made_by, list) and made_by:
        parts.append(Command("The run was made with this command:", command(*made_by[1:])))
    rows = [_fact(name, value) for name, value in environment.items()]
    if isinstance(packages, dict):
        rows += [(str(name), str(version)) for name, version in packages.items()]
    parts.append(Facts(rows) if rows else Paragraph("The run folder has no environment.json."))
    if inputs.search is not None:
        done = inputs.search.count(State.COMPLETE, State.PRUNED, State.FAIL)
        if left := inputs.experiment.num_trials - done:
            parts.append(
                Command(f"{count(left, 'trial')} left. To go on:", inputs.command("resume"))
            )
        parts.append(_opened(inputs))
    parts.append(Source("experiment.yaml, every default written out", inputs.experiment.to_yaml()))
    return parts


def _opened(inputs: Inputs) -> Part:
    if not inputs.openings:
        return Paragraph("The test set has not been opened for this run.")
    count = len(inputs.openings)
    times = "once" if count == 1 else f"{count} times"
    return Table(f"The test set was opened {times}", ("at (UTC)", "for"), inputs.openings)


def _fact(name: str, value: object) -> tuple[str, str]:
    if name == "memory_bytes" and isinstance(value, int):
        return "memory", f"{value / 2**30:.1f} GiB"
    return words(name), str(value)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
