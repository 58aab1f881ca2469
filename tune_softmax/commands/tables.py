"""Tables that never cut a number: in columns where they fit, else with each row stacked.

A terminal that is too narrow would show `3.812e-07` as `3.8…`, which is another number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Column", "Table"]

_UNBOUNDED = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its heading, which wraps where it is wider than the cells.
        cells: Its text, row by row.
        is_text: Whether it holds words, which are aligned on the left, and not numbers.
    """

    name: str
    cells: Sequence[str]
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table for `Console.print`.

    Attributes:
        title: Above it.
        columns: All with the same number of cells.
        bold: The rows to set off.
    """

    title: str
    columns: Sequence[Column]
    bold: Collection[int] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose the form that fits."""
        if self.title:
            yield Text(self.title, "bold")
        table = self._in_columns()
        width = Measurement.get(console, options.update(max_width=_UNBOUNDED), table).maximum
        if width <= options.max_width:
            yield table
        else:
            yield from self._stacked(options.max_width)

    def _in_columns(self) -> RichTable:
        table = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for column in self.columns:
            # As text, for brackets in a name are no markup.
            heading = Text("\n".join(_wrapped(column)))
            justify = "left" if column.is_text else "right"
            table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for number, cells in enumerate(self._rows()):
            table.add_row(*map(Text, cells), style="bold" if number in self.bold else None)
        return table

    def _stacked(self, width: int) -> Iterator[Text]:
        """Yield each row as its names and values, as many on a line as fit."""
        for number, cells in enumerate(self._rows()):
            lines = [""]
            for column, cell in zip(self.columns, cells, strict=True):
                part = f"{column.name} {cell}".strip()
                if not cell:
                    continue
                if lines[-1] and len(lines[-1]) + 2 + len(part) > width:
                    lines.append("  ")
                lines[-1] += part if not lines[-1].strip() else f"  {part}"
            style = "bold" if number in self.bold else ""
            yield from (Text(line, style, overflow="fold") for line in lines)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        return zip(*(column.cells for column in self.columns), strict=True)


def _wrapped(column: Column) -> list[str]:
    """Return the heading's lines, no wider than the cells or its longest word."""
    words = column.name.split()
    width = max(map(len, [*column.cells, *words]), default=0)
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
