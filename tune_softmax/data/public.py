"""The public datasets: what their files are called, and how missing ones are fetched.

Files lie as torchvision lays them, `<data_dir>/<torchvision's class>/raw/`, packed or unpacked,
and are used as they are. torchvision knows the addresses and is imported only to download.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import shutil
import socket
import string
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tune_softmax import files
from tune_softmax.data.idx import LABELS, QMNIST_LABELS, IdxKind, find_idx
from tune_softmax.errors import DataError

__all__ = ["PUBLIC_DATASETS", "PublicDataset", "fetch"]

_TIMEOUT_S = 30.0  # of one network operation; torchvision would wait for ever
_NO_ROOM = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}  # another address would not help
_EMNIST_ARCHIVE = "gzip.zip"


@dataclass(frozen=True, kw_only=True)
class PublicDataset:
    """One published dataset of 28x28 images.

    Attributes:
        torchvision_class: Its class there, which is also its folder's name.
        train: Names of the training images and labels, without .gz.
        test: Names of the test images and labels, without .gz.
        class_names: (C,), in the order of the labels.
        md5: Published sums by name of the downloaded file.
        archive: The one file that holds all others, if they are not published singly.
        label_kind: The form of its label files.
        first_label: The label of class 0 in the files.
        transposed: Whether the files hold each image mirrored at its diagonal.
    """

    torchvision_class: str
    train: tuple[str, str]
    test: tuple[str, str]
    class_names: tuple[str, ...]
    md5: Mapping[str, str] = field(repr=False)
    archive: str | None = None
    label_kind: IdxKind = LABELS
    first_label: int = 0
    transposed: bool = False

    def folder(self, data_dir: Path) -> Path:
        """Return the folder that the files belong in."""
        return data_dir / self.torchvision_class / "raw"


def _like_mnist(
    torchvision_class: str, class_names: Sequence[str], md5: Sequence[str]
) -> PublicDataset:
    train = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    return PublicDataset(
        torchvision_class=torchvision_class,
        train=train,
        test=test,
        class_names=tuple(class_names),
        md5={f"{name}.gz": value for name, value in zip(train + test, md5, strict=True)},
    )


def _emnist(split: str, class_names: str, first_label: int) -> PublicDataset:
    train, test = (
        (f"emnist-{split}-{part}-images-idx3-ubyte", f"emnist-{split}-{part}-labels-idx1-ubyte")
        for part in ("train", "test")
    )
    return PublicDataset(
        torchvision_class="EMNIST",
        train=train,
        test=test,
        class_names=tuple(class_names),
        md5={_EMNIST_ARCHIVE: "58c8d27c78d21e728a6bc7b3cc06412e"},
        archive=_EMNIST_ARCHIVE,
        first_label=first_label,
        transposed=True,
    )


# The sums are torchvision's; a test compares them.
PUBLIC_DATASETS: Mapping[str, PublicDataset] = {
    "fashion-mnist": _like_mnist(
        "FashionMNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "mnist": _like_mnist(
        "MNIST",
        string.digits,
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "kmnist": _like_mnist(
        "KMNIST",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "qmnist": PublicDataset(
        torchvision_class="QMNIST",
        train=("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
        test=("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
        class_names=tuple(string.digits),
        md5={
            "qmnist-train-images-idx3-ubyte.gz": "ed72d4157d28c017586c42bc6afe6370",
            "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
            "qmnist-test-images-idx3-ubyte.gz": "1394631089c404de565df7b7aeaf9412",
            "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
        },
        label_kind=QMNIST_LABELS,
    ),
    "emnist-balanced": _emnist(
        "balanced", string.digits + string.ascii_uppercase + "abdefghnqrt", first_label=0
    ),
    "emnist-letters": _emnist("letters", string.ascii_lowercase, first_label=1),
}


def fetch(
    dataset: PublicDataset, names: Sequence[str], data_dir: Path, *, progress: bool = True
) -> list[Path]:
    """Return where files of a public dataset are, downloading those that are not there.

    Nothing is written if all are there. If two processes need the same files, one waits for the
    other. A file takes its place only whole and verified.

    Args:
        dataset: Whose files.
        names: Names without .gz.
        data_dir: The folder above torchvision's.
        progress: Whether to show a download on stderr.

    Returns:
        Paths, as many as `names`; the MD5 of each .gz file is the published one, if there is one.

    Raises:
        DataError: A file is missing and cannot be had, or is not the published one.
    """
    folder = dataset.folder(data_dir)
    if _missing(folder, names):
        _check_depth(dataset, names, data_dir)
        _download_missing(dataset, names, folder, progress=progress)
    paths = [path for name in names if (path := find_idx(folder, name)) is not None]
    assert len(paths) == len(names)
    for path in paths:
        if path.name in dataset.md5:
            _verify(path, dataset.md5[path.name])
    return paths


def _check_depth(dataset: PublicDataset, names: Sequence[str], data_dir: Path) -> None:
    """Refuse a folder that is inside torchvision's layout, where all files are there already."""
    for inside in (data_dir, data_dir / "raw"):
        if not _missing(inside, names):
            above = dataset.folder(Path())
            advice = f"move them to {dataset.folder(data_dir)}, or take dataset idx with this path"
            if inside.absolute().parts[-len(above.parts) :] == above.parts:
                advice = f"give {inside.absolute().parents[len(above.parts) - 1]}"
            raise DataError(
                f"{data_dir}: must be the folder above {above}, but the files are in {inside}; "
                f"{advice}"
            )


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if find_idx(folder, name) is None]


