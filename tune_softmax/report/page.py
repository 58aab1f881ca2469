"""The page: one HTML file that needs no network, made of sections.

Plotly's code and all data are in the page, compressed, so that ten thousand trials fit. The page's
security policy forbids every connection and every script but the two that it names by their
hashes; everything from a run folder reaches it as escaped text or as data.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from tune_softmax import files
from tune_softmax.config import HYPERPARAMETERS
from tune_softmax.errors import StorageError
from tune_softmax.metrics import State
from tune_softmax.report.figures.base import spec_of
from tune_softmax.report.parts import Drawings, TrialTable
from tune_softmax.report.sections import sections
from tune_softmax.report.theme import DARK, LIGHT, template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import plotly.graph_objects as go

    from tune_softmax.report.inputs import Inputs
    from tune_softmax.report.parts import Section

__all__ = ["Page", "compose", "save"]

PRINTED = {"number", "state", "last_validation_loss", "last_validation_accuracy", "epochs_trained"}


@dataclass(frozen=True, slots=True)
class Page:
    """A composed report.

    Attributes:
        title: Its first heading.
        subtitle: Below it.
        sections: What it says.
        payload: Figures and the table of trials, compressed, as the page's script reads them.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    payload: str

    def html(self, version: str = "") -> str:
        """Return the page as HTML.

        Args:
            version: For a page that is served: it asks its server for the version, and loads
                itself again when that is another. Empty for a file.
        """
        plotly, plotly_hash = _plotly()
        script = _file("page.js")
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        page = environment.from_string(_file("page.html")).render(
            title=self.title,
            subtitle=self.subtitle,
            sections=self.sections,
            version=version,
            palettes={"light": LIGHT, "dark": DARK},
            style=_file("page.css"),
            script=script,
            hashes=[_hash(script), plotly_hash],
            plotly=plotly,
            payload=self.payload,
        )
        return page.encode("utf-8", "backslashreplace").decode()  # a path need not be UTF-8


def compose(inputs: Inputs) -> Page:
    """Compose the page."""
    made = sections(inputs)
    payload = {
        "figures": [_lean_figure(figure) for figure in _figures(made)],
        "templates": {mode: template(mode) for mode in ("light", "dark")},
        "table": next((_columns(part.trials) for part in _parts(made, TrialTable)), None),
    }
    packed = _packed(json.dumps(payload, allow_nan=False, separators=(",", ":")))
    return Page(inputs.experiment.name, _subtitle(inputs), made, packed)


def _subtitle(inputs: Inputs) -> str:
    parts = [f"Run {inputs.folder}", f"dataset {inputs.experiment.dataset.name}"]
    if inputs.search is not None:
        done = inputs.search.count(State.COMPLETE, State.PRUNED, State.FAIL)
        parts.append(f"{done:,} of {inputs.experiment.num_trials:,} trials done")
    return " · ".join(parts)


def save(page: str, path: Path) -> None:
    """Write a page in one move, for a browser may be reading the one before.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        files.write_atomically(path, page)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); name another place by --output"
        ) from error


def _parts(sections: Sequence[Section], kind: type[Any]) -> list[Any]:
    return [part for section in sections for part in section.parts if isinstance(part, kind)]


def _figures(sections: Sequence[Section]) -> list[go.Figure]:
    groups = _parts(sections, Drawings)
    return [drawing.figure for group in groups for drawing in group.drawings]


def _file(name: str) -> str:
    return (
        resources.files("tune_softmax.report")
        .joinpath("templates", name)
        .read_text(encoding="utf-8")
    )


@cache
def _plotly() -> tuple[str, str]:
    """Return Plotly's code, compressed, and the hash that lets it run."""
    from plotly.offline import get_plotlyjs

    code: str = get_plotlyjs()
    return _packed(code), _hash(code)


def _packed(text: str) -> str:
    """Return a text as base64 of gzip, which no browser reads as markup."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _hash(script: str) -> str:
    """Return a script's source expression (W3C, Content Security Policy Level 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _lean_figure(figure: go.Figure) -> dict[str, Any]:
    """Return a figure as JSON: what the page itself says or draws is left out."""
    spec = spec_of(figure)
    layout = {
        key: value
        for key, value in spec["layout"].items()
        if key not in {"template", "title", "meta", "width", "height"}
    }
    lean: dict[str, Any] = _lean({"data": spec["data"], "layout": layout})
    return lean


def _lean(value: Any) -> Any:  # noqa: ANN401 - any JSON, and arrays
    """Return plain JSON: floats of six digits, and null for what is not finite."""
    match value:
        case dict():
            return {key: _lean(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_lean(inner) for inner in value]
        case np.ndarray():
            return _lean(value.tolist())
        case float() | np.floating():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case np.integer():
            return int(value)
    return value


def _columns(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table column by column: its name, what it holds, whether paper has room for it."""
    varied = {name for name in HYPERPARAMETERS if len(trials[name].unique()) > 1}
    return [
        {
            "name": name,
            "numeric": pd.api.types.is_numeric_dtype(trials[name]),
            "printed": name in PRINTED | varied,
            "values": _lean([None if pd.isna(v) else v for v in trials[name].tolist()]),
        }
        for name in trials
    ]
