"""The notebook of the textbook's section: it runs anywhere, and what is saved in it is sound."""

import json
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from tune_softmax.run import results
from tune_softmax.studies import remedies

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "softmax_concise.ipynb"
MAX_BYTES = 1_000_000  # a repository page shows no larger one well
NOWHERE = "http://127.0.0.1:9"  # nobody listens there

FACTS = """
import json
fall = interval.mean
facts = {"name": name, "losses": dict(last["validation_loss"]), "fall": fall}
print(json.dumps(facts | {"falls": bool(interval.high < 0)}))
"""


def read():
    """Return the notebook as it is in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(folder, **environment):
    """Run the notebook in a folder on a real kernel, and return what a last cell says of it."""
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | environment)  # an error in a cell is raised
    said = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    trouble = "".join(output["text"] for output in said if output.get("name") == "stderr")
    assert [line for line in trouble.splitlines() if not line.startswith("downloading ")] == []
    return json.loads(said[-1]["text"]) | {"prose": prose_of(notebook)}


def prose_of(notebook):
    """Return the sentences that cells have made from what they computed, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    return [data["text/markdown"] for data in shown if "text/markdown" in data]


# --- As it is saved -----------------------------------------------------------------------------


def outputs():
    """Return every output saved in the notebook."""
    return [output for cell in read().cells for output in cell.get("outputs", [])]


def test_it_is_sound_and_small():
    """It keeps the format, and a repository page can show it."""
    nbformat.validate(read())
    assert NOTEBOOK.stat().st_size < MAX_BYTES


def test_every_cell_was_run_once_in_order():
    """The outputs are those of one run from top to bottom."""
    counts = [cell.execution_count for cell in read().cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_are_figures_tables_and_text_without_trouble():
    """Figures are pictures, for a repository page runs no script; nothing warned or failed."""
    kinds = [output.output_type for output in outputs()]
    assert set(kinds) <= {"display_data", "execute_result", "stream"}
    assert not [output.text for output in outputs() if output.get("name") == "stderr"]
    data = [output.data for output in outputs() if "data" in output]
    assert sum("image/png" in each for each in data) >= 7
    assert sum("<table" in each.get("text/html", "") for each in data) >= 4
    assert not any("<script" in each.get("text/html", "") for each in data)


def test_it_names_no_machine():
    """No path from the root of a file system is in it."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|tmp|usr|work|Users)/", text) == []


def test_it_shows_the_real_images():
    """What is saved is of Fashion-MNIST, and near the textbook's training loss."""
    text = "".join(output.get("text", "") for output in outputs())
    assert text.startswith("fashion-mnist: 50,000 training and 10,000 validation images")
    shown = "".join(output.data.get("text/html", "") for output in outputs() if "data" in output)
    loss = re.findall(r"After epoch 10: training loss (0\.\d+)", shown)[0]
    assert 0.43 <= float(loss) <= 0.47


def test_no_text_claims_a_measured_number():
    """Prose that is written holds what was asked; what was measured is printed by a cell."""
    for cell in read().cells:
        if cell.cell_type == "markdown":
            assert re.findall(r"\d\.\d{3,}", cell.source) == []


def test_what_it_says_is_what_it_shows():
    """The saved sentences have the numbers of the saved tables beside them."""
    html = "".join(output.data.get("text/html", "") for output in outputs() if "data" in output)
    prose = prose_of(read())
    assert len(prose) >= 7
    loss = float(re.findall(r"After epoch 10: training loss (0\.\d+)", html)[0])
    assert f"The training loss ends at {loss:.3f}." in prose[0]
    accuracies = re.findall(r"test images: loss 0\.\d+, accuracy (0\.\d+)", html)
    (compared,) = (text for text in prose if "on the test images from" in text)
    assert f"from {float(accuracies[0]):.3f} to " in compared


def check_prose(facts, folder):
    """Compare the sentences of a run with what its folders hold."""
    best = results.load(folder / "runs" / "grid").best()
    (chosen,) = (text for text in facts["prose"] if "The best trial of the grid" in text)
    assert f"batch size {best.config.batch_size} and " in chosen
    assert f"learning rate {best.config.learning_rate:g}:" in chosen
    assert f"over {best.span} is {best.value:.4f}" in chosen
    first = pd.read_csv(folder / "runs" / "textbook-train" / "curves.csv")
    second = pd.read_csv(folder / "runs" / "grid-train" / "curves.csv")
    ends = [curves["validation_loss"].iloc[-1] for curves in (first, second)]
    (compared,) = (text for text in facts["prose"] if "on the test images from" in text)
    assert f"the validation loss goes from {ends[0]:.3f} to {ends[1]:.3f}," in compared
    assert ("accuracy falls" in facts["prose"][-1]) == facts["falls"]


# --- As it runs ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_it_runs_without_data_and_network(tmp_path):
    """On the built-in digits every cell does its work, and its runs are whole."""
    facts = executed(
        tmp_path,
        TUNE_SOFTMAX_DATA_DIR=str(tmp_path / "none"),
        **{f"{scheme}_proxy": NOWHERE for scheme in ("http", "https")},
    )
    assert facts["name"] == "digits"
    assert len(results.load(tmp_path / "runs" / "grid").trials) == 20
    assert remedies.load(tmp_path / "runs" / "cure") is not None
    check_prose(facts, tmp_path)


@pytest.mark.slow
@pytest.mark.ray
def test_it_shows_what_the_textbook_says(tmp_path, fashion_mnist_dir):
    """The textbook's loss, a better configuration, overfitting and its cure."""
    facts = executed(tmp_path, TUNE_SOFTMAX_DATA_DIR=str(fashion_mnist_dir))
    assert facts["name"] == "fashion-mnist"
    curves = pd.read_csv(tmp_path / "runs" / "textbook-train" / "curves.csv")
    assert 0.43 <= curves["train_loss"].iloc[-1] <= 0.47
    best = results.load(tmp_path / "runs" / "grid").best()
    assert best.value < curves["validation_loss"].iloc[-1]
    losses = facts["losses"]
    assert min(losses, key=losses.get) != "0"
    assert min(losses.values()) < losses["0"] - 0.02
    assert facts["fall"] < 0
    cure = remedies.load(tmp_path / "runs" / "cure")
    assert cure.overfitting.is_overfitting
    verdicts = cure.effects.set_index("remedy")["verdict"]
    assert verdicts["weight_decay"] == verdicts["early_stopping"] == "better"
    check_prose(facts, tmp_path)
