"""Datasets: what is read, how it is split, and what is refused."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.data.dataset import (
    DATASETS,
    _read_digits,
    _shares,
    _stratified_sample,
    default_data_dir,
    load_dataset,
    load_for,
    load_test,
    load_test_for,
)
from tune_softmax.errors import DataError
from tune_softmax.experiment.experiment import parse

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def _images(num_images, height=4, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_images, height, width), dtype=np.uint8)


def _labels(*labels):
    return np.array(labels, np.uint8)


@pytest.fixture
def idx_folder(tmp_path, write_idx):
    """Return a folder of 30 training and 6 test images, 4 x 5 pixels, 3 classes."""
    write_idx(tmp_path / f"{TRAIN_IMAGES}.gz", _images(30))
    write_idx(tmp_path / TRAIN_LABELS, np.arange(30, dtype=np.uint8) % 3)
    write_idx(tmp_path / TEST_IMAGES, _images(6, seed=1))
    write_idx(tmp_path / f"{TEST_LABELS}.gz", np.arange(6, dtype=np.uint8) % 3)
    return tmp_path


def _rows(images):
    return {image.tobytes() for image in images}


# What is read


def test_the_real_fashion_mnist_is_split_evenly(fashion_mnist_dir):
    """50,000 and 10,000 images, each class equally often; the same split everywhere."""
    dataset = load_dataset("fashion-mnist", data_dir=fashion_mnist_dir)
    assert (len(dataset.train), len(dataset.validation)) == (50_000, 10_000)
    assert dataset.image_shape == (28, 28)
    assert (dataset.num_features, dataset.num_classes, dataset.pixel_max) == (784, 10, 255)
    assert dataset.class_names[0] == "T-shirt/top"
    for split, count in ((dataset.train, 5000), (dataset.validation, 1000)):
        assert np.bincount(split.labels).tolist() == [count] * 10
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
    assert dataset.checksum == "8734a2ecdeeb6ba7d9064510404cef59017718f117cb8bd3b9071ffc16eb670b"


def test_the_real_test_set_is_apart(fashion_mnist_dir, monkeypatch):
    """10,000 images, found through the environment as well."""
    monkeypatch.setenv("TUNE_SOFTMAX_DATA_DIR", str(fashion_mnist_dir))
    test = load_test("fashion-mnist")
    assert test.images.shape == (10_000, 28, 28)
    assert np.bincount(test.labels).tolist() == [1000] * 10


def test_digits_need_no_files():
    """Train, validation and test are scikit-learn's images, each once."""
    from sklearn.datasets import load_digits

    dataset, test = load_dataset("digits"), load_test("digits")
    assert (len(dataset.train), len(dataset.validation), len(test)) == (1198, 240, 359)
    assert (dataset.image_shape, dataset.pixel_max) == ((8, 8), 16)
    assert dataset.class_names == tuple("0123456789")
    parts = [dataset.train.images, dataset.validation.images, test.images]
    everything = sorted(image.tobytes() for part in parts for image in part)
    assert everything == sorted(image.tobytes() for image in load_digits().images.astype(np.uint8))
    assert dataset.checksum == "824609dc70a00dce7a3368ccd6e01593d0704b3b19823fdb7bee6e0c7ca6df64"


@pytest.mark.parametrize("is_there", [True, False])
def test_digits_are_what_scikit_learn_reads(is_there, monkeypatch):
    """Read from its file, or by itself where there is no such file."""
    from sklearn.datasets import load_digits

    if not is_there:
        monkeypatch.setattr(
            "tune_softmax.data.dataset.importlib.util.find_spec", lambda _name: None
        )
    expected = load_digits()
    rows = _read_digits()
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[:, :-1], expected.data)
    np.testing.assert_array_equal(rows[:, -1], expected.target)


