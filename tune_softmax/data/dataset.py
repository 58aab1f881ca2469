"""Datasets: read, check, and split into training and validation; the test set apart from both.

Arrays stay as the files have them, uint8; `engine.tensors` puts them on a device.
`idx.py` reads one file, `public.py` knows the public datasets and fetches missing files.
"""

import difflib
import hashlib
import heapq
import importlib.util
import os
import warnings
from dataclasses import dataclass, replace
from math import prod
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tune_softmax.data.idx import (
    IMAGES,
    LABELS,
    LONG_LABELS,
    find_idx,
    read_idx,
    read_pair,
    read_shape,
)
from tune_softmax.data.public import PUBLIC_DATASETS, fetch
from tune_softmax.data.seeding import derive_seed
from tune_softmax.errors import DataError

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetSection",
    "Split",
    "choose_validation",
    "default_data_dir",
    "load_dataset",
    "load_for",
    "load_test",
    "load_test_for",
    "view",
]

DATASETS: tuple[str, ...] = (*PUBLIC_DATASETS, "idx", "digits")

_PUBLIC_SHAPE = (28, 28)
_IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGITS_TEST_FRACTION = 1 / 5


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and their classes.

    Attributes:
        images: uint8, (N, H, W), in [0, pixel_max] of the dataset.
        labels: int64, (N,), in [0, C).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a search may see: a training and a validation set, and what they are.

    Attributes:
        name: One of `DATASETS`.
        train: Images to fit.
        validation: Images to choose by.
        class_names: (C,), in the order of the labels.
        pixel_max: The value of a white pixel: 255, or 16 for `digits`.
        checksum: SHA-256 in hexadecimal over shapes and values of both splits.
    """

    name: str
    train: Split
    validation: Split
    class_names: tuple[str, ...]
    pixel_max: int
    checksum: str

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W)."""
        _, height, width = self.train.images.shape
        return height, width

    @property
    def num_features(self) -> int:
        """D = H * W."""
        return prod(self.image_shape)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)


class DatasetSection(Protocol):
    """Which dataset an experiment asks for: `experiment.sections.DatasetOptions`, by structure.

    The attributes are the arguments of `load_dataset`.
    """

    @property
    def name(self) -> str:
        """Which dataset."""

    @property
    def path(self) -> Path | None:
        """The folder of IDX files."""

    @property
    def validation(self) -> float:
        """How much to hold out."""

    @property
    def train_fraction(self) -> float:
        """How much of the rest to train on."""

    @property
    def split_seed(self) -> int:
        """Which split."""


