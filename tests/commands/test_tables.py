"""Tables on terminals of any width: no number is ever cut."""

import io

import pytest
from rich.console import Console

from tune_softmax.commands.tables import Column, Table

NUMBERS = ["3.812e-07", "0.0554321", "12345"]
TABLE = Table(
    "A [bold]title[/bold] that is longer than a narrow terminal",
    [
        Column("trial", ["7", "12", "100"]),
        Column("weight decay", NUMBERS),
        Column("learning rate schedule", ["constant", "[red]", ""], is_text=True),
    ],
    bold={1},
)


def shown(table, width):
    """Return what a terminal of so many columns shows."""
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(table)
    return console.file.getvalue()


def test_a_table_that_fits_has_columns():
    """Headings are stacked, numbers are aligned on the right, brackets are no markup."""
    lines = shown(TABLE, 80).splitlines()
    assert lines[0].rstrip() == "A [bold]title[/bold] that is longer than a narrow terminal"
    assert [line.split() for line in lines[-3:]] == [
        ["7", "3.812e-07", "constant"],
        ["12", "0.0554321", "[red]"],
        ["100", "12345"],
    ]
    assert lines[-3].index("3.812e-07") + len("3.812e-07") == lines[-2].index("0.0554321") + 9


@pytest.mark.parametrize("width", [5, 10, 20, 25, 40, 60])
def test_no_number_is_cut(width):
    """In a terminal that is too narrow each row is stacked, with names beside values."""
    text = shown(TABLE, width)
    whole = text if width >= 10 else text.replace("\n", "")  # else a line holds no number
    assert all(number in whole for number in NUMBERS)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    if width == 25:
        assert "weight decay 3.812e-07" in text


def test_a_table_without_rows_is_its_heading():
    """Nothing fails."""
    empty = Table("", [Column("trial", []), Column("loss", [])])
    assert shown(empty, 80).split() == ["trial", "loss"]