def test_a_split_seed_moves_images_between_training_and_validation():
    """The test set of digits is the same for every split."""
    first, second = load_dataset("digits"), load_dataset("digits", split_seed=1)
    assert first.checksum != second.checksum
    seen = _rows(first.train.images) | _rows(first.validation.images)
    assert seen == _rows(second.train.images) | _rows(second.validation.images)


def test_a_folder_of_idx_files_is_read_packed_or_not(idx_folder):
    """Shape and classes come from the files; both sets keep the order of the source."""
    dataset = load_dataset("idx", path=idx_folder, validation=6)
    assert dataset.image_shape == (4, 5)
    assert dataset.class_names == ("0", "1", "2")
    source = [image.tobytes() for image in _images(30)]
    for split, size in ((dataset.train, 24), (dataset.validation, 6)):
        places = [source.index(image.tobytes()) for image in split.images]
        assert len(split) == size
        assert places == sorted(places)
        assert split.labels.tolist() == [place % 3 for place in places]
    np.testing.assert_array_equal(
        load_test("idx", path=str(idx_folder)).images, _images(6, seed=1)
    )


def test_an_experiment_names_its_dataset(idx_folder, tmp_path, write_idx):
    """Every key of the section `dataset` reaches the loader."""
    write_idx(tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte", _images(30, 28, 28))
    write_idx(
        tmp_path / "FashionMNIST/raw/train-labels-idx1-ubyte", np.arange(30, dtype="u1") % 10
    )
    space = "space: {batch_size: 1, num_epochs: 1, learning_rate: 1}"
    keys = "validation: 9, train_fraction: 0.5, split_seed: 3"
    section = parse(f"dataset: {{name: idx, path: {idx_folder}, {keys}}}\n{space}").dataset
    expected = load_dataset("idx", path=idx_folder, validation=9, train_fraction=0.5, split_seed=3)
    assert load_for(section).checksum == expected.checksum
    np.testing.assert_array_equal(load_test_for(section).images, _images(6, seed=1))

    section = parse(f"dataset: {{name: fashion-mnist, validation: 10}}\n{space}").dataset
    assert len(load_for(section, tmp_path).train) == 20


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_search_never_opens_the_test_set(idx_folder, damage):
    """Training and validation load whatever has become of the test files."""
    for path in (idx_folder / TEST_IMAGES, idx_folder / f"{TEST_LABELS}.gz"):
        path.unlink()
        if damage == "garbage":
            path.write_bytes(b"garbage")
    assert len(load_dataset("idx", path=idx_folder).train) == 25
    with pytest.raises(DataError):
        load_test("idx", path=idx_folder)


def test_qmnist_labels_are_the_first_column(tmp_path, write_idx):
    """QMNIST's label files hold eight numbers an image, and its test set has its own names."""
    raw = tmp_path / "QMNIST/raw"
    details = np.full((20, 8), 9, np.int32)
    details[:, 0] = np.arange(20) % 10
    for part in ("train", "test"):
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte", _images(20, 28, 28))
        write_idx(raw / f"qmnist-{part}-labels-idx2-int", details)
    dataset = load_dataset("qmnist", data_dir=tmp_path, validation=10)
    assert sorted(dataset.train.labels) == sorted(dataset.validation.labels) == [*range(10)]
    assert load_test("qmnist", data_dir=tmp_path).labels.tolist() == [*range(10), *range(10)]


def test_emnist_is_shown_upright_and_counted_from_zero(tmp_path, write_idx):
    """Its files hold images mirrored at the diagonal, and letters from 1 to 26."""
    raw = tmp_path / "EMNIST/raw"
    upright = _images(52, 28, 28)
    for part in ("train", "test"):
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1))
        labels = np.arange(52, dtype=np.uint8) % 26 + 1
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", labels)
    test = load_test("emnist-letters", data_dir=tmp_path)
    np.testing.assert_array_equal(test.images, upright)
    assert test.images.flags.c_contiguous
    assert test.labels.tolist() == [*range(26), *range(26)]
    dataset = load_dataset("emnist-letters", data_dir=tmp_path, validation=26)
    assert dataset.class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert _rows(dataset.train.images) < _rows(upright)


