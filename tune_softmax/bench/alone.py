"""Run a measurement from its own command line, without the command line's dependencies."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

from tune_softmax.bench.conditions import Conditions
from tune_softmax.errors import TuneSoftmaxError

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence

__all__ = ["run_alone"]

_Measured = TypeVar("_Measured")


def run_alone(
    parser: ArgumentParser,
    arguments: Sequence[str] | None,
    measure: Callable[..., _Measured],
    format_table: Callable[[_Measured, Conditions], str],
    to_json: Callable[[_Measured, Conditions], str],
) -> int:
    """Measure what the command line asks for, print its table, and return the exit code.

    Args:
        parser: Of the options of `measure`; `--json` is added.
        arguments: Of the command line; None takes the process's own.
        measure: Called with the options that were given, and `on_progress`.
        format_table: Returns the measurement and its conditions as text.
        to_json: Returns them as JSON.
    """
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = vars(parser.parse_args(arguments))
    form = to_json if options.pop("json", False) else format_table
    conditions = Conditions.now()
    try:
        measured = measure(**options, on_progress=lambda line: print(line, file=sys.stderr))
    except TuneSoftmaxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(form(measured, conditions))
    return 0
