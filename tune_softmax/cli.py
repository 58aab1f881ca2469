"""The command line: parse, call one function, print.

The commands are in `commands/`. Each imports its module inside its function, so that `--help`,
`validate` and `results` start fast and load neither torch nor Ray.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from tune_softmax.commands import (
    analysis,
    benchmarks,
    checks,
    copies,
    export,
    models,
    oracle,
    report,
    searching,
    testing,
)
from tune_softmax.commands.output import prepare_streams, say, warn
from tune_softmax.errors import InterruptedEarlyError, StorageError, TuneSoftmaxError

__all__ = ["app", "main", "program"]

app = typer.Typer(
    help="Search, train and analyse softmax regression: many trials train as one matrix product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's form
    if wanted:
        say(f"tune-softmax {metadata.version('tune-softmax')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that belong to no command; the help text is the application's."""


for command in (
    searching.search,
    searching.resume,
    models.train,
    testing.confirm,
    testing.remedies,
    testing.predict,
    oracle.oracle,
    analysis.results,
    report.report,
    copies.copy,
    export.export,
    checks.validate,
    checks.check,
    checks.doctor,
):
    app.command()(command)

bench = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
bench.command()(benchmarks.packed)
bench.command()(benchmarks.race)
bench.command()(benchmarks.search)
bench.command()(benchmarks.overhead)
bench.command()(benchmarks.scaling)
app.add_typer(bench, name="bench")

EXIT_TIMEOUT_S = 5.0
GC_THRESHOLD = 100_000  # objects, of the youngest generation
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
}  # wherever it is that a disk ends


def main() -> None:
    """Run the command line and exit with the code that says how it went."""
    try:
        app()
    except TuneSoftmaxError as error:
        warn(f"error: {error}")
        sys.exit(error.exit_code)
    except InterruptedEarlyError as error:
        warn(f"stopped by {error} before anything was trained")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        warn("interrupted; what was recorded is kept, see `tune-softmax resume`")
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        warn(f"error: {error}; make room or give write access, then repeat")
        sys.exit(StorageError.exit_code)


def program() -> NoReturn:
    """Be the program `tune-softmax`: run `main`, then end the process as it stands.

    Once Ray has been in it, taking the interpreter apart takes more than half a second, and gives
    back what ends with the process anyway. mypy ends so too.
    """
    prepare_streams()
    # Imports and a ledger's rows are many objects that stay; looking through them at each few
    # hundred more takes an eighth of a search's start.
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    code = 0
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):  # a message, which Python prints
            raise
        code = ended.code or 0
    # What `sys.exit` would run. Ray's functions wait for ever for a cluster that does not answer.
    ending = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # noqa: SLF001
    ending.start()
    ending.join(EXIT_TIMEOUT_S)
    with suppress(OSError):  # a full disk; what matters is in the run folder
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
