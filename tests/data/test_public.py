"""Public datasets: the table of files, and downloads from a server on this machine."""

import dataclasses
import gzip
import hashlib
import io
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tune_softmax.data import public
from tune_softmax.data.dataset import load_dataset, load_test
from tune_softmax.data.public import PUBLIC_DATASETS, fetch
from tune_softmax.errors import DataError

FASHION_MNIST = PUBLIC_DATASETS["fashion-mnist"]


class _Server(ThreadingHTTPServer):
    """Serves `files` by name, and notes which names were asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = {}
        self.requests = []
        self.before = lambda _: None  # called before a file is sent
        self.halfway = lambda _: True  # called when half is sent: whether to go on
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        """Say nothing of a client that has read enough."""


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path[1:]
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        self.server.before(name)
        data = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if self.server.halfway(name):
            self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *arguments):
        """Say nothing of a request."""


@pytest.fixture
def server(monkeypatch):
    """Return a running server that torchvision takes for the mirror of Fashion-MNIST."""
    from torchvision import datasets

    monkeypatch.setenv("no_proxy", "*")
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [server.url])
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def small(server):
    """Return Fashion-MNIST with small files in place of the published ones, and serve them."""
    rng = np.random.default_rng(0)
    for name in FASHION_MNIST.train + FASHION_MNIST.test:
        server.files[f"{name}.gz"] = gzip.compress(rng.bytes(200_000), compresslevel=1)
    return _with_sums(FASHION_MNIST, server.files)


def _with_sums(dataset, files):
    return dataclasses.replace(dataset, md5={name: _md5(data) for name, data in files.items()})


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_table_is_torchvisions():
    """Names, sums, classes and folders are those that torchvision publishes."""
    from torchvision import datasets

    for name in ("fashion-mnist", "mnist", "kmnist"):
        ours = PUBLIC_DATASETS[name]
        theirs = getattr(datasets, ours.torchvision_class)
        assert list(ours.md5.items()) == theirs.resources
        assert [f"{file}.gz" for file in ours.train + ours.test] == list(ours.md5)
        assert list(ours.class_names) == [cls.partition(" - ")[0] for cls in theirs.classes]

    ours = PUBLIC_DATASETS["qmnist"]
    theirs = datasets.QMNIST.resources
    listed = [(url.rpartition("/")[2], md5) for url, md5 in theirs["train"] + theirs["test"]]
    assert list(ours.md5.items()) == listed
    assert [f"{file}.gz" for file in ours.train + ours.test] == list(ours.md5)
    urls = [url for file in ours.md5 for url in public._urls(ours, file)]
    assert urls == [url for url, _ in theirs["train"] + theirs["test"]]

    for name in ("emnist-balanced", "emnist-letters"):
        ours = PUBLIC_DATASETS[name]
        assert ours.md5 == {ours.archive: datasets.EMNIST.md5}
        assert datasets.EMNIST.url.endswith("/" + ours.archive)
        classes = datasets.EMNIST.classes_split_dict[name.partition("-")[2]]
        assert list(ours.class_names) == classes[ours.first_label :]


def test_files_that_are_there_are_used_as_they_are(fashion_mnist_dir):
    """Nothing is written next to them, and so their folder may be read-only."""
    before = _listing(fashion_mnist_dir)
    paths = fetch(FASHION_MNIST, FASHION_MNIST.train + FASHION_MNIST.test, fashion_mnist_dir)
    assert [path.name for path in paths] == list(FASHION_MNIST.md5)
    assert _listing(fashion_mnist_dir) == before


def test_the_real_files_are_downloaded(fashion_mnist_dir, server, tmp_path, capsys):
    """Each set only when it is asked for, with a bar on stderr or in silence."""
    source = FASHION_MNIST.folder(fashion_mnist_dir)
    server.files = {path.name: path.read_bytes() for path in source.glob("*.gz")}
    dataset = load_dataset("fashion-mnist", data_dir=tmp_path)
    expected = load_dataset("fashion-mnist", data_dir=fashion_mnist_dir)
    assert dataset.checksum == expected.checksum
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"downloading {server.url}train-images-idx3-ubyte.gz" in captured.err
    assert "100%" in captured.err
    folder = FASHION_MNIST.folder(tmp_path)
    train = [f"{name}.gz" for name in FASHION_MNIST.train]
    assert set(server.requests) == set(train)
    assert _listing(folder) == [".lock", *train]

    assert len(load_test("fashion-mnist", data_dir=tmp_path, progress=False)) == 10_000
    assert capsys.readouterr().err == ""


def test_only_what_is_missing_is_downloaded(small, server, tmp_path):
    """A file that is there, packed or not, stays as it is."""
    images, labels = small.train
    folder = small.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / images).write_bytes(b"unpacked")
    paths = fetch(small, small.train, tmp_path, progress=False)
    assert [path.name for path in paths] == [images, f"{labels}.gz"]
    assert set(server.requests) == {f"{labels}.gz"}
    assert paths[0].read_bytes() == b"unpacked"
    assert paths[1].read_bytes() == server.files[f"{labels}.gz"]


def test_of_two_processes_one_downloads_and_the_other_waits(small, server, tmp_path):
    """The second finds all files there when its turn comes, and does not load torchvision."""
    waits = threading.Event()
    server.before = lambda _: waits.wait(timeout=20)
    code = (
        "import sys; from pathlib import Path; from tune_softmax.data.public import *\n"
        "dataset = PUBLIC_DATASETS['fashion-mnist']\n"
        f"dataset.md5.update({dict(small.md5)})\n"
        f"print(fetch(dataset, dataset.train, Path({str(tmp_path)!r})))\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, small, small.train, tmp_path, progress=False)
        while not server.requests:
            assert not first.done()
            time.sleep(0.01)
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as second:
            line = second.stderr.readline().decode()
            assert "waiting for another process that downloads" in line
            assert second.poll() is None
            waits.set()
            paths = first.result()
            output, errors = second.communicate()
    assert errors == b""
    assert output.decode().strip() == str(paths)
    # torchvision asks twice, first for the address that it is sent on to.
    assert server.requests == [f"{name}.gz" for name in small.train for _ in range(2)]


def test_a_wrong_file_is_not_kept(small, server, tmp_path):
    """Both sums are named, and the next address is tried."""
    from torchvision import datasets

    file = f"{small.train[0]}.gz"
    right, wrong = server.files[file], b"<html>Sorry</html>"
    server.files[file] = wrong
    message = (
        f"{small.folder(tmp_path)}: {file} is not there and could not be downloaded "
        f"({server.url}{file}: its MD5 is {_md5(wrong)}, the published one {_md5(right)}); put "
        f"{file} and {small.train[1]}.gz into that folder, or name the folder above FashionMNIST "
        "with --data-dir or TUNE_SOFTMAX_DATA_DIR"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        fetch(small, small.train, tmp_path, progress=False)
    assert _listing(tmp_path) == ["FashionMNIST/raw/.lock"]

    server.files[f"second/{file}"] = right
    datasets.FashionMNIST.mirrors.append(f"{server.url}second/")
    paths = fetch(small, small.train, tmp_path, progress=False)
    assert paths[0].read_bytes() == right


def test_a_download_that_fails_leaves_nothing(small, server, tmp_path, monkeypatch):
    """A server that breaks off, has no such file, is silent, or is not there."""
    from torchvision import datasets

    def expect(reason):
        with pytest.raises(DataError, match=reason) as caught:
            fetch(small, small.train, tmp_path, progress=False)
        assert "\n" not in str(caught.value)
        assert _listing(tmp_path) == ["FashionMNIST/raw/.lock"]

    server.halfway = lambda _: False
    expect("its MD5 is [0-9a-f]{32}, the published one")

    monkeypatch.setattr(public, "_TIMEOUT_S", 0.2)
    silence = threading.Event()
    server.before = lambda _: silence.wait(timeout=20)
    expect("timed out")
    silence.set()

    server.files.clear()
    expect("HTTP Error 404: Not Found")

    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/", "bad://host/"])
    expect(
        r"http://127.0.0.1:9/train-images-idx3-ubyte.gz: <urlopen error .*Connection refused>; "
        r"bad://host/train-images-idx3-ubyte.gz: <urlopen error unknown url type: bad>"
    )


# Once in thirty times on a busy machine Python cut the clean-up short, too, and left its folder
# and an iterator open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_download_leaves_no_file(small, server, tmp_path):
    """Ctrl-C in the middle of a file; the next download starts afresh, whatever is there."""
    main = threading.main_thread().ident
    server.halfway = lambda _: signal.pthread_kill(main, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fetch(small, small.train, tmp_path, progress=False)
    assert _listing(tmp_path) == ["FashionMNIST/raw/.lock"]

    server.halfway = lambda _: True
    killed = small.folder(tmp_path) / ".download"  # as kill -9 leaves it
    killed.mkdir(exist_ok=True)
    (killed / f"{small.train[0]}.gz").write_bytes(b"half")
    fetch(small, small.train, tmp_path, progress=False)
    assert not killed.exists()


def test_a_full_disk_is_named(small, tmp_path):
    """A limit on file size stands for a disk with no room; no other address is tried."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written to: .*File too large; put train-"):
            fetch(small, small.train, tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _listing(tmp_path) == ["FashionMNIST/raw/.lock"]


@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "FashionMNIST"])
def test_a_folder_too_deep_is_not_downloaded_into(tmp_path, inside):
    """Where all files lie in it already, the folder to name is told."""
    folder = FASHION_MNIST.folder(tmp_path)
    folder.mkdir(parents=True)
    for name in FASHION_MNIST.train:
        (folder / name).touch()
    with pytest.raises(DataError) as caught:
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path / inside)
    assert str(caught.value) == (
        f"{tmp_path / inside}: must be the folder above FashionMNIST/raw, but the files are in "
        f"{folder}; give {tmp_path}"
    )
    assert _listing(tmp_path) == [f"FashionMNIST/raw/{name}" for name in FASHION_MNIST.train]


