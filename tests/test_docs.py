"""The documents: what they name exists, what exists is named, and their examples run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tune_softmax
from tune_softmax import errors, load
from tune_softmax.cli import app
from tune_softmax.config import Config
from tune_softmax.experiment import experiment
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DOCUMENTS = sorted(
    path for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")] if "_site" not in path.parts
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MAX_README_LINES = 160


def load_generator():
    """Return `docs/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()
COMMANDS = generate.commands()


def read(name):
    """Return a document of the docs."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(language, text=README):
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text):
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def options_of(words):
    """Return a command's long options."""
    declared = [option for parameter in COMMANDS[words].params for option in parameter.opts]
    return {option for option in declared if option.startswith("--")} | {"--help"}


def command_in(line):
    """Return the words of the command that a line calls, and the long options given to it."""
    after = line.partition("tune-softmax ")[2].split("#")[0].split()
    words = next((words for n in (2, 1) if (words := tuple(after[:n])) in COMMANDS), None)
    return words, {word for word in after if word.startswith("--")}


def run_lines():
    """Return every line of the documents' shell blocks that calls us, and those in the text."""
    lines = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines += [line for block in blocks("sh", text) for line in block.splitlines()]
        lines += re.findall(r"`(tune-softmax [^`]+)`", prose(text))
    return sorted({line for line in lines if re.match(r"(\w+=\S+ )?tune-softmax [a-z]", line)})


def anchors(text):
    """Return the names by which a document's headings can be linked."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- The README ---------------------------------------------------------------------------------


def test_the_readme_is_short():
    """A reader gets through it."""
    assert len(README.splitlines()) <= MAX_README_LINES


def test_the_readme_shows_one_picture():
    """Its picture is there, and says what it shows."""
    ((text, name),) = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert len(text) > 20
    assert (ROOT / name).read_bytes().startswith(b"\x89PNG")


def test_the_readme_says_its_limits_before_the_first_command():
    """Nobody installs 6 GB to learn that colour images are not taken."""
    limits, start = README.index("**Limits.**"), README.index("make search")
    assert limits < start


def test_the_readme_has_ten_results_of_one_figure_each():
    """Nobody has to take a cell apart."""
    (part,) = re.findall(r"^## Results\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE)
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    figures = [figure for _, figure in rows[1:]]
    assert len(figures) == 10
    assert all(re.fullmatch(r"[\d.,]+( s| times)?", figure) for figure in figures), figures
    assert re.search(r"cores.* 20\d\d-\d\d-\d\d", part), "hardware and date"


# --- Links --------------------------------------------------------------------------------------


def relative_links():
    """Return (document, target) for every link and image that leads to a file of ours."""
    return [
        (document, target)
        for document in DOCUMENTS
        for target in LINK.findall(prose(document.read_text(encoding="utf-8")))
        if "://" not in target
    ]


def test_enough_documents_and_links_were_found():
    """The search for links finds them."""
    names = {document.name for document in DOCUMENTS}
    assert names >= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "packs.md", "commands.md"}
    assert len(relative_links()) >= 100


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
            missing.append(f"{document.relative_to(ROOT)}: {target}")
    assert missing == []


def test_every_picture_is_shown():
    """No page was changed that left its picture behind."""
    shown = {Path(target).name for _, target in relative_links() if target.endswith(".png")}
    assert shown == {path.name for path in (DOCS / "images").iterdir()}


def test_every_picture_is_described():
    """Whoever cannot see a picture reads what it shows."""
    for document in DOCUMENTS:
        assert "![](" not in document.read_text(encoding="utf-8")


def test_every_page_is_in_the_contents():
    """The site's contents list every page of the docs, each once."""
    listed = [line for block in blocks(r"\{toctree\}", read("index.md")) for line in block.split()]
    listed = [entry for entry in listed if "/" in entry]
    pages = [
        str(path.relative_to(DOCS).with_suffix("")) for path in DOCUMENTS if DOCS in path.parents
    ]
    assert sorted([*listed, "index"]) == sorted(pages)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_has_as_many_cells_in_each_row(document):
    """No row of a table lost a cell or has one too many."""
    rows = []
    for line in [*prose(document.read_text(encoding="utf-8")).splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
            continue
        sizes = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(sizes) <= 1, rows
        rows = []


def test_files_that_the_documents_name_are_there():
    """A path in code style, such as `experiments/mlp.yaml`, is that of a file or folder."""
    pattern = re.compile(
        r"`((?:tune_softmax|tests|docs|experiments|engine|scheduler|report|run)/[\w./-]+)`"
    )
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        for name in pattern.findall(document.read_text(encoding="utf-8"))
        if not ((ROOT / name).exists() or (ROOT / "tune_softmax" / name).exists())
    ]
    assert missing == []


# --- The reference ------------------------------------------------------------------------------


def test_the_reference_is_what_the_code_says():
    """Commands, keys, columns, exit codes and the schema have not changed since `make docs`."""
    assert generate.stale() == []


def test_a_stale_reference_is_found(tmp_path):
    """A page that differs, and one that is missing, are named."""
    for name, page in {"right.md": "text", "old.md": "before"}.items():
        (tmp_path / name).write_text(page, encoding="utf-8")
    pages = dict.fromkeys(["right.md", "old.md", "missing.md"], lambda: "text")
    assert generate.stale(tmp_path, pages) == ["old.md", "missing.md"]


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_every_command_has_help(words):
    """A command says what it does, and so does each of its options and arguments."""
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert COMMANDS[words].help
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "help", None), f"{' '.join(words)}: {parameter.name}"


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_every_command_and_option_is_in_the_reference(words):
    """Its part of the page on commands names every option that it has."""
    parts = re.split(r"^## ", read("reference/commands.md"), flags=re.MULTILINE)
    (part,) = [part for part in parts if part.startswith(f"{' '.join(words)}\n")]
    assert options_of(words) - {"--help"} <= set(re.findall(r"(--[a-z0-9-]+)", part))


def test_a_column_without_a_meaning_is_an_error():
    """Whoever adds a column is told where to describe it."""
    with pytest.raises(KeyError, match=r"column nothing.*docs/generate\.py"):
        generate._meaning("nothing", {})


def test_every_public_name_is_in_the_python_reference():
    """The page documents what the package offers; errors by their module."""
    text = read("reference/python.md")
    documented = set(re.findall(r"auto\w+:: tune_softmax\.([\w.]+)", text))
    assert "errors" in documented
    offered = set(tune_softmax.__all__) - {"__version__"} - set(errors.__all__)
    assert offered - documented == {"oracle"}
    assert "oracle.path.oracle" in documented


def test_the_pieces_of_the_fast_start_are_those_of_its_folder():
    """The page has the table that stands in the folder's docstring."""
    from tune_softmax.cluster import fast_start

    rows = [line for line in fast_start.__doc__.splitlines() if line.startswith("| `")]
    assert len(rows) >= 3
    assert set(rows) <= set(read("explanation/fast-start.md").splitlines())


def test_the_limits_in_the_guide_are_those_that_are_checked():
    """The guide to problems has the numbers that a search compares with."""
    from tune_softmax.cluster import limits

    text = read("how-to/solve-problems.md")
    mib = limits.MIB
    for needed in (
        f"{limits.LEAST_MEMORY_BYTES // mib} MiB |",
        f"{limits.LEAST_ADDRESS_SPACE_BYTES // mib // 1024} GiB |",
        f"{limits.STORE_FRACTION:.0%} of the memory".replace("%", " %"),
        f"from {limits.LEAST_STORE_BYTES // mib} to {limits.MOST_STORE_BYTES // mib} MiB |",
        f"{limits.FILES}, and {limits.FILES_PER_WORKER} for each worker |",
        f"{limits.THREADS} more than now, and {limits.THREADS_PER_WORKER} for each worker |",
        f"{limits.LEAST_DISK_BYTES // mib} MiB |",
    ):
        assert needed in text, needed


# --- Command lines ------------------------------------------------------------------------------


def test_enough_command_lines_were_found():
    """The search for command lines finds them, of nearly every command."""
    assert len({command_in(line)[0] for line in run_lines()}) >= len(COMMANDS) - 2


@pytest.mark.parametrize("line", run_lines())
def test_a_command_line_in_a_document_is_one_we_take(line):
    """It calls a command that there is, with options that this one has."""
    words, options = command_in(line)
    assert words is not None
    assert options <= options_of(words)


def test_every_make_target_in_a_document_exists():
    """`make NAME` in a document is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert {"search", "test", "lint", "docs"} <= named <= targets


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
        number: Config(
            batch_size=64 * 2 ** (number % 2), num_epochs=3, learning_rate=0.1, weight_decay=1e-4
        )
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


@pytest.mark.slow
@pytest.mark.ray
def test_the_tutorial_runs(tmp_path):
    """Its commands do what it says, one after the other, up to the search that is stopped."""
    text = read("tutorial/first-search.md").partition("## Stop and go on")[0]
    commands = [block for block in blocks("sh", text) if not block.startswith(("make", "source"))]
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "three.png" in done.stdout.splitlines()[-1]
    run = tmp_path / "runs" / "quickstart"
    assert len(load(run).trials) == 64
    assert (run / "report.html").exists()
    assert (run / "best" / "weights.safetensors").exists()
    assert len((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()) == 65


@pytest.mark.usefixtures("fashion_mnist_run")
def test_the_guide_to_analysis_runs():
    """Every line of its first blocks does something on a run; the last question needs two runs."""
    examples = blocks("python", read("how-to/analyse-results.md"))[:3]
    names = {}
    for example in examples:
        exec(example.partition("# several runs")[0], names)  # noqa: S102 - our own guide
    assert list(names["complete"]["number"]) == [0, 1]


def test_the_guide_to_images_of_ones_own_writes_what_we_read(tmp_path):
    """Its function makes IDX files that the dataset reader takes as they were."""
    import numpy as np

    from tune_softmax.data.dataset import load_dataset

    names = {}
    exec(blocks("python", read("how-to/use-your-own-images.md"))[0], names)  # noqa: S102 - ours
    images = np.arange(40 * 6 * 5, dtype=np.uint8).reshape(40, 6, 5)
    labels = np.arange(40) % 4
    for split in ("train", "t10k"):
        names["write_idx"](tmp_path, split, images, labels)
    dataset = load_dataset("idx", validation=0.2, train_fraction=1.0, path=tmp_path, split_seed=0)
    assert dataset.image_shape == (6, 5)
    assert (len(dataset.train), len(dataset.validation)) == (32, 8)
    assert {image.tobytes() for image in dataset.train.images} <= {i.tobytes() for i in images}


def test_the_experiment_explained_is_the_one_shipped():
    """The guide's YAML means what experiments/fashion_mnist.yaml means."""
    shipped = experiment.load(ROOT / "experiments" / "fashion_mnist.yaml")
    example = blocks("yaml", read("how-to/write-an-experiment.md"))[0]
    assert experiment.parse(example, str(ROOT / "experiments" / "guide.yaml")) == shipped


def test_the_changelog_keeps_its_form():
    """What is not released yet comes first, under the headings of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert releases[0] == "Unreleased"
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Sphinx finds every page, link, picture and docstring that the pages name."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "--keep-going"]
    done = subprocess.run(
        [*command, "--builder", "html", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "write_idx" in (tmp_path / "how-to/use-your-own-images.html").read_text("utf-8")
