"""An evaluation of the winner, as it is read from a file that a stranger may have written."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from report_runs import CLASSES, evaluation

from tune_softmax.errors import DamagedRunError
from tune_softmax.report.evaluation import read_evaluation


@pytest.fixture
def read(tmp_path):
    """Return the function that writes a value as JSON and reads it as an evaluation."""

    def call(content):
        path = tmp_path / "evaluation.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_evaluation(path)

    return call


def test_everything_is_read(read):
    """Numbers, classes, both matrices, and the images with the names of their classes."""
    found = read(evaluation())
    assert (found.loss, found.accuracy) == (0.4, 0.91)
    assert found.class_names == tuple(CLASSES)
    assert found.confusion.shape == (10, 10)
    assert found.baseline_confusion[6, 0] == 92
    (image,) = found.wrong
    assert (image.label, image.predicted, image.probability) == ("class 6", "class 0", 0.987)


def test_rows_of_bytes_become_a_picture(read):
    """Pillow reads the very values from the PNG."""
    (image,) = read(evaluation()).wrong
    picture = Image.open(io.BytesIO(base64.b64decode(image.png)))
    np.testing.assert_array_equal(np.asarray(picture), [[0, 128], [255, 7]])


def test_a_picture_may_come_as_png(read):
    """It stays what it is."""
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 9).save(buffer, "png")
    content = evaluation()
    content["wrong"][0]["image"] = base64.b64encode(buffer.getvalue()).decode()
    (image,) = read(content).wrong
    assert base64.b64decode(image.png) == buffer.getvalue()


def test_what_is_optional_may_be_missing(read, tmp_path):
    """Baseline and images, and the whole file."""
    content = evaluation(with_baseline=False)
    del content["wrong"]
    found = read(content)
    assert found.baseline_confusion is None
    assert found.wrong == ()
    assert read_evaluation(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"loss": "much"}, "could not convert"),
        ({"class_names": CLASSES[:9]}, "9 rows of 9 counts, got int64 of shape \\(10, 10\\)"),
        ({"confusion": [[1.5] * 10] * 10}, "10 rows of 10 counts, got float64"),
        ({"confusion": [[-1] * 10] * 10}, "10 rows of 10 counts"),
        ({"confusion": [[1], [1, 2]]}, "inhomogeneous"),
        ({"baseline_confusion": [[1]]}, "10 rows of 10 counts"),
        ({"wrong": [{"image": [[256]], "label": 0, "predicted": 1}]}, "rows of bytes"),
        ({"wrong": [{"image": [1], "label": 0, "predicted": 1}]}, "rows of bytes"),
        ({"wrong": [{"image": "<svg onload=x>", "label": 0, "predicted": 1}]}, "in base64"),
        ({"wrong": [{"image": "R0lGODlh", "label": 0, "predicted": 1}]}, "another file"),
        ({"wrong": [{"image": [[0]], "label": 10, "predicted": 1}]}, "out of range"),
        ({"wrong": [{"image": [[0]], "label": 0, "predicted": 1}]}, "probability"),
        (
            {"wrong": [{"image": [[7 * i * j % 251 for i in range(200)] for j in range(200)]}]},
            "label",
        ),
    ],
)
def test_what_is_no_evaluation_is_refused(read, change, expected):
    """The message names the file, the fault, and what to do."""
    with pytest.raises(DamagedRunError, match=expected) as caught:
        read(evaluation() | change)
    assert "evaluation.json: not an evaluation" in str(caught.value)
    assert "restore the file from a copy" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"text"', "{}"])
def test_other_json_is_refused(read, text):
    """Whatever its shape."""
    with pytest.raises(DamagedRunError, match="not an evaluation"):
        read(text)


def test_a_picture_may_not_be_huge(read):
    """So that a page stays small."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300)).tolist()
    content = evaluation()
    content["wrong"][0]["image"] = noise
    with pytest.raises(DamagedRunError, match="at most 20000 bytes"):
        read(content)