def test_the_checksum_tells_whether_the_data_changed(idx_folder, write_idx):
    """It is the same for the same data, and another for one other pixel or label."""
    before = load_dataset("idx", path=idx_folder).checksum
    assert load_dataset("idx", path=idx_folder).checksum == before
    images = _images(30)
    images[7, 1, 2] ^= 1
    write_idx(idx_folder / f"{TRAIN_IMAGES}.gz", images)
    assert load_dataset("idx", path=idx_folder).checksum != before


def test_the_data_folder_comes_from_the_environment(monkeypatch):
    """TUNE_SOFTMAX_DATA_DIR, its ~ undone, else the cache folder of the user."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("TUNE_SOFTMAX_DATA_DIR", "~/data")
    assert str(default_data_dir()) == "/home/someone/data"
    monkeypatch.setenv("TUNE_SOFTMAX_DATA_DIR", "")
    assert str(default_data_dir()) == "/home/someone/.cache/tune_softmax"
    monkeypatch.delenv("TUNE_SOFTMAX_DATA_DIR")
    assert str(default_data_dir()) == "/home/someone/.cache/tune_softmax"
    monkeypatch.setenv("TUNE_SOFTMAX_DATA_DIR", "~no-such-user/data")
    with pytest.raises(DataError, match="has no meaning here"):
        default_data_dir()


def test_the_folder_offers_what_it_loads():
    """`data.load_dataset` and the like are there without the module's name, and in `dir`."""
    from tune_softmax import data

    assert data.load_dataset is load_dataset
    assert {"load_dataset", "Dataset"} <= {*dir(data)}
    with pytest.raises(AttributeError, match="has no attribute 'load'"):
        _ = data.load


