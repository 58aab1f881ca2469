"""The command line: parse, call one function, print.

A command imports its module inside its function, so that `--help`, `validate` and `results`
start fast and load neither torch nor Ray.
"""

from __future__ import annotations

import errno
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tune_softmax.errors import ResultsError, StorageError, TuneSoftmaxError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.results import Results

__all__ = ["app", "main"]

app = typer.Typer(
    help="Search, train and analyse softmax regression, many trials as one matrix product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

FAILED_TRIALS = 3
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # wherever it is that a disk ends

ExperimentArgument = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where datasets are or go.  [default: $TUNE_SOFTMAX_DATA_DIR or "
        "~/.cache/tune_softmax]",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="A Ray cluster to join.  [default: a local one, started and ended here]",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with code 3 if any trial failed.")
]


class Format(StrEnum):
    """How `results` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def main() -> None:
    """Run the command line and exit with the code that says how it went."""
    try:
        app()
    except TuneSoftmaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}; make room or give write access, then repeat", file=sys.stderr)
        sys.exit(StorageError.exit_code)


@app.command()
def search(
    experiment: ExperimentArgument,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run folder to make.  [default: runs/NAME, or runs/NAME-2, ...]"),
    ] = None,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
    num_trials: Annotated[int | None, typer.Option(help="Instead of search.num_trials.")] = None,
    time_budget_s: Annotated[
        float | None, typer.Option(help="Instead of search.time_budget_s, in seconds.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of search.seed.")] = None,
    pack_size: Annotated[
        str | None, typer.Option(help="Instead of search.pack_size: a number, or auto.")
    ] = None,
    cpus_per_pack: Annotated[
        int | None, typer.Option(help="Instead of resources.cpus_per_pack.")
    ] = None,
    gpus_per_pack: Annotated[
        float | None,
        typer.Option(help="Instead of resources.gpus_per_pack; may be a fraction of one GPU."),
    ] = None,
    strict: StrictOption = False,
) -> None:
    """Search an experiment's space and print the ten best trials."""
    from tune_softmax import experiment as experiments
    from tune_softmax.progress import Display

    overrides = {
        "search.num_trials": num_trials,
        "search.time_budget_s": time_budget_s,
        "search.seed": seed,
        "search.pack_size": _number_or_word(pack_size),
        "resources.cpus_per_pack": cpus_per_pack,
        "resources.gpus_per_pack": gpus_per_pack,
    }
    loaded = experiments.load(experiment, _given(overrides))
    loaded.check_searchable()
    from tune_softmax import search as searching

    with Display(_console()) as display:
        found = searching.search(
            loaded, run_dir=run_dir, address=address, data_dir=data_dir, observe=display
        )
    _finish(found, strict=strict)


@app.command()
def resume(
    run: RunArgument,
    address: AddressOption = None,
    data_dir: DataDirOption = None,
    strict: StrictOption = False,
) -> None:
    """Run what is left of a search."""
    from tune_softmax import search as searching
    from tune_softmax.progress import Display

    with Display(_console()) as display:
        found = searching.resume(run, address=address, data_dir=data_dir, observe=display)
    _finish(found, strict=strict)


@app.command()
def train(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT|RUN",
            help="An experiment file without a search, or a run folder: its best trial.",
        ),
    ],
    trial: Annotated[
        int | None, typer.Option(help="Which trial of a run.  [default: its best]")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where to save.  [default: runs/NAME-train, or runs/NAME-train-2, ...]"),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Train one configuration, evaluate it on the test set, save weights and pictures."""
    from tune_softmax import chosen, single
    from tune_softmax.pictures import curves_text, weights_text
    from tune_softmax.results import RunFolder, free_folder
    from tune_softmax.tables import confusion_table

    console = _console()
    choice = chosen.choose(source, trial)
    folder = run_dir or free_folder(f"{choice.experiment.name}-train")
    RunFolder(folder).check_free()

    def show(epoch: int, metrics: EpochMetrics) -> None:
        if epoch == 1:
            console.print(
                "epoch  train_loss  train_accuracy  validation_loss  validation_accuracy  seconds"
            )
        console.print(
            f"{epoch:5d}{metrics.train_loss:12.4f}{metrics.train_accuracy:16.4f}"
            f"{metrics.validation_loss:17.4f}{metrics.validation_accuracy:21.4f}"
            f"{metrics.seconds:9.2f}",
            highlight=False,
        )

    def record_opening() -> None:
        if choice.run is not None:
            choice.run.record_test_opening(command="train", trial=choice.number)

    trained = single.train(
        choice.experiment,
        choice.config,
        folder,
        number=choice.number,
        data_dir=data_dir,
        on_epoch=show,
        before_test=record_opening,
    )
    console.print()
    print(curves_text(trained.epochs, console.width))
    if console.is_terminal:
        names, weights = trained.output_names, trained.first_weights
        console.print(weights_text(weights[:10], names[:10], console.width))
    console.print(confusion_table(trained.test.confusion.tolist(), trained.class_names))
    console.print(
        f"test loss {trained.test.loss:.4f}, test accuracy {trained.test.accuracy:.4f} "
        f"on {int(trained.test.confusion.sum()):,} images; saved in {trained.folder}",
        highlight=False,
    )


@app.command()
def results(
    run: RunArgument,
    form: Annotated[
        Format,
        typer.Option("--format", help="A table for people, or every column of every trial."),
    ] = Format.TABLE,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only this many of the best, in a table.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of the terminal.")
    ] = None,
) -> None:
    """Print a run's trials."""
    from tune_softmax import tables
    from tune_softmax.results import load

    if form is Format.TABLE and output is not None:
        raise typer.BadParameter("--output goes with --format csv, json or parquet")
    if form is not Format.TABLE and top is not None:
        raise typer.BadParameter("--top goes with --format table; the others hold every trial")
    found = load(run)
    if form is Format.TABLE:
        console = _console()
        console.print(tables.trial_table(found, found.ranked()[:top], str(run)))
        return
    content = tables.export(found, form)
    data = content.encode() if isinstance(content, str) else content
    if output is not None:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise StorageError(
                f"--output {output}: cannot be written: {error.strerror}"
            ) from error
        return
    if form is Format.PARQUET and sys.stdout.isatty():
        raise ResultsError("--format parquet: bytes for a file; add --output FILE")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@app.command()
