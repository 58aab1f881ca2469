"""The winner as a model, and how it classifies picture files."""

import json

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
    """File, the three most probable classes, and notes below."""
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    Image.fromarray(digits[0]).save(paths[0])
    Image.fromarray(digits[1].repeat(2, 0)).save(paths[1])
    done = CliRunner().invoke(app, ["predict", str(run.path), *map(str, paths)])
    assert done.exit_code == 0
    first, second, note, *_ = done.output.splitlines()
    found = predict(run.path, paths)[0]
    assert first.startswith(f"{paths[0]}  {found.class_name}  {found.probability:.4f}  (then ")
    assert first.count("  0.") == 3
    assert second.startswith(f"{paths[1]}  ")
    assert note == "  resized from 8 x 16"


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", b"\x89PNG\r\n\x1a\nand then nothing"])
def test_what_is_no_picture_is_refused(run, tmp_path, content):
    """The message names the file."""
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"broken\.png: must be a PNG or JPEG file that can be read"
    ):
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


def saved(path, pixels, **options):
    """Write a picture and return its path."""
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_bad_file_does_not_silence_the_others(run, digits, tmp_path):
    """The others are classified, the bad one is named on stderr, and the exit code says so."""
    good = saved(tmp_path / "good.png", digits[0])
    bad, missing = tmp_path / "bad.png", tmp_path / "missing.png"
    bad.write_bytes(b"no picture")
    arguments = ["predict", str(run.path), str(bad), str(good), str(missing)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stdout.startswith(f"{good}  ")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [str(bad), str(missing)]
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--format", "json"]).stdout)
    assert rows[0]["path"] == str(good)
    assert len(rows[0]["ranked"]) == 3
    assert rows[0]["class"] == rows[0]["ranked"][0]["class"]
    assert rows[0]["probability"] >= rows[0]["ranked"][1]["probability"]
    assert [set(row) for row in rows[1:]] == [{"path", "error"}] * 2


def test_an_inverted_picture_is_swapped_and_said(run, digits, tmp_path):
    """Dark on light, where the training images are light on dark; unless it is told not to."""
    plain = [saved(tmp_path / f"plain{n}.png", image) for n, image in enumerate(digits[:40])]
    dark = [saved(tmp_path / f"dark{n}.png", 255 - image) for n, image in enumerate(digits[:40])]
    for one, other in zip(predict(run.path, plain), predict(run.path, dark), strict=True):
        assert one.notes == ()
        assert one.class_name == other.class_name
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        assert "light and dark were swapped" in other.notes[0]
    for found in predict(run.path, dark, invert=False):
        assert "unlike the training images, so do not trust the answer: border" in found.notes[0]
    for one, other in zip(
        predict(run.path, plain), predict(run.path, dark, invert=True), strict=True
    ):
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        assert other.notes == ()


def test_a_picture_keeps_its_proportions(run, digits, tmp_path):
    """One on a wide ground is classified as the same in the middle, not squeezed."""
    wide = np.zeros((80, 160), dtype=np.uint8)
    wide[:, 40:120] = digits[3].repeat(10, 0).repeat(10, 1)
    narrow = np.zeros((16, 16), dtype=np.uint8)
    narrow[4:12, 4:12] = digits[3]
    paths = [saved(tmp_path / "wide.png", wide), saved(tmp_path / "narrow.png", narrow)]
    one, other = predict(run.path, paths)
    assert one.size == (160, 80)
    assert one.class_name == other.class_name
    assert one.probability == pytest.approx(other.probability, abs=0.02)


def test_a_photograph_is_read(run, digits, tmp_path):
    """JPEG, in colour, turned by its camera."""
    path, turned = tmp_path / "digit.jpg", tmp_path / "turned.jpg"
    large = digits[0].repeat(16, 0).repeat(16, 1)
    picture = Image.fromarray(large).convert("RGB")
    picture.save(path, quality=95)
    rotation = Image.Exif()
    rotation[0x0112] = 6  # to be turned by a quarter
    picture.rotate(90).save(turned, quality=95, exif=rotation)
    plain, *others = predict(run.path, [saved(tmp_path / "digit.png", digits[0]), path, turned])
    for other in others:
        assert other.class_name == plain.class_name
        assert other.probability == pytest.approx(plain.probability, abs=0.05)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize("is_dark", [False, True])
def test_transparent_parts_have_a_ground(run, digits, tmp_path, mode, is_dark):
    """A light object is shown on black; a dark one on white, and then swapped."""
    ink = np.full((8, 8), 0 if is_dark else 255, dtype=np.uint8)
    alpha = np.where(digits[0] > 127, 255, 0).astype(np.uint8)
    picture = Image.merge("LA", [Image.fromarray(ink), Image.fromarray(alpha)])
    path = tmp_path / "digit.png"
    (picture if mode == "LA" else picture.convert("RGBA")).save(path)
    if mode == "P":
        flat = Image.fromarray((alpha // 255).astype(np.uint8), "P")
        flat.putpalette([9, 9, 9, *[0 if is_dark else 255] * 3])
        flat.save(path, transparency=0)
    expected = saved(tmp_path / "plain.png", alpha)
    one, other = predict(run.path, [path, expected])
    assert one.class_name == other.class_name
    assert one.probability == pytest.approx(other.probability, abs=0.02)
    assert f"shown on {'white' if is_dark else 'black'}" in one.notes[0]
    assert any("swapped" in note for note in one.notes) == is_dark


def test_noise_is_said_to_be_unlike(run, tmp_path):
    """A flat grey picture has no contrast, and the note gives the numbers."""
    path = saved(tmp_path / "flat.png", np.full((8, 8), 128, dtype=np.uint8))
    (found,) = predict(run.path, [path], invert=False)
    assert "unlike the training images" in found.notes[0]
    assert "contrast 0.00 (theirs: 0." in found.notes[0]


def test_a_winner_without_measures_is_one(run, digits, tmp_path):
    """One that an earlier release saved classifies as it did, and says nothing of the border."""
    before = run.best.configuration.read_text(encoding="utf-8")
    content = json.loads(before)
    del content["training_images"]
    run.best.configuration.write_text(json.dumps(content), encoding="utf-8")
    try:
        (found,) = predict(run.path, [saved(tmp_path / "dark.png", 255 - digits[0])])
    finally:
        run.best.configuration.write_text(before, encoding="utf-8")
    assert found.notes == ()


def test_the_run_comes_first(tmp_path, digits):
    """A picture in its place is not asked for a confirmation."""
    path = saved(tmp_path / "digit.png", digits[0])
    done = CliRunner().invoke(app, ["predict", str(path), str(tmp_path)])
    assert "is not a run folder, which comes first" in str(done.exception)
