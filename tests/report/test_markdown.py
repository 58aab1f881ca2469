"""The report as Markdown, with pictures beside it."""

import dataclasses

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from report_runs import confirmation, path_points, remedies, write_run

from tune_softmax.errors import StorageError
from tune_softmax.report.findings import sentences
from tune_softmax.report.inputs import gather
from tune_softmax.report.markdown import save_markdown
from tune_softmax.report.sections import sections


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return everything that a report can be made from."""
    return dataclasses.replace(
        gather(write_run(tmp_path_factory.mktemp("runs") / "run")),
        path=path_points(),
        remedies=remedies(),
        confirmation=confirmation(),
    )


@pytest.fixture(scope="module")
def written(inputs, tmp_path_factory):
    """Return the path of a report that was written."""
    path = tmp_path_factory.mktemp("markdown") / "report.md"
    save_markdown(inputs, sections(inputs), path)
    return path


def test_every_picture_is_beside_it(written):
    """Each is named with a text of its own, and there is no other."""
    tokens = MarkdownIt().parse(written.read_text(encoding="utf-8"))
    pictures = [part for token in tokens for part in token.children or () if part.type == "image"]
    names = {picture.attrs["src"] for picture in pictures}
    assert names == {f"report-{name}.png" for name in ("curves", "gap", "path", "remedies")}
    assert names == {path.name for path in written.parent.glob("*.png")}
    assert all(len(picture.content) > 20 for picture in pictures)
    for name in names:
        with Image.open(written.parent / name) as picture:
            assert picture.width > 800
            assert len(picture.convert("RGB").getcolors(2**20)) > 10


def test_it_reads_as_the_page_does(written, inputs):
    """The sentences, word for word, and the tables' cells."""
    text = written.read_text(encoding="utf-8")
    html = MarkdownIt().enable("table").render(text)
    for sentence in sentences(inputs):
        assert sentence.replace("&", "&amp;").replace(">", "&gt;") in html
    assert html.count("<table>") >= 4
    assert "not settled" in html


def test_nothing_of_a_run_becomes_markup(tmp_path):
    """Names, commands and cells are shown as they are."""
    hostile = "<img src=x onerror=alert(1)> `x` [link](http://elsewhere) | a\n# heading"
    inputs = gather(write_run(tmp_path / "run", 3))
    inputs = dataclasses.replace(
        inputs,
        environment={"processor": hostile, "command": ["x", hostile]},
        openings=((hostile, hostile),),
    )
    path = tmp_path / "report.md"
    save_markdown(inputs, sections(inputs), path)
    html = MarkdownIt().enable("table").render(path.read_text(encoding="utf-8"))
    assert "<img src=x" not in html
    assert "<a href" not in html
    assert html.count("<h1>") == 1
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 4


def test_a_search_without_results_is_text_alone(tmp_path):
    """There is nothing to draw yet."""
    inputs = gather(write_run(tmp_path / "run", 0))
    path = tmp_path / "report.md"
    save_markdown(inputs, sections(inputs), path)
    assert "No trial has a result yet" in path.read_text(encoding="utf-8")
    assert list(tmp_path.glob("*.png")) == []


def test_a_place_that_cannot_be_written_is_an_error(inputs, tmp_path):
    """The message names it, and the way out."""
    with pytest.raises(StorageError, match="name another place by --output"):
        save_markdown(inputs, [], tmp_path / "missing" / "report.md")
