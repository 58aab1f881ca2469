"""Whole files: what is read is a regular file, what is written is there whole or not at all."""

import errno
import os
import signal
import socket
import stat

import pytest

from tune_softmax import files

READERS = [files.open_regular, files.read_bytes, files.read_text, files.read_json]


@pytest.fixture(params=["a pipe", "a socket", "a folder", "a device", "a link to a pipe"])
def odd(request, tmp_path):
    """Return a path where something other than a regular file is."""
    path = tmp_path / "odd"
    if request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif request.param == "a folder":
        path.mkdir()
    elif request.param == "a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    return path


@pytest.mark.parametrize("read", READERS)
def test_only_regular_files_are_read(odd, read):
    """Whatever else is there is refused at once; a pipe without a writer would hang."""
    with pytest.raises(OSError, match=r"not a regular file|No such device|Is a directory"):
        read(odd)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_missing(tmp_path, read):
    """The error is Python's own, for callers to tell it from others."""
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_a_file_is_read_up_to_its_bound(tmp_path):
    """One byte more is refused, however long the file is."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_bytes(path, 5) == b"12345"
    with pytest.raises(ValueError, match="longer than 4 bytes"):
        files.read_bytes(path, 4)
    os.truncate(path, 1 << 40)  # a file with a hole
    with pytest.raises(ValueError, match="longer than 67,108,864 bytes"):
        files.read_bytes(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "can't decode byte"),
        (b"{", "Expecting"),
        (b"9" * 5000, "4300 digits"),
    ],
    ids=["nested", "not UTF-8", "cut off", "a huge number"],
)
def test_what_is_no_json_is_a_value_error(tmp_path, content, expected):
    """Callers need to know of one class of error alone."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        files.read_json(path)


@pytest.mark.parametrize("content", ["né\n", "né\n".encode(), [b"n", "é\n".encode()]])
def test_a_file_is_written_whole(tmp_path, content):
    """Text, bytes and chunks; text is UTF-8 whatever the locale, and the mode is a new file's."""
    path = tmp_path / ("n" * 255)
    for _again in range(2):
        files.write_atomically(path, content)
        assert path.read_bytes() == "né\n".encode()
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """Neither half a file nor a draft remains."""
    path = tmp_path / "file"
    path.write_text("before")

    def chunks():
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, chunks())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "before")]


def test_a_killed_writer_leaves_what_was_there(tmp_path, in_child):
    """Its draft has a hidden name of its own, so that nobody takes it for a file of the run."""
    path = tmp_path / "file"
    path.write_text("before")

    def write_and_die():
        with files.replacing(path) as draft:
            draft.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == -signal.SIGKILL
    assert path.read_text() == "before"
    (draft,) = set(tmp_path.iterdir()) - {path}
    assert draft.name.startswith(".")


def test_the_file_and_then_its_folder_reach_the_disk(tmp_path, monkeypatch):
    """The content before the rename, the folder's entry after it."""
    seen = []
    fsync = os.fsync

    def noting(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        seen.append((kind, (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    files.write_atomically(tmp_path / "file", "text")
    assert seen == [("file", False), ("folder", True)]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    """A run folder may come from a stranger, with links to files that are none of its own."""
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "link").symlink_to(other)
    files.write_atomically(tmp_path / "link", "new")
    assert other.read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


def test_only_a_file_is_replaced(odd, tmp_path):
    """A pipe, a socket and a folder stay; a link goes, whatever it led to."""
    is_link = odd.is_symlink()
    before = set(tmp_path.iterdir())
    try:
        files.write_atomically(odd, "new")
    except OSError as error:
        assert "not a regular file" in str(error)  # noqa: PT017 - both ways out are right
        assert not is_link
    else:
        assert is_link
        assert odd.read_text() == "new"
    assert set(tmp_path.iterdir()) == before
