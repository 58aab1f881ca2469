"""`report`: write a run's report as one HTML page, or serve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_softmax.commands.options import RunArgument
from tune_softmax.commands.output import say

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["report"]


def report(
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page to write.  [default: RUN/report.html]"),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="Write report.md too, with its pictures, for a pull request."
        ),
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Serve the page on this machine until Ctrl-C; it follows a run that goes on.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port to serve at.  [default: a free one]"),
    ] = None,
) -> None:
    """Write a run's report: one HTML page, no network needed."""
    if port is not None and not serve:
        raise typer.BadParameter("--port needs --serve")
    from tune_softmax.report.inputs import gather
    from tune_softmax.report.page import compose, save

    path = output or run / "report.html"

    def make(version: str = "") -> str:
        inputs = gather(run)
        page = compose(inputs)
        save(page.html(), path)
        if markdown:
            from tune_softmax.report.markdown import save_markdown

            save_markdown(inputs, page.sections, path.with_suffix(".md"))
        return page.html(version)

    if serve:
        _serve(run, make, port or 0)
        return
    make()
    say(str(path))
    if markdown:
        say(str(path.with_suffix(".md")))


def _serve(run: Path, make: Callable[[str], str], port: int) -> None:
    from tune_softmax.report.serve import Live, follow, serving

    live = Live(make, run)
    with serving(live, port) as address:
        say(f"{address}  (Ctrl-C ends)")
        follow(live)