def _verify(path: Path, published: str) -> None:
    received = _md5(path)
    if received != published:
        raise DataError(
            f"{path}: its MD5 must be {published}, as published, but is {received}; "
            "delete the file to have it downloaded again"
        )


def _md5(path: Path) -> str:
    try:
        with files.open_regular(path) as file:
            return hashlib.file_digest(
                file, partial(hashlib.md5, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from error


def _download_missing(
    dataset: PublicDataset, names: Sequence[str], folder: Path, *, progress: bool
) -> None:
    wanted = " and ".join(f"{name}.gz" for name in _missing(folder, names))
    advice = (
        f"put {wanted} into that folder, or name the folder above {dataset.torchvision_class} "
        "with --data-dir or TUNE_SOFTMAX_DATA_DIR"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, progress=progress):
            # Another process may have finished while this one waited.
            missing = _missing(folder, names)
            if missing:
                with _scratch(folder) as scratch:
                    _download(dataset, missing, scratch, folder, progress=progress)
    except _DownloadError as error:
        raise DataError(f"{folder}: {error}; {advice}") from error
    except (OSError, ValueError, NotImplementedError) as error:  # ValueError: NUL in the path
        raise DataError(
            f"{folder}: lacks {wanted}, and cannot be written to: {_one_line(error)}; {advice}"
        ) from error


class _DownloadError(Exception):
    """Why a file could not be had; the boundary adds where it belongs and what to do."""


@contextlib.contextmanager
def _locked(folder: Path, *, progress: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _note(f"{folder}: waiting for another process that downloads", progress=progress)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make a folder that is removed again; who holds the lock may remove a dead process's."""
    scratch = folder / ".download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(
    dataset: PublicDataset, names: Sequence[str], scratch: Path, folder: Path, *, progress: bool
) -> None:
    """Put the files `names`.gz into `folder`, each as soon as it is verified."""
    files = [dataset.archive] if dataset.archive else [f"{name}.gz" for name in names]
    for file in files:
        urls = _urls(dataset, file)
        _download_file(urls, scratch / file, dataset.md5[file], progress=progress)
        if file == dataset.archive:
            _unpack(scratch / file, folder)
        else:
            (scratch / file).replace(folder / file)


def _unpack(archive: Path, folder: Path) -> None:
    """Put those files of the archive that any dataset here uses into `folder`."""
    sharers = [dataset for dataset in PUBLIC_DATASETS.values() if dataset.archive == archive.name]
    names = [name for dataset in sharers for name in dataset.train + dataset.test]
    try:
        with zipfile.ZipFile(archive) as members:
            for name in _missing(folder, names):
                target = archive.parent / f"{name}.gz"
                with members.open(f"gzip/{name}.gz") as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                target.replace(folder / target.name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _DownloadError(f"{archive.name} is not as expected: {_one_line(error)}") from error


def _urls(dataset: PublicDataset, file: str) -> list[str]:
    """Return the addresses that torchvision has for a file."""
    try:
        from torchvision import datasets
    except (ImportError, OSError, RuntimeError) as error:  # as a torch of another build gives
        raise _DownloadError(
            f"{file} is not there, and torchvision, which knows its address, does not load: "
            + _one_line(error)
        ) from error
    source = getattr(datasets, dataset.torchvision_class)
    if dataset.archive:
        return [source.url]
    if isinstance(source.resources, dict):  # QMNIST lists whole addresses
        listed = [url for files in source.resources.values() for url, _ in files]
        return [url for url in listed if url.endswith("/" + file)]
    return [mirror + file for mirror in source.mirrors]


def _download_file(urls: Sequence[str], target: Path, md5: str, *, progress: bool) -> None:
    """Download one file from the first address that gives the published one."""
    failures = []
    for url in urls:
        _note(f"downloading {url}", progress=progress)
        try:
            _retrieve(url, target, progress=progress)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            failures.append(f"{url}: {_one_line(error)}")
            continue
        received = _md5(target)
        if received == md5:
            return
        failures.append(f"{url}: its MD5 is {received}, the published one {md5}")
    raise _DownloadError(
        f"{target.name} is not there and could not be downloaded ({'; '.join(failures)})"
    )


def _retrieve(url: str, target: Path, *, progress: bool) -> None:
    from torchvision.datasets.utils import download_url

    target.unlink(missing_ok=True)  # download_url would keep what is there
    # torchvision's bar cannot be turned off, only sent elsewhere.
    quiet = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        with quiet:
            download_url(url, str(target.parent), filename=target.name)
    finally:
        socket.setdefaulttimeout(timeout)


def _note(text: str, *, progress: bool) -> None:
    if progress:
        sys.stderr.write(text + "\n")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the message has
    return " ".join(str(error).split())