def test_files_in_no_layout_are_an_idx_folder(tmp_path):
    """They are moved, or read as dataset idx."""
    for name in FASHION_MNIST.train:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"raw, or take dataset idx with this path$"):
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path)


@pytest.mark.parametrize("folder", ["/proc/data", "file", "file/data", "nul\0", "x" * 300])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, folder):
    """The message says which files are wanted there."""
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"FashionMNIST/raw.*: (lacks train-.*and cannot be|cannot be found)"
    ):
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path / folder)


def test_torchvision_is_needed_only_to_download(tmp_path, monkeypatch):
    """Where it does not load, the message says so and what to do instead."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"which knows its address, does not load: .*; put train-"):
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path)


def test_a_present_file_with_another_sum_is_refused(tmp_path):
    """Both sums are named; the file is the user's and stays."""
    folder = FASHION_MNIST.folder(tmp_path)
    folder.mkdir(parents=True)
    for name in FASHION_MNIST.train:
        (folder / f"{name}.gz").write_bytes(b"other")
    file = f"{FASHION_MNIST.train[0]}.gz"
    message = (
        f"{folder / file}: its MD5 must be {FASHION_MNIST.md5[file]}, as published, but is "
        f"{_md5(b'other')}; delete the file"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path)
    assert (folder / file).exists()

    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        fetch(FASHION_MNIST, FASHION_MNIST.train, tmp_path)


