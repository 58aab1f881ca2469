"""The report's colours, light and dark, and the Plotly templates made of them.

Marks have the same colour in both modes. The colours are Okabe and Ito's, which colour-blind
readers can tell apart; only those with a contrast of at least 3 to 1 to both backgrounds are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "BLUE",
    "COUNTS",
    "DARK",
    "DIFFERENCES",
    "GREEN",
    "GREY",
    "LIGHT",
    "PURPLE",
    "RANKS",
    "SHADE",
    "SURFACE",
    "VERMILION",
    "Palette",
    "contrast",
    "template",
]

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#c2679b"
GREY = "#808890"
SHADE = "rgba(128, 136, 144, 0.25)"  # an area between two curves

COUNTS = [[0, "#f2f6fa"], [1, "#08518a"]]
DIFFERENCES = [[0, BLUE], [0.5, "#f6f6f6"], [1, VERMILION]]
RANKS = [[0, GREY], [1, VERMILION]]  # of marks that are only to be ordered
SURFACE = "Cividis"  # of an area, behind marks

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one mode, as `#rrggbb`.

    Attributes:
        background: Behind everything.
        surface: Behind what stands apart: table heads, commands.
        ink: Text.
        muted: Captions and axes, still text.
        rule: Lines and grids.
        accent: Links, and what can be pressed.
    """

    background: str
    surface: str
    ink: str
    muted: str
    rule: str
    accent: str


LIGHT = Palette("#ffffff", "#f4f6f8", "#1a1f24", "#56606b", "#d5dbe1", "#0b5cad")
DARK = Palette("#14181d", "#1d232a", "#e4e8ec", "#a3adb8", "#343d47", "#7ab8ff")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two `#rrggbb` colours, from 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]  # noqa: PLR2004 - sRGB
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def template(mode: Literal["light", "dark"] = "light") -> dict[str, Any]:
    """Return a Plotly template: how a figure looks, apart from its data.

    Args:
        mode: Which palette.
    """
    palette = LIGHT if mode == "light" else DARK
    axis = {
        "automargin": True,
        "exponentformat": "power",
        "gridcolor": palette.rule,
        "linecolor": palette.rule,
        "zerolinecolor": palette.rule,
        "tickcolor": palette.rule,
        "tickfont": {"color": palette.muted},
        "title": {"font": {"color": palette.muted}, "standoff": 8},
    }
    layout = {
        "autosize": True,
        "colorway": [BLUE, VERMILION, GREEN, PURPLE, GREY],
        "font": {"family": FONT, "color": palette.ink, "size": 12},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": palette.surface, "font": {"color": palette.ink}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "xaxis": axis,
        "yaxis": axis,
        "coloraxis": {"colorbar": {"outlinewidth": 0}},
    }
    return {"layout": layout}
