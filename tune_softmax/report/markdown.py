"""The report as Markdown with PNG pictures, for a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tune_softmax import files
from tune_softmax.errors import StorageError
from tune_softmax.report import findings, measures, stills
from tune_softmax.report.parts import Command, Facts, Listing, Paragraph, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tune_softmax.report.inputs import Inputs
    from tune_softmax.report.parts import Part, Section

__all__ = ["save_markdown"]

# What has a meaning inside a line; no text of a run begins one.
_SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~&])")


def save_markdown(inputs: Inputs, sections: Sequence[Section], path: Path) -> None:
    """Write the report's text, tables and main figures; the figures are separate PNG files.

    Args:
        inputs: What the report is made from.
        sections: What it says.
        path: The file to write; its pictures are named after it, `report-gap.png`.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        pictures = {name: _picture(path, name, draw, text) for name, draw, text in _drawn(inputs)}
        lines = [f"# {_escaped(inputs.experiment.name)}", ""]
        for section in sections:
            lines += _lines(section, pictures.get(section.name))
        text = "\n".join(lines).rstrip() + "\n"
        # A path need not be UTF-8.
        files.write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); name another place by --output"
        ) from error


def _drawn(inputs: Inputs) -> Iterator[tuple[str, Callable[[Path], None], str]]:
    """Yield (section, what draws its picture, the text that stands for it)."""
    search = inputs.search
    best = findings.best_of(search) if search is not None else None
    if search is not None and best is not None:
        names = {best.number: "the best"}
        other = measures.baseline(search.trials, best.number)
        names |= {} if other is None else {other: "the baseline"}
        yield (
            "curves",
            lambda path: stills.save_learning_curves(path, search.epochs, names),
            "Training and validation loss over the epochs",
        )
        yield (
            "gap",
            lambda path: stills.save_gap(path, search.trials, best.number),
            "Generalization gap of all trials against weight decay and epochs",
        )
    points = inputs.path
    if search is not None and points is not None:
        yield (
            "path",
            lambda path: stills.save_path(path, points, search.trials),
            "Losses of the convex optimum against weight decay, with the trials",
        )
    if inputs.remedies is not None:
        effects = inputs.remedies.effects
        yield (
            "remedies",
            lambda path: stills.save_effects(path, effects),
            "Difference of the test loss to the baseline for each remedy, with intervals",
        )


def _picture(path: Path, name: str, draw: Callable[[Path], None], text: str) -> str:
    picture = path.with_name(f"{path.stem}-{name}.png")
    draw(picture)
    return f"![{text}](<{picture.name}>)"


def _lines(section: Section, picture: str | None) -> Iterator[str]:
    """Yield a section's lines, if it has anything that Markdown can show."""
    body = [line for part in section.parts for line in _part(part)]
    if picture is not None:
        body = [picture, "", *body]
    if body:
        yield from (f"## {section.heading}", "", *body)


def _part(part: Part) -> list[str]:
    match part:
        case Paragraph():
            return [_escaped(part.text), ""]
        case Listing():
            return [*(f"{i}. {_escaped(item)}" for i, item in enumerate(part.items, 1)), ""]
        case Command():
            return [_escaped(part.text), "", *_block(part.line), ""]
        case Facts():
            return _table(("", ""), part.rows)
        case Table():
            return [f"{_escaped(part.caption)}:", "", *_table(part.header, part.rows)]
    return []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header)]
    cells = [[_escaped(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (*lines, *cells)] + [""]


def _block(text: str) -> list[str]:
    """Return text as it is: indented, so that no fence in it can end the block."""
    return [f"    {line}" for line in text.splitlines()]


def _escaped(text: str) -> str:
    """Return a text as Markdown that shows it unchanged, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