def _archive(names):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as members:
        for name in names:
            members.writestr(f"gzip/{name}.gz", gzip.compress(name.encode()))
    return packed.getvalue()


def test_one_archive_serves_all_of_emnist(server, tmp_path, monkeypatch):
    """It is downloaded once; the files that are used are taken out, and it is not kept."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.EMNIST, "url", f"{server.url}gzip.zip")
    balanced, letters = PUBLIC_DATASETS["emnist-balanced"], PUBLIC_DATASETS["emnist-letters"]
    names = balanced.train + balanced.test + letters.train + letters.test
    server.files["gzip.zip"] = _archive(["emnist-digits-train-images-idx3-ubyte", *names])
    balanced = _with_sums(balanced, server.files)
    paths = fetch(balanced, balanced.train, tmp_path, progress=False)
    assert [gzip.decompress(path.read_bytes()).decode() for path in paths] == [*balanced.train]
    wanted = sorted([".lock", *(f"{name}.gz" for name in names)])
    assert _listing(balanced.folder(tmp_path)) == wanted
    server.files.clear()
    fetch(letters, letters.test, tmp_path)


def test_an_archive_without_a_file_is_refused(server, tmp_path, monkeypatch):
    """The message names the file that it lacks."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.EMNIST, "url", f"{server.url}gzip.zip")
    balanced = PUBLIC_DATASETS["emnist-balanced"]
    for data, reason in (
        (_archive(balanced.train), "There is no item named 'gzip/emnist-balanced-test-images"),
        (b"no archive", "File is not a zip file"),
    ):
        server.files["gzip.zip"] = data
        dataset = _with_sums(balanced, server.files)
        with pytest.raises(DataError, match=f"gzip.zip is not as expected: .*{reason}"):
            fetch(dataset, dataset.test, tmp_path, progress=False)