def load_for(section: DatasetSection, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the training and validation sets that an experiment asks for.

    Raises:
        DataError: As for `load_dataset`.
    """
    return load_dataset(
        section.name,
        path=section.path,
        validation=section.validation,
        train_fraction=section.train_fraction,
        split_seed=section.split_seed,
        data_dir=data_dir,
    )


def load_test_for(
    section: DatasetSection, data_dir: str | os.PathLike[str] | None = None
) -> Split:
    """Return the test set of the dataset that an experiment asks for.

    Raises:
        DataError: As for `load_test`.
    """
    return load_test(section.name, path=section.path, data_dir=data_dir)


def default_data_dir() -> Path:
    """Return TUNE_SOFTMAX_DATA_DIR, or ~/.cache/tune_softmax if it is not set.

    Raises:
        DataError: There is no home folder to put it in.
    """
    return _expanded(os.environ.get("TUNE_SOFTMAX_DATA_DIR") or "~/.cache/tune_softmax")


def load_dataset(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    validation: float = 1 / 6,
    train_fraction: float = 1.0,
    split_seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Dataset:
    """Return the training and validation sets of a dataset; never opens its test set.

    Each class has its exact share of both sets, rounded up or down. The validation set depends
    on `validation` and `split_seed` alone, and the training set for a smaller `train_fraction`
    is part of the one for a larger. Both keep the order of the source.

    Args:
        name: One of `DATASETS`; a public one is downloaded if it is not in `data_dir`.
        path: The folder of the IDX files, for `idx` only.
        validation: Number of validation images (an int, at least 1), or their fraction of all
            training images (a float, 0 < validation < 1).
        train_fraction: How much of the rest to train on, 0 < train_fraction <= 1; one image of
            each class is always in, so a tiny fraction may give a few more.
        split_seed: Which split, an int >= 0.
        data_dir: Folder of the public datasets; `default_data_dir()` by default.
        progress: Whether to show a download on stderr.

    Raises:
        DataError: An argument is out of range, or the data cannot be had or are not sound.
    """
    _check_name(name, path)
    _check_fraction("train_fraction", train_fraction, closed=True)
    _check_seed(split_seed)
    whole, class_names, where = _load_train(name, path, data_dir, progress=progress)
    _check_classes(whole.labels, class_names, where)
    if (whole.images[-1] == whole.images[0]).all() and (whole.images == whole.images[0]).all():
        warnings.warn(
            f"{where}: all {len(whole):,} training images are the same; nothing can be learnt "
            "from them",
            stacklevel=2,
        )
    size = _num_validation(validation, len(whole), where)
    chosen = choose_validation(whole.labels, size, split_seed)
    rest = np.setdiff1d(np.arange(len(whole)), chosen)
    _check_rest(whole.labels[rest], class_names, validation, where)
    train, held_out = _take(whole, rest), _take(whole, chosen)
    train = _part(train, train_fraction, derive_seed(split_seed, "train"))
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        class_names=class_names,
        pixel_max=16 if name == "digits" else 255,
        checksum=_checksum(train, held_out),
    )


def choose_validation(labels: NDArray[np.int64], size: int, split_seed: int) -> NDArray[np.intp]:
    """Return which training images of a source are held out, by their indices, ascending.

    Args:
        labels: Of all training images, int64, (N,).
        size: How many to hold out, 0 <= size <= N.
        split_seed: Which split, an int >= 0.
    """
    return _stratified_sample(labels, size, derive_seed(split_seed, "validation"))


def view(
    dataset: Dataset, *, seed: int, train_fraction: float = 1.0, with_validation: bool = False
) -> Dataset:
    """Return a dataset with other training images; the validation set stays.

    Args:
        dataset: What to look at.
        seed: Which part to take; a smaller part of one seed lies within a larger.
        train_fraction: How much of the training images to take, 0 < train_fraction <= 1.
        with_validation: Whether to train on the validation images too, which tells nothing about
            generalization any more.
    """
    train = _part(dataset.train, train_fraction, derive_seed(seed, "part"))
    if with_validation:
        joined = (train, dataset.validation)
        train = Split(
            np.concatenate([split.images for split in joined]),
            np.concatenate([split.labels for split in joined]),
        )
    checksum = _checksum(train, dataset.validation)
    return replace(dataset, train=train, checksum=checksum)


def load_test(
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Split:
    """Return the test set of a dataset, which is the same for every split of the rest.

    The arguments are those of `load_dataset`.

    Raises:
        DataError: As for `load_dataset`; or the test images have another shape or other classes
            than the training images.
    """
    _check_name(name, path)
    if name in PUBLIC_DATASETS:
        return _read_public(name, "test", data_dir, progress=progress)
    if name == "digits":
        return _digits(test=True)
    return _read_idx_test(_idx_folder(path))


def _load_train(
    name: str,
    path: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None,
    *,
    progress: bool,
) -> tuple[Split, tuple[str, ...], str]:
    """Return all images that are not test images, their classes' names, and where they are."""
    if name in PUBLIC_DATASETS:
        split = _read_public(name, "train", data_dir, progress=progress)
        return split, PUBLIC_DATASETS[name].class_names, name
    if name == "digits":
        split, where = _digits(test=False), name
    else:
        folder = _idx_folder(path)
        images_path, labels_path = _find_pair(folder, _IDX_TRAIN)
        split = Split(*read_pair(images_path, labels_path, LABELS, LONG_LABELS))
        _check_labels(split.labels, labels_path)
        where = str(folder)
    return split, tuple(str(label) for label in range(split.labels.max() + 1)), where


def _read_public(
    name: str,
    part: Literal["train", "test"],
    data_dir: str | os.PathLike[str] | None,
    *,
    progress: bool,
) -> Split:
    dataset = PUBLIC_DATASETS[name]
    names = dataset.train if part == "train" else dataset.test
    folder = default_data_dir() if data_dir is None else _expanded(data_dir)
    images_path, labels_path = fetch(dataset, names, folder, progress=progress)
    images, labels = read_pair(images_path, labels_path, dataset.label_kind)
    labels -= dataset.first_label
    if images.shape[1:] != _PUBLIC_SHAPE:
        raise DataError(
            f"{images_path}: the images of {name} are 28 x 28, but these are "
            f"{images.shape[1]} x {images.shape[2]}; get the file again, or use dataset idx"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= len(dataset.class_names)))
    if wrong.size:
        last = dataset.first_label + len(dataset.class_names) - 1
        raise DataError(
            f"{labels_path}: labels must be from {dataset.first_label} to {last}, but label "
            f"number {wrong[0]:,} is {labels[wrong[0]] + dataset.first_label}; get the file again"
        )
    if dataset.transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return Split(images, labels)