def validate(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema that editors use.")
    ] = False,
) -> None:
    """Check an experiment file and print it with every default written out."""
    from tune_softmax import experiment as experiments

    if schema:
        print(json.dumps(experiments.json_schema(), indent=2))
    if experiment is not None:
        print(experiments.load(experiment).to_yaml(), end="")
    if experiment is None and not schema:
        raise typer.BadParameter("name an EXPERIMENT file, or ask for the --schema")


@app.command()
def doctor(data_dir: DataDirOption = None) -> None:
    """Say what is here: Python, packages, processor, GPUs, datasets, disk."""
    from tune_softmax import diagnosis

    console = _console()
    for line in diagnosis.examine(data_dir):
        console.print(line, highlight=False, soft_wrap=True)


@bench_app.command("packed")
def bench_packed(
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="A batch size of the mix; repeat for more.  [default: 64 128 256 512]"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Training images.")] = 50_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads of a pack.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file too.")
    ] = None,
) -> None:
    """Seconds per trial-epoch: one at a time, packs of 1 to 256, and the products alone."""
    from tune_softmax import bench

    console = Console(stderr=True)
    with console.status("measuring") as status:
        rows = bench.bench_packed(
            batch_sizes=batch_size or bench.BATCH_SIZES,
            num_images=num_images,
            repeats=repeats,
            num_threads=num_threads,
            device=device,
            on_progress=status.update,
        )
    print(bench.format_table(rows))
    if json_file is not None:
        json_file.write_text(bench.to_json(rows))


def _finish(found: Results, *, strict: bool) -> None:
    """Print what a search found; exit with 3 for failed trials where that counts."""
    from tune_softmax import tables
    from tune_softmax.metrics import State

    console = _console()
    ranked = found.ranked(found.trials[found.trials["state"] == State.COMPLETE])
    if len(ranked):
        console.print(tables.trial_table(found, ranked.head(10), "the ten best trials"))
        console.print()
    for line in tables.summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    if found.count(State.FAIL) and (strict or not len(ranked)):
        raise typer.Exit(FAILED_TRIALS)


def _console() -> Console:
    """Return a console that does not squeeze tables where there is no terminal to fit."""
    # Without markup, for brackets in a folder's name or an error are just brackets.
    return Console(width=None if sys.stdout.isatty() else 140, markup=False)


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in overrides.items() if value is not None}


def _number_or_word(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text
