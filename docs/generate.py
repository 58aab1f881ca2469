"""Write the pages of the reference that follow from the code, and the experiment file's schema.

    python docs/generate.py           # write them
    python docs/generate.py --check   # exit with 1 if one is not what the code says

Commands come from the typer application, keys from the pydantic models, columns from dataframes
that the product itself makes, exit codes from the error classes. Only what no code says, the
meaning of a column, stands here; a column without a meaning is an error.
"""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import tempfile
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import typer

from tune_softmax import errors
from tune_softmax.cli import app
from tune_softmax.commands.options import FAILED_TRIALS
from tune_softmax.experiment import experiment as experiments
from tune_softmax.experiment.space import Space
from tune_softmax.metrics import CURVES
from tune_softmax.oracle.cache import PathPoint
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.stats import verdicts, winners
from tune_softmax.studies import remedies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code; change the code, then run `make docs`. -->"

_COMMANDS = """
Every command, argument and option of `tune-softmax`. `tune-softmax COMMAND --help` prints the
same. `tune-softmax --install-completion` makes your shell complete them.
"""
_EXPERIMENT = """
An experiment file is YAML. `tune-softmax validate FILE` prints it with every default written out,
or names every mistake with its line. Unknown and repeated keys are refused.
[The JSON schema](../experiment.schema.json) lets an editor complete and check keys; the first line
of the files in `experiments/` names it. [How to write one](../how-to/write-an-experiment.md)
explains an example line by line.
"""
_SPACE = """
Each hyperparameter is one value, or a mapping with one domain. `int` also takes a mapping with
`low`, `high`, `step` and `log`, for example `int: {low: 8, high: 512, log: true}`. Both ends of a
range are included.
"""
_DATAFRAMES = """
Each table lists every column of one dataframe, in its order, with the type that pandas gives it. A
fraction lies between 0 and 1. Losses are mean cross-entropies in nats, without penalties. The
functions are in the package: `from tune_softmax import load, train, confirm, remedies, oracle`.
`tune-softmax results RUN --format csv` writes the columns of `trials`.
"""
_EXIT_CODES = """
An error that you can put right prints one line on standard error and ends the command with its
code. In Python the same errors are exceptions, importable from `tune_softmax`. Any other exception
is a defect of tune_softmax and keeps its traceback.
"""


def _text(lines: str) -> str:
    return " ".join(lines.split())


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


# --- Commands -----------------------------------------------------------------------------------


def commands() -> dict[tuple[str, ...], Any]:
    """Return every command that does something, by its words, in the order of `--help`."""
    found = {}
    left: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while left:
        words, command = left.pop(0)
        inner = getattr(command, "commands", None)
        if inner is None:
            found[words] = command
        else:
            left += [((*words, name), child) for name, child in inner.items()]
    return found


