"""The parts of a section; the page's template draws each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import plotly.graph_objects as go

    from tune_softmax.report.evaluation import WrongImage

__all__ = [
    "Command",
    "Drawing",
    "Drawings",
    "Facts",
    "Images",
    "Listing",
    "Paragraph",
    "Part",
    "Section",
    "Source",
    "Table",
    "TrialTable",
]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True, slots=True)
class Listing:
    """Sentences, numbered."""

    items: Sequence[str]
    kind: str = "listing"


@dataclass(frozen=True, slots=True)
class Command:
    """A command to type, and what it is for."""

    text: str
    line: str
    kind: str = "command"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True, slots=True)
class Table:
    """A small table; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure and what to know to read it.

    Attributes:
        figure: With a title, and a description in `layout.meta`.
        caption: Below it.
        wide: Whether it takes the page's whole width.
        least_width: In rem; where there is less room it scrolls inside its box. 0: none.
    """

    figure: go.Figure
    caption: str = ""
    wide: bool = False
    least_width: int = 0


@dataclass(frozen=True, slots=True)
class Drawings:
    """Figures side by side, as many as fit."""

    drawings: Sequence[Drawing]
    kind: str = "drawings"


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text, folded away behind its title."""

    title: str
    text: str
    kind: str = "source"


@dataclass(frozen=True, slots=True)
class Images:
    """Test images that were classified wrong."""

    images: Sequence[WrongImage]
    kind: str = "images"


@dataclass(frozen=True, slots=True)
class TrialTable:
    """Every trial, to sort and to search."""

    trials: pd.DataFrame
    kind: str = "trials"


Part = Paragraph | Listing | Command | Facts | Table | Drawings | Source | Images | TrialTable


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and what stands below it."""

    name: str
    heading: str
    parts: Sequence[Part]
