"""What a result shows of itself in a notebook: some lines of text, and a table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["html"]


def html(lines: Sequence[str], table: pd.DataFrame | None = None) -> str:
    """Return text and a table as HTML, for `_repr_html_`.

    Args:
        lines: A paragraph each, plain text.
        table: To stand below them, without its index; floats with four digits.
    """
    paragraphs = [f"<p>{escape(line)}</p>" for line in lines]
    if table is not None:
        shown = table.rename(columns=lambda name: str(name).replace("_", " "))
        paragraphs.append(shown.to_html(index=False, border=0, float_format="{:.4g}".format))
    return "\n".join(paragraphs)