def _idx_folder(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        raise DataError(f"dataset idx needs a path: the folder that holds {_IDX_TRAIN[0]} etc.")
    return _expanded(path)


def _find_pair(folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
    images, labels = (find_idx(folder, name) for name in names)
    if images is not None and labels is not None:
        return images, labels
    missing = names[0] if images is None else names[1]
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: must be a folder that holds {missing}, but {state}")
    needed = ", ".join(_IDX_TRAIN + _IDX_TEST)
    raise DataError(
        f"{folder}: lacks {missing}; dataset idx needs {needed}, each as it is or with .gz"
    )


def _read_idx_test(folder: Path) -> Split:
    """Read a folder's test set and hold it against the training set."""
    train_images, train_labels = _find_pair(folder, _IDX_TRAIN)
    test_images, test_labels = _find_pair(folder, _IDX_TEST)
    split = Split(*read_pair(test_images, test_labels, LABELS, LONG_LABELS))
    shape = read_shape(train_images, IMAGES)[1:]
    if split.images.shape[1:] != shape:
        raise DataError(
            f"{test_images}: test images must be {shape[0]} x {shape[1]}, as the training images "
            f"are, but are {split.images.shape[1]} x {split.images.shape[2]}; get the files again"
        )
    unseen = np.setdiff1d(split.labels, read_idx(train_labels, LABELS, LONG_LABELS))
    if unseen.size:
        raise DataError(
            f"{test_labels}: every test label must be in {train_labels.name} too, but "
            f"{', '.join(map(str, unseen))} is not; drop those images or add training images"
        )
    return split


def _digits(*, test: bool) -> Split:
    rows = _read_digits()
    whole = Split(rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64))
    size = round(_DIGITS_TEST_FRACTION * len(whole))
    chosen = _stratified_sample(whole.labels, size, derive_seed(0, "digits test"))
    return _take(whole, chosen if test else np.setdiff1d(np.arange(len(whole)), chosen))


def _read_digits() -> NDArray[np.uint8]:
    """Return scikit-learn's digits: 64 pixels and a label a row.

    What `sklearn.datasets.load_digits` reads, without importing scikit-learn and SciPy. That takes
    a second and more, while other threads import other things; of two imports at once one has
    seen the other's classes half made.
    """
    found = importlib.util.find_spec("sklearn")
    folders = found.submodule_search_locations or [] if found else []
    for folder in folders:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, np.uint8, delimiter=",")
    from sklearn.datasets import load_digits  # one that keeps them elsewhere

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.uint8)


def _stratified_sample(
    labels: NDArray[np.int64], size: int, seed: int, *, at_least: int = 0
) -> NDArray[np.intp]:
    """Choose images at random, of each class its exact share rounded up or down.

    For one seed, the sample of a smaller size is part of the sample of a larger.

    Args:
        labels: int64, (N,).
        size: 0 <= size <= N.
        seed: Which sample.
        at_least: Images to choose of each class even where its share is smaller.

    Returns:
        Indices in ascending order, (size,), or more where `at_least` adds some.
    """
    counts = np.bincount(labels)
    shares = np.maximum(_shares(counts.tolist(), size), at_least)
    # numpy promises the raw stream of a bit generator for ever, but not its shuffles.
    keys = np.random.PCG64(seed).random_raw(len(labels))
    by_class = np.lexsort((keys, labels))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < np.repeat(shares, counts)])