def _commands_page() -> str:
    parts = [
        "# Commands",
        NOTE,
        _text(_COMMANDS),
        table(
            ["command", "what it does"],
            (
                (f"[`{' '.join(words)}`](#{'-'.join(words)})", _sentences(command)[0])
                for words, command in commands().items()
            ),
        ),
    ]
    for words, command in commands().items():
        context = command.make_context(words[-1], [], resilient_parsing=True)
        usage = " ".join(command.collect_usage_pieces(context))
        usage = re.sub(r"[{\[]([A-Z]+)[}\]](\.\.\.)?", r"\1\2", usage.replace("[OPTIONS]", ""))
        parts += [
            f"## {' '.join(words)}",
            "\n\n".join(_sentences(command)),
            f"```sh\ntune-softmax {' '.join(words)} {usage.strip()} [OPTIONS]\n```".replace(
                "  ", " "
            ),
            table(
                ["argument or option", "meaning", "default, limits"], _parameters(command, context)
            ),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _sentences(command: Any) -> list[str]:
    """Return the paragraphs of a command's help, each as one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(command.help).split("\n\n")]


def _parameters(command: Any, context: Any) -> Iterable[tuple[str, str, str]]:
    """Yield each argument and option as `--help` prints it, its bracketed notes apart."""
    for parameter in command.params:
        name, text = parameter.get_help_record(context)
        meaning, _, notes = text.partition("  [")
        notes = notes.removesuffix("]").removeprefix("default: ").replace("]  [", "; ")
        yield f"`{name}`", meaning.strip(), notes


# --- Experiment keys ----------------------------------------------------------------------------

_DOMAINS = {
    "choice": "`choice: [A, B, ...]`",
    "int": "`int: [LOW, HIGH]`",
    "uniform": "`uniform: [LOW, HIGH]`",
    "log_uniform": "`log_uniform: [LOW, HIGH]`",
}


def _experiment_page() -> str:
    schema = experiments.json_schema()
    top = [
        (f"`{name}`", field.description or "", "required" if name in schema["required"] else "")
        for name, field in experiments.Experiment.model_fields.items()
    ]
    parts = [
        "# Experiment files",
        NOTE,
        _text(_EXPERIMENT),
        table(["section", "meaning", "default"], top),
        "## space",
        _text(_SPACE),
        table(["key", "meaning", "domains", "default"], _hyperparameters(schema)),
    ]
    for section, found in _sections(schema):
        rows = [
            (
                f"`{key}`",
                value.get("description", ""),
                _form(value),
                _default(key, found),
            )
            for key, value in found["properties"].items()
        ]
        parts += [
            f"## {section}",
            found["description"],
            table(["key", "meaning", "value", "default"], rows),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _sections(schema: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield every section but the space, and the sections within sections, by dotted key."""
    left = list(schema["properties"].items())
    while left:
        path, value = left.pop(0)
        forms = [value, *value.get("anyOf", ())]
        for name in [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]:
            if path != "space":
                found = schema["$defs"][name]
                yield path, found
                inner = found["properties"].items()
                left = [*((f"{path}.{key}", one) for key, one in inner), *left]


def _hyperparameters(schema: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    found = schema["$defs"]["Space"]
    for name, value in found["properties"].items():
        forms = [one.get("properties", {}) for one in value["anyOf"]]
        domains = ", ".join(
            text for kind, text in _DOMAINS.items() for one in forms if kind in one
        )
        yield f"`{name}`", value["description"], domains, _default(name, found)


def _form(value: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    match value:
        case {"anyOf": forms}:
            text = " or ".join(_form(form) for form in forms)
        case {"enum": values}:
            text = " or ".join(f"`{one}`" for one in values)
        case {"const": one}:
            text = f"`{one}`"
        case {"type": "array", "items": {"type": "object"}}:
            text = "list of mappings"
        case {"type": "array", "items": inner}:
            text = f"list of: {_form(inner)}"
        case {"type": kind}:
            names = {"string": "text", "null": "`null`", "boolean": "true or false"}
            text = " ".join([names.get(kind, kind), *_limits(value)])
        case _:
            text = "a mapping"
    return text


def _limits(value: Mapping[str, Any]) -> Iterable[str]:
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[key]:,}" for key, sign in bounds.items() if key in value]
    return [" and ".join(found)] if found else []


def _default(key: str, found: Mapping[str, Any]) -> str:
    if key in found.get("required", ()):
        return "required"
    value = found["properties"][key]
    return _yaml(value["default"]) if "default" in value else "a mapping with its defaults"


def _yaml(value: object) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


# --- Columns ------------------------------------------------------------------------------------

_MEANINGS: dict[str, tuple[str, str]] = {
    "number": ("from 0", "The trial's number, unique in its run."),
    "trial": ("from 0", "The trial's number in the run's dataframes."),
    "epoch": ("from 1", "Passes over the training set so far."),
    "state": (
        "word",
        (
            "`COMPLETE` ran all its epochs, `PRUNED` was stopped by ASHA, `FAIL` diverged or "
            "failed; `RUNNING`, `PARKED` and `WAITING` are not final."
        ),
    ),
    "value": (
        "of the metric",
        "What trials are ranked by; see [a trial's value](../explanation/search.md#value).",
    ),
    "train_loss": (
        "nats",
        (
            "Mean cross-entropy over the epoch's mini-batches, each taken before "
            "its update, without penalties."
        ),
    ),
    "train_accuracy": ("fraction", "Images classified rightly in the same mini-batches."),
    "validation_loss": ("nats", "Mean cross-entropy over the validation images after the epoch."),
    "validation_accuracy": ("fraction", "Validation images classified rightly after the epoch."),
    "test_loss": ("nats", "Mean cross-entropy over the test images at the end."),
    "test_accuracy": ("fraction", "Test images classified rightly at the end."),
    "epochs_trained": ("epochs", "How many the trial trained."),
    "best_epoch": ("epoch", "The epoch with the best metric; missing where there is none."),
    "rung": (
        "epochs",
        "The highest rung of ASHA that it reached; missing below the first.",
    ),
    "pack": ("number", "The pack that the trial was last in."),
    "attempts": ("count", "How often the trial was handed out to a worker."),
    "seconds": ("seconds", "The trial's equal share of its packs' wall clock."),
    "error": ("text", "Why the trial failed; missing otherwise."),
    "seed": ("number", "The seed of this training."),
    "remedy": ("word", "`baseline`, a remedy, `less_data`, or `combined`."),
    "strength": ("of the remedy", "The remedy's setting as a number."),
    "train_fraction": ("fraction", "Of the images left for training, how many it trains on."),
    "strength_label": ("text", "The remedy's setting in words."),
    "gap": ("nats", "Validation loss minus training loss."),
    "epochs": ("epochs", "How many were trained."),
    "metric": ("word", "Which column the comparison is by."),
    "num_seeds": ("count", "Seeds that each arm or trial was trained with."),
    "num_comparisons": ("count", "Arms beside the baseline; the intervals are corrected for all."),
    "baseline_mean": ("of the metric", "Mean of the baseline over seeds."),
    "remedy_mean": ("of the metric", "Mean of the remedy over seeds."),
    "difference": ("of the metric", "Remedy minus baseline, paired over seeds."),
    "low": ("of the metric", "Lower end of the interval of the difference."),
    "high": ("of the metric", "Upper end of the interval of the difference."),
    "p_value": ("probability", "Of the paired t test, corrected; missing without an interval."),
    "margin": ("of the metric", "The smallest difference that matters."),
    "choice_loss": (
        "nats",
        (
            "The validation loss by which strengths are chosen; with early stopping, the other "
            "seeds' loss at the epoch that the trial's own curve chose."
        ),
    ),
    "verdict": (
        "words",
        (
            "`better` or `worse` where the whole interval is beyond the margin, `no difference "
            "that matters` where it is within, else `not settled`; `diverged` for a trial that "
            "did. See [statistics](../explanation/statistics.md)."
        ),
    ),
    "reason": ("text", "Why there is no interval; empty where there is one."),
    "mean_test_accuracy": ("fraction", "Mean over seeds."),
    "accuracy_low": ("fraction", "Lower end of the mean's interval over seeds."),
    "accuracy_high": ("fraction", "Upper end of the mean's interval over seeds."),
    "binomial_low": ("fraction", "Lower end of the interval over other test images."),
    "binomial_high": ("fraction", "Upper end of the interval over other test images."),
    "binomial_half_width": ("fraction", "Half of the length of that interval."),
    "mean_test_loss": ("nats", "Mean over seeds."),
    "loss_low": ("nats", "Lower end of the mean's interval over seeds."),
    "loss_high": ("nats", "Upper end of the mean's interval over seeds."),
    "accuracy_drop": ("fraction", "Validation accuracy in the search minus mean test accuracy."),
    "is_winner": (
        "true, false",
        "Whether no other trial is shown to be better by more than the margin.",
    ),
}


def _frames() -> dict[str, tuple[str, pd.DataFrame]]:
    """Return each public dataframe with a sentence on its rows; all of them may be empty."""
    run, study = _empty_run("quickstart"), _empty_run("overfitting_quickstart")
    of_study = [name for name in study.trials if name not in run.trials]
    seeds = range(3)
    arms = pd.DataFrame(
        [
            {
                "remedy": remedy,
                "strength": 0.0,
                "strength_label": "",
                "seed": seed,
                "validation_loss": seed + level,
                "test_loss": seed + level,
            }
            for level, remedy in ((0.0, "baseline"), (0.5, "l1"))
            for seed in seeds
        ]
    )
    replicates = pd.DataFrame(
        [
            {"trial": trial, "seed": seed, "test_loss": 1.0 + seed, "test_accuracy": 0.5}
            for trial in range(2)
            for seed in seeds
        ]
    )
    seen = pd.DataFrame({"trial": [0, 1], "validation_loss": 1.0, "validation_accuracy": 0.5})
    curves = pd.DataFrame({"epoch": [1], **dict.fromkeys(CURVES, 0.5), "seconds": 0.5})
    studied = pd.DataFrame(columns=list(remedies._COLUMNS)).astype(remedies._COLUMNS)  # noqa: SLF001
    return {
        "load(RUN).trials": ("One row a trial, failed and stopped ones too.", run.trials),
        "load(STUDY).trials": (
            "The trials of a study of remedies have these columns too, after `state`.",
            study.trials[of_study],
        ),
        "load(RUN).epochs": ("One row a trial and epoch.", run.epochs),
        "train(EXPERIMENT).curves": ("One row an epoch.", curves),
        "confirm(RUN).replicates": ("One row a trial and seed.", replicates),
        "confirm(RUN).winners": (
            "One row a confirmed trial, the best first.",
            winners.winners(replicates, seen, 100),
        ),
        "remedies(EXPERIMENT).arms": ("One row a way to train and seed.", studied),
        "remedies(EXPERIMENT).effects": (
            "One row a remedy at its chosen strength.",
            verdicts.effects(arms),
        ),
        "oracle(EXPERIMENT).path": (
            "One row a penalty.",
            pd.DataFrame([dict.fromkeys((f.name for f in fields(PathPoint)), 0.5)]).astype(
                {"num_iterations": "int64"}
            ),
        ),
    }


def _empty_run(name: str) -> results.Results:
    """Return what a run of a shipped experiment holds before its first trial."""
    asked = experiments.load(DOCS.parent / "experiments" / f"{name}.yaml")
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        folder.create()
        folder.experiment.write_text(asked.to_yaml(), encoding="utf-8")
        with closing(Ledger.create(folder.ledger, {"dataset_checksum": "none"})):
            pass
        return results.load(folder.path)


def _dataframes_page() -> str:
    parts = [
        "# Dataframes",
        NOTE,
        _text(_DATAFRAMES),
    ]
    of_points = attributes(PathPoint)
    for name, (rows, frame) in _frames().items():
        own = of_points if name.startswith("oracle") else {}
        parts += [
            f"## {name}",
            rows,
            table(
                ["column", "meaning", "unit", "type"],
                ((f"`{c}`", *_meaning(str(c), own), str(frame[c].dtype)) for c in frame),
            ),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _meaning(column: str, own: Mapping[str, str]) -> tuple[str, str]:
    """Return a column's meaning and unit; KeyError for one that nothing describes."""
    if column in own:
        unit = "nats" if "in nats" in own[column] else ""
        return own[column], unit or {"seconds": "seconds"}.get(column, "number")
    if column in Space.model_fields:
        return Space.model_fields[column].description or "", _units(column)
    for prefix, words in (("last_", "After the last epoch"), ("best_", "The best of all epochs")):
        inner = column.removeprefix(prefix)
        if inner in CURVES and inner != column:
            unit, text = _MEANINGS[inner]
            return f"{words}: {text[0].lower()}{text[1:]}", unit
    if column not in _MEANINGS:
        raise KeyError(f"column {column}: give it a unit and a meaning in docs/generate.py")
    unit, text = _MEANINGS[column]
    return text, unit


def _units(name: str) -> str:
    units = {"batch_size": "images", "num_epochs": "epochs", "hidden_units": "units"}
    return units.get(name, "word" if name.endswith("schedule") else "number")


def attributes(kind: type) -> dict[str, str]:
    """Return the lines of a docstring's part `Attributes`, by name."""
    _, _, text = inspect.getdoc(kind).partition("Attributes:\n")  # type: ignore[union-attr]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


# --- Exit codes ---------------------------------------------------------------------------------


def exit_codes() -> dict[int, list[tuple[str, str]]]:
    """Return every exit code with the errors that have it, each with its sentence."""
    found: dict[int, list[tuple[str, str]]] = {
        0: [("", "The command is done.")],
        FAILED_TRIALS: [
            ("", "Done, but all trials failed or diverged, or any failed under `--strict`.")
        ],
    }
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not isinstance(kind, type):
            continue
        for code, text in _codes_of(kind):
            found.setdefault(code, []).append((name, text))
    return dict(sorted(found.items()))


def _codes_of(kind: Any) -> Iterable[tuple[int, str]]:
    """Return an error's exit codes, each with its sentence; a signal's depends on the signal."""
    text = (inspect.getdoc(kind) or "").split("\n")[0]
    if kind is errors.SearchInterruptedError:
        arguments: tuple[object, ...] = (Path("run"), 0, 1)
    elif kind is errors.InterruptedEarlyError:
        arguments = ()
    else:
        return [(kind.exit_code, text)]
    signals = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
    return [(kind(one, *arguments).exit_code, f"{one.name}: {text}") for one in signals]


def _exit_codes_page() -> str:
    rows = [
        (str(code) if not index else "", f"`{name}`" if name else "", text)
        for code, found in exit_codes().items()
        for index, (name, text) in enumerate(found)
    ]
    return (
        "\n\n".join(
            [
                "# Exit codes",
                NOTE,
                _text(_EXIT_CODES),
                table(["exit code", "Python error", "meaning"], rows).strip("\n"),
            ]
        )
        + "\n"
    )


def _schema() -> str:
    return json.dumps(experiments.json_schema(), indent=2) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": _commands_page,
    "reference/experiment.md": _experiment_page,
    "reference/dataframes.md": _dataframes_page,
    "reference/exit-codes.md": _exit_codes_page,
    "experiment.schema.json": _schema,
}


def stale(folder: Path = DOCS, pages: Mapping[str, Callable[[], str]] = PAGES) -> list[str]:
    """Return the pages whose files are not what the code says."""
    return [
        name
        for name, page in pages.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != page()
    ]


if __name__ == "__main__":
    old = stale()
    if "--check" in sys.argv[1:] and old:
        sys.exit(f"not what the code says: {', '.join(old)}; run `make docs`")
    for changed in old:
        (DOCS / changed).write_text(PAGES[changed](), encoding="utf-8")
