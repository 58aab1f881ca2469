"""`copy`: copy a run to other storage, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tune_softmax.commands.output import say
from tune_softmax.errors import command

__all__ = ["copy"]

PLACE = "A run folder, or an address: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH."


def copy(
    source: Annotated[str, typer.Argument(metavar="RUN|URL", help=PLACE)],
    target: Annotated[str, typer.Argument(metavar="URL|RUN", help=f"The other one. {PLACE}")],
) -> None:
    """Copy a run to S3, Google Cloud or a folder, or back.

    A run can be copied while a search writes it. Copying back takes the newest whole copy.
    """
    from tune_softmax.export import copies
    from tune_softmax.export.stores import Store, is_address
    from tune_softmax.run.folder import RunFolder
    from tune_softmax.run.results import load

    if is_address(source) == is_address(target):
        raise typer.BadParameter(
            "name a run folder and an address, in either order; the address of a folder is "
            f"{Path(target).absolute().as_uri()}"
        )
    if is_address(target):
        made = copies.put(RunFolder(Path(source)), Store.at(target))
        say(
            f"copied {source} to {target}: {len(made.files)} files, {made.size_bytes / 1e6:.1f} MB"
        )
        return
    made = copies.fetch(Store.at(source), Path(target), report=say)
    trials = load(target).trials
    say(
        f"fetched {target}, as it was at {made.at:%Y-%m-%d %H:%M:%S} UTC: {len(trials)} trials; "
        f"go on with: {command('resume', Path(target))}"
    )