def _shares(counts: list[int], size: int) -> list[int]:
    """Divide `size` among classes of `counts` images, within one image of exact proportion.

    No class loses an image when `size` grows, which largest remainders cannot promise: image
    number j of a class of n has its turn from place floor(j N / n) on and before place
    ceil((j + 1) N / n), and of the classes whose turn it is, the one whose turn ends first goes
    next. Such an order exists and this rule finds it: Tijdeman 1980, The chairman assignment
    problem; Baruah et al. 1996, Proportionate progress.
    """
    total = sum(counts)
    shares = [0] * len(counts)
    later = [(0, label) for label, count in enumerate(counts) if count]  # (first place, class)
    now: list[tuple[int, int]] = []  # (end of its turn, class)
    for place in range(size):
        while later and later[0][0] <= place:
            _, label = heapq.heappop(later)
            end = -(-(shares[label] + 1) * total // counts[label])
            heapq.heappush(now, (end, label))
        _, label = heapq.heappop(now)
        shares[label] += 1
        if shares[label] < counts[label]:
            heapq.heappush(later, (shares[label] * total // counts[label], label))
    return shares


def _part(train: Split, fraction: float, seed: int) -> Split:
    """Take a part of the training images, at least one of each class."""
    if fraction == 1:
        return train
    size = round(fraction * len(train))
    return _take(train, _stratified_sample(train.labels, size, seed, at_least=1))


def _take(split: Split, indices: NDArray[np.intp]) -> Split:
    return Split(split.images[indices], split.labels[indices])


def _checksum(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(split.images.shape).encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(split.labels.astype("<i8").data)
    return digest.hexdigest()


def _check_name(name: str, path: str | os.PathLike[str] | None) -> None:
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name).lower(), DATASETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"dataset {name!r} is unknown; {hint}known: {', '.join(DATASETS)}")
    if path is not None and name != "idx":
        raise DataError(f"dataset {name} takes no path, but got {str(path)!r}; use dataset idx")


def _check_seed(seed: int) -> None:
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise DataError(f"split_seed must be an int, 0 or more, but is {seed!r}")


def _check_fraction(key: str, value: float, *, closed: bool) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (0 < value < 1 or (closed and value == 1)):
        end = "up to 1" if closed else "below 1 (or an int: a number of images)"
        raise DataError(f"{key} must be a fraction above 0 and {end}, but is {value!r}")


def _num_validation(validation: float, num_images: int, where: str) -> int:
    if isinstance(validation, Integral) and not isinstance(validation, bool):
        size = int(validation)
    else:
        _check_fraction("validation", validation, closed=False)
        size = round(validation * num_images)
    if not 0 < size < num_images:
        raise DataError(
            f"{where}: validation must leave images on both sides, 1 to {num_images - 1:,} of "
            f"{num_images:,}, but {validation!r} asks for {size:,}; choose another number"
        )
    return size


def _check_labels(labels: NDArray[np.int64], path: Path) -> None:
    """Refuse labels that cannot be those of classes 0 to C - 1, each with an image or more."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(labels):
        raise DataError(
            f"{path}: labels must number the classes from 0 without a gap, so that they are below "
            f"the number of images, {len(labels):,}, but they are from {low:,} to {high:,}; "
            "number the classes anew"
        )


def _check_classes(labels: NDArray[np.int64], class_names: tuple[str, ...], where: str) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    if np.count_nonzero(counts) == 1:
        raise DataError(
            f"{where}: training labels must name at least 2 classes, but every label is "
            f"{labels[0]}; there is nothing to tell apart"
        )
    few = np.flatnonzero(counts < 2)  # noqa: PLR2004
    if few.size:
        raise DataError(
            f"{where}: every class needs at least 2 training images, one to train on and one to "
            f"spare, but class {class_names[few[0]]!r} has {counts[few[0]]}; add images, or "
            "number the classes without a gap"
        )


def _check_rest(
    labels: NDArray[np.int64], class_names: tuple[str, ...], validation: float, where: str
) -> None:
    lost = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if lost.size:
        raise DataError(
            f"{where}: validation must leave an image of each class to train on, but "
            f"{validation!r} leaves none of class {class_names[lost[0]]!r}; choose a smaller one"
        )


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no home folder
        raise DataError(f"{path}: has no meaning here: {error}; name a folder in full") from error
