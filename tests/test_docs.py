"""The documents: what they name exists, what exists is named, and their examples run."""

import re
import signal
from pathlib import Path

import pytest
import typer
from test_package import ORDER
from typer.testing import CliRunner

from tune_softmax.cli import app
from tune_softmax.commands.options import FAILED_TRIALS
from tune_softmax.config import Config
from tune_softmax.errors import SearchInterruptedError, TuneSoftmaxError
from tune_softmax.experiment import experiment
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(language, text=README):
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands():
    """Return every command of the command line that does something, by its words."""
    found = {}
    left = [((), typer.main.get_command(app))]
    while left:
        words, command = left.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            found[words] = command
        else:
            left += [((*words, name), child) for name, child in inner.items()]
    return found


COMMANDS = commands()


def options_of(words):
    """Return a command's long options."""
    declared = [option for parameter in COMMANDS[words].params for option in parameter.opts]
    return {option for option in declared if option.startswith("--")} | {"--help"}


def command_in(line):
    """Return the words of the command that a line calls, and the long options given to it."""
    after = line.partition("tune-softmax ")[2].split("#")[0].split()
    words = next(words for n in (2, 1) if (words := tuple(after[:n])) in COMMANDS)
    return words, {word for word in after if word.startswith("--")}


def run_lines():
    """Return every line of the documents' shell blocks that calls us, and those in tables."""
    lines = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines += [line for block in blocks("sh", text) for line in block.splitlines()]
        lines += re.findall(r"`(tune-softmax [^`]+)`", text)
    return sorted({line for line in lines if re.match(r"tune-softmax [a-z]", line)})


def anchors(text):
    """Return the names by which a document's headings can be linked."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- Links --------------------------------------------------------------------------------------


def relative_links():
    """Return (document, target) for every link and image that leads to a file of ours."""
    return [
        (document, target)
        for document in DOCUMENTS
        for target in LINK.findall(document.read_text(encoding="utf-8"))
        if "://" not in target
    ]


def test_enough_documents_and_links_were_found():
    """The search for links finds them."""
    names = {document.name for document in DOCUMENTS}
    assert names >= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "packs.md"}
    assert len(relative_links()) >= 9


def test_every_relative_link_resolves():
    """A link leads to a file that is there, and to a heading that it has."""
    missing = []
    for document, target in relative_links():
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        there = path.exists()
        if there and anchor:
            there = anchor in anchors(path.read_text(encoding="utf-8"))
        if not there:
            missing.append(f"{document.name}: {target}")
    assert missing == []


@pytest.mark.parametrize("name", ["learning_curves.png", "weights.png"])
def test_the_pictures_are_there(name):
    """The README shows two pictures of a real result, and every picture says what it shows."""
    assert f"](docs/images/{name})" in README
    assert (ROOT / "docs" / "images" / name).read_bytes().startswith(b"\x89PNG")
    assert "![](" not in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_figure_is_left_open(document):
    """Every cell that waits for a measurement has been filled in."""
    assert re.findall(r"\w*", document.read_text(encoding="utf-8")) == []


# --- Commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_every_command_has_help(words):
    """A command says what it does, and so does each of its options and arguments."""
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert COMMANDS[words].help
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "help", None), f"{' '.join(words)}: {parameter.name}"


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_every_command_is_in_the_readme(words):
    """A row of the README's table of commands begins with it, and names options that it has."""
    begin = f"| `tune-softmax {' '.join(words)}"
    (row,) = [line for line in section("Commands").splitlines() if line.startswith(begin)]
    named = set(re.findall(r"`(--[a-z0-9-]+)`", row))
    assert named <= options_of(words)


def section(heading):
    """Return the README's text under a heading."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    return text


def test_enough_command_lines_were_found():
    """The search for command lines finds them, of nearly every command."""
    assert len({command_in(line)[0] for line in run_lines()}) >= 7


@pytest.mark.parametrize("line", run_lines())
def test_a_command_line_in_a_document_is_one_we_take(line):
    """It calls a command that there is, with options that this one has."""
    words, options = command_in(line)
    assert options <= options_of(words)


def test_every_make_target_in_a_document_exists():
    """`make NAME` in a document is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert {"search", "test", "lint"} <= named <= targets


