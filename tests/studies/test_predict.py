"""The winner as a model, and what it takes PNG files for."""

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import finished
from typer.testing import CliRunner

from tune_softmax.cli import app
from tune_softmax.data.dataset import load_test
from tune_softmax.errors import DamagedRunError, DataError
from tune_softmax.run import results
from tune_softmax.studies import winner
from tune_softmax.studies.predict import load_model, predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a saved winner."""
    folder = finished(tmp_path_factory.mktemp("predicted") / "run")
    winner.save(results.load(folder.path), 3, seed=5, data_dir=None)
    return folder


@pytest.fixture(scope="module")
def digits():
    """The test images as bytes, (N, 8, 8), of which 255 is white."""
    return (load_test("digits").images * (255 / 16)).round().astype(np.uint8)


def test_the_model_is_ready(run):
    """It is in evaluation mode and takes images of its shape."""
    model = load_model(run.path)
    assert not model.training
    assert model.image_shape == (8, 8)
    assert model(torch.zeros(3, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_a_picture_is_taken_for_what_the_model_says(run, digits, tmp_path, mode):
    """The class and its probability are the model's own for the same grey values."""
    path = tmp_path / "digit.png"
    picture = Image.fromarray(digits[0]).convert(mode)
    picture.save(path)
    (found,) = predict(run.path, [path])
    grey = torch.tensor(np.asarray(picture.convert("L"), dtype=np.float32)) / 255
    with torch.no_grad():
        expected = load_model(run.path)(grey[None]).softmax(1)[0]
    assert found.class_name == str(int(expected.argmax()))
    assert found.probability == pytest.approx(float(expected.max()), abs=1e-6)
    assert found.size is None


def test_sixteen_bits_a_pixel_mean_the_same(run, digits, tmp_path):
    """A deep grey picture is scaled by its own white."""
    deep, flat = tmp_path / "deep.png", tmp_path / "flat.png"
    Image.fromarray(digits[1].astype(np.uint16) * 257).save(deep)
    Image.fromarray(digits[1]).save(flat)
    one, other = predict(run.path, [deep, flat])
    assert one.class_name == other.class_name
    assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_a_larger_picture_is_resized(run, digits, tmp_path):
    """Four times the size gives the same answer, and says that it was resized."""
    path = tmp_path / "large.png"
    Image.fromarray(digits[2].repeat(4, 0).repeat(4, 1)).save(path)
    small = tmp_path / "small.png"
    Image.fromarray(digits[2]).save(small)
    large, same = predict(run.path, [path, small])
    assert large.size == (32, 32)
    assert large.class_name == same.class_name
    assert large.probability == pytest.approx(same.probability, abs=1e-5)


def test_the_command_prints_a_line_for_each_picture(run, digits, tmp_path):
    """File, class, probability, and a note where it was resized."""
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    Image.fromarray(digits[0]).save(paths[0])
    Image.fromarray(digits[1].repeat(2, 0)).save(paths[1])
    done = CliRunner().invoke(app, ["predict", str(run.path), *map(str, paths)])
    assert done.exit_code == 0
    first, second = done.output.splitlines()
    assert first.startswith(f"{paths[0]}  ")
    assert second.endswith("(resized from 8 x 16)")


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", b"\x89PNG\r\n\x1a\nand then nothing"])
def test_what_is_no_picture_is_refused(run, tmp_path, content):
    """The message names the file."""
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: must be a PNG file that can be read"):
        predict(run.path, [path])


@pytest.mark.parametrize("name", ["configuration", "weights"])
def test_a_damaged_winner_is_refused(run, name):
    """A file that cannot be read, or fits no model, is named with its folder."""
    path = getattr(run.best, name)
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    try:
        with pytest.raises(DamagedRunError, match="best: cannot be read"):
            load_model(run.path)
    finally:
        path.write_bytes(before)