def test_a_seed_needs_no_numpy():
    """A worker derives seeds before it reads anything."""
    code = "import sys, tune_softmax.data.seeding; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_loads_nothing_heavy():
    """The driver starts quickly because torch, torchvision and scikit-learn wait."""
    heavy = ("torch", "torchvision", "sklearn", "ray", "pandas", "filelock")
    code = (
        f"import sys, tune_softmax.data.dataset; print([m for m in {heavy} if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout.decode().strip() == "[]"


def test_a_dataset_may_have_more_than_256_classes(tmp_path, write_idx):
    """Labels of 32 bits count as many classes as there are."""
    labels = np.repeat(np.arange(300, dtype=np.int32), 2)
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", _images(600, 1, 1))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    dataset = load_dataset("idx", path=tmp_path, validation=100)
    assert (dataset.num_classes, dataset.class_names[299]) == (300, "299")
    assert load_test("idx", path=tmp_path).labels.tolist() == labels.tolist()


# How it is split

COUNTS = st.lists(st.integers(1, 20), min_size=2, max_size=6)


@st.composite
def _sampling(draw):
    counts = draw(COUNTS)
    labels = draw(st.permutations(np.repeat(np.arange(len(counts)), counts).tolist()))
    sizes = sorted(draw(st.tuples(*[st.integers(0, len(labels))] * 2)))
    return np.array(labels, np.int64), sizes, draw(st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(_sampling())
def test_a_sample_is_exact_stratified_and_nested(sampling):
    """Its size is exact, a class is within one image of its share, the smaller is inside."""
    labels, (small, large), seed = sampling
    chosen = _stratified_sample(labels, large, seed)
    assert len(np.unique(chosen)) == len(chosen) == large
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels)
    shares = np.bincount(labels[chosen], minlength=len(counts))
    assert (abs(shares * len(labels) - large * counts) < len(labels)).all()
    assert set(_stratified_sample(labels, small, seed)) <= set(chosen)
    np.testing.assert_array_equal(_stratified_sample(labels, large, seed), chosen)


@settings(deadline=None)
@given(COUNTS)
def test_no_class_loses_an_image_when_the_sample_grows(counts):
    """From one size to the next, exactly one class gains exactly one image."""
    before = [0] * len(counts)
    for size in range(1, sum(counts) + 1):
        after = _shares(counts, size)
        assert sorted(new - old for new, old in zip(after, before, strict=True))[-2:] == [0, 1]
        assert sum(after) == size
        before = after
    assert before == counts


@pytest.mark.parametrize("seed", [0, 1])
def test_a_smaller_training_set_is_part_of_a_larger(seed):
    """The validation set is the same for every fraction; no image is in both."""
    whole = load_dataset("digits", split_seed=seed)
    larger = _rows(whole.train.images)
    validation = _rows(whole.validation.images)
    for fraction in (0.5, 0.1, 0.01, 1e-9):
        dataset = load_dataset("digits", train_fraction=fraction, split_seed=seed)
        np.testing.assert_array_equal(dataset.validation.images, whole.validation.images)
        rows = _rows(dataset.train.images)
        assert rows <= larger
        assert not rows & validation
        assert len(dataset.train) == max(round(fraction * 1198), 10)
        assert len(np.unique(dataset.train.labels)) == 10
        larger = rows


def test_the_sample_is_the_same_on_every_platform():
    """A few indices, written down once."""
    labels = np.arange(40) % 4
    assert _stratified_sample(labels, 6, seed=7).tolist() == [6, 21, 23, 24, 32, 37]


@pytest.mark.parametrize(
    ("validation", "size"),
    [(1, 1), (27, 27), (0.5, 15), (0.1, 3), (np.int64(4), 4), (np.float64(0.2), 6)],
)
def test_the_validation_set_has_the_size_asked_for(idx_folder, validation, size):
    """An int is a number of images, a float a fraction."""
    dataset = load_dataset("idx", path=idx_folder, validation=validation)
    assert (len(dataset.validation), len(dataset.train)) == (size, 30 - size)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 0}, "validation must leave images on both sides, 1 to 29 of 30, but 0"),
        ({"validation": -1}, "but -1 asks for -1; choose another number"),
        ({"validation": 30}, "but 30 asks for 30"),
        ({"validation": 28}, "28 leaves none of class '"),
        ({"validation": 0.0}, "validation must be a fraction above 0 and below 1 (or an int"),
        ({"validation": 1.0}, "but is 1.0"),
        ({"validation": float("nan")}, "but is nan"),
        ({"validation": True}, "but is True"),
        ({"validation": "6"}, "but is '6'"),
        ({"validation": 0.01}, "but 0.01 asks for 0"),
        ({"validation": 0.99}, "but 0.99 asks for 30"),
        ({"train_fraction": 0}, "train_fraction must be a fraction above 0 and up to 1, but is 0"),
        ({"train_fraction": 1.5}, "but is 1.5"),
        ({"train_fraction": float("nan")}, "but is nan"),
        ({"train_fraction": None}, "but is None"),
        ({"split_seed": -1}, "split_seed must be an int, 0 or more, but is -1"),
        ({"split_seed": 1.0}, "but is 1.0"),
        ({"path": None}, "dataset idx needs a path: the folder that holds train-images"),
    ],
)
def test_an_argument_out_of_range_is_refused(idx_folder, arguments, message):
    """The message names the argument, its range and the value."""
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("idx", **({"path": idx_folder} | arguments))