def test_every_exit_code_is_in_the_readme():
    """The table has 0, the code of failed trials, each error's own, and those of the signals."""
    codes = {0, FAILED_TRIALS}
    left = [TuneSoftmaxError]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind is not SearchInterruptedError:
            codes.add(kind.exit_code)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        codes.add(SearchInterruptedError(number, Path("run"), 0, 1).exit_code)
    cells = re.findall(r"^\| (\d[\d, ]*) \|", section("Commands"), re.MULTILINE)
    assert [int(code) for cell in cells for code in cell.split(", ")] == sorted(codes)


# --- The file map -------------------------------------------------------------------------------


def mapped(folder):
    """Return what the file map lists below a folder, in its order."""
    (block,) = blocks("", section("File map"))
    (part,) = re.findall(rf"^{folder}/.*\n((?:  .*\n)*)", block, re.MULTILINE)
    return re.findall(r"^  (\S+)", part, re.MULTILINE)


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("tune_softmax", "[!_]*"), ("experiments", "[!.]*.*"), ("docs", "*")],
)
def test_the_file_map_names_what_there_is(folder, pattern):
    """Every file has its line, and every line its file."""
    there = (path for path in (ROOT / folder).glob(pattern) if path.name != "py.typed")
    assert sorted(mapped(folder)) == sorted(path.name + "/" * path.is_dir() for path in there)


def test_the_file_map_lists_modules_from_low_to_high():
    """It has the order that the imports obey."""
    folders_of = [f"{name.partition('.')[0]}/" if "." in name else f"{name}.py" for name in ORDER]
    assert mapped("tune_softmax") == list(dict.fromkeys(folders_of))


# --- Examples -----------------------------------------------------------------------------------


@pytest.fixture
def fashion_mnist_run(tmp_path, monkeypatch):
    """Make runs/fashion_mnist in a folder of its own, by hand, and go there."""
    monkeypatch.chdir(tmp_path)
    asked = experiment.load(ROOT / "experiments" / "fashion_mnist.yaml")
    folder = RunFolder(Path("runs/fashion_mnist"))
    folder.create()
    folder.experiment.write_text(asked.to_yaml(), encoding="utf-8")
    configs = {
        number: Config(batch_size=64 * 2 ** (number % 2), num_epochs=3, learning_rate=0.1)
        for number in range(4)
    }
    ledger = Ledger.create(folder.ledger, {"dataset_checksum": "none"})
    ledger.hand_out(0, configs)
    for number, (last, state) in enumerate(
        [(3, State.COMPLETE), (3, State.COMPLETE), (1, State.PRUNED), (2, State.FAIL)]
    ):
        for epoch in range(1, last + 1):
            loss = 1 / (epoch + number)
            metrics = EpochMetrics(loss, 0.8, loss + 0.1, 0.7, 0.01)
            report = Report(number, epoch, metrics, state if epoch == last else State.RUNNING)
            ledger.record(0, [report])
    ledger.close()
    return folder.path


@pytest.mark.usefixtures("fashion_mnist_run")
def test_the_pandas_example_runs(capsys):
    """The README's lines give what they say, on a run with all kinds of trials."""
    (example,) = blocks("python")
    names = {}
    exec(example, names)  # noqa: S102 - our own README
    assert "batch_size" in capsys.readouterr().out
    assert list(names["complete"]["number"]) == [0, 1]
    assert names["curves"].shape == (3, 4)
    assert names["curves"].loc[3, 1] == pytest.approx(0.35)
    best = names["run"].best()
    assert (best.number, best.metric, best.epoch) == (1, "validation_loss", 3)


def test_every_column_is_in_the_readme(fashion_mnist_run):
    """The README lists the columns of both dataframes, all and no other, in their order."""
    run = results.load(fashion_mnist_run)
    for frame, which in ((run.trials, "trials"), (run.epochs, "epochs")):
        (line,) = re.findall(rf"^- \*\*`run\.{which}`\*\*.*$", README, re.MULTILINE)
        named = [name for name in re.findall(r"`(\w+)`", line) if name.islower()]
        assert named == list(frame.columns)


def test_the_experiment_explained_is_the_one_shipped():
    """The README's YAML means what experiments/fashion_mnist.yaml means."""
    (example,) = blocks("yaml")
    shipped = experiment.load(ROOT / "experiments" / "fashion_mnist.yaml")
    assert experiment.parse(example, str(ROOT / "experiments" / "README.yaml")) == shipped


def test_the_changelog_keeps_its_form():
    """What is not released yet comes first, under the headings of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert releases[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