def test_an_unknown_dataset_is_refused_with_the_near_name():
    """The message lists what there is."""
    for load in (load_dataset, load_test):
        with pytest.raises(DataError, match="did you mean fashion-mnist") as caught:
            load("fashion_mnist")
        assert str(caught.value).endswith(f"known: {', '.join(DATASETS)}")
        with pytest.raises(DataError, match="dataset digits takes no path, but got 'x'"):
            load("digits", path="x")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TRAIN_LABELS: _labels(0, 1)}, "must hold a label for each of the 30 images in train-"),
        ({TRAIN_LABELS: np.full(30, 4, np.uint8)}, "at least 2 classes, but every label is 4;"),
        (
            {TRAIN_LABELS: np.repeat(_labels(0, 2), 15)},
            "needs at least 2 training images, one to train on and one to spare, but class '1'",
        ),
        ({TRAIN_LABELS: np.repeat(_labels(0, 1, 2), [15, 14, 1])}, "but class '2' has 1;"),
        ({TRAIN_LABELS: _images(30)}, "begins with 00 00 08 03 (images)"),
        ({TRAIN_LABELS: np.arange(30, dtype=np.int32) - 1}, "but they are from -1 to 28; number"),
        (
            {TRAIN_LABELS: np.full(30, 2**31 - 1, np.int32)},
            "below the number of images, 30, but they are from 2,147,483,647 to 2,147,483,647;",
        ),
        ({TRAIN_LABELS: None}, f"lacks {TRAIN_LABELS}; dataset idx needs {TRAIN_IMAGES}, "),
        ({f"{TRAIN_IMAGES}.gz": None}, f"lacks {TRAIN_IMAGES}; dataset idx needs"),
    ],
)
def test_unsound_training_files_are_refused(idx_folder, write_idx, files, message):
    """The message begins with the file or folder."""
    _replace(idx_folder, write_idx, files)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_dataset("idx", path=idx_folder)
    assert str(caught.value).startswith(str(idx_folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TEST_IMAGES: _images(6, 5, 4)}, "must be 4 x 5, as the training images are, but are 5"),
        ({f"{TEST_LABELS}.gz": _labels(0, 1, 2, 3, 4, 3)}, "too, but 3, 4 is not; drop those"),
        ({f"{TEST_LABELS}.gz": _labels(0)}, "a label for each of the 6 images in t10k-images"),
        ({TEST_IMAGES: None}, f"lacks {TEST_IMAGES}"),
    ],
)
def test_test_files_that_do_not_match_are_refused(idx_folder, write_idx, files, message):
    """A test set is held against the training set."""
    _replace(idx_folder, write_idx, files)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_test("idx", path=idx_folder)
    assert str(caught.value).startswith(str(idx_folder))


def _replace(folder, write_idx, files):
    for name, array in files.items():
        if array is None:
            (folder / name).unlink()
        else:
            write_idx(folder / name, array)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    """A missing folder and a file are told apart."""
    (tmp_path / "file").touch()
    for name, state in (("missing", "does not exist"), ("file", "is not a folder")):
        message = f"{name}: must be a folder that holds {TRAIN_IMAGES}, but {state}"
        with pytest.raises(DataError, match=message):
            load_dataset("idx", path=tmp_path / name)


def test_files_of_another_kind_under_a_public_name_are_refused(tmp_path, write_idx):
    """Unpacked files have no published sum, so that shape and labels are checked."""
    raw = tmp_path / "FashionMNIST/raw"
    write_idx(raw / TRAIN_IMAGES, _images(20, 28, 28))
    labels = np.arange(20, dtype=np.uint8) % 10
    labels[13] = 10
    write_idx(raw / TRAIN_LABELS, labels)
    message = f"{raw / TRAIN_LABELS}: labels must be from 0 to 9, but label number 13 is 10;"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("fashion-mnist", data_dir=tmp_path)

    write_idx(raw / TRAIN_IMAGES, _images(20))
    message = "the images of fashion-mnist are 28 x 28, but these are 4 x 5"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("fashion-mnist", data_dir=tmp_path)


def test_images_that_are_all_the_same_are_warned_of(idx_folder, write_idx):
    """They are legal, but nothing can be learnt from them."""
    write_idx(idx_folder / f"{TRAIN_IMAGES}.gz", np.full((30, 4, 5), 7, np.uint8))
    with pytest.warns(UserWarning, match="all 30 training images are the same"):
        load_dataset("idx", path=idx_folder)
