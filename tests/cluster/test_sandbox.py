"""What keeps a local cluster to its user, and takes no live one's folder away."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_softmax.cluster import sandbox
from tune_softmax.cluster.sandbox import private_folder, token_required, variables


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    """Let folders be made in a place of this test's own, however long its path is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox, "MAX_LENGTH", 999)


def left(parent, name):
    """Make a folder as a killed search leaves it, and return it."""
    folder = parent / name
    (folder / "ray").mkdir(parents=True)
    (folder / "lock").touch()
    return folder


def test_folders_of_killed_searches_are_removed(tmp_path):
    """Nobody holds their locks; what was not made here stays, whatever its name."""
    dead, without_lock = left(tmp_path, "tune-softmax-abc"), left(tmp_path, "tune-softmax-def")
    (without_lock / "lock").unlink()  # a cluster that outlived its driver has made it anew
    other = tmp_path / "tune-softmax-notes"
    other.mkdir()
    with private_folder() as folder:
        assert folder.is_dir()
        assert not dead.exists()
        assert not without_lock.exists()
    assert other.exists()
    assert list(tmp_path.iterdir()) == [other]


def test_the_folder_of_a_live_search_stays(tmp_path):
    """Its lock is held, by a process whose number may mean nothing here."""
    code = """
import sys, tempfile
from tune_softmax.cluster import sandbox
tempfile.tempdir, sandbox.MAX_LENGTH = sys.argv[1], 999
with sandbox.private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        folder = Path(other.stdout.readline().strip())
        with private_folder():
            pass
        assert folder.is_dir()
        other.kill()
    with private_folder():
        assert not folder.exists()


def test_a_file_system_without_locks_loses_nothing(tmp_path, monkeypatch):
    """A folder that cannot be locked may be a live one's."""

    def refuse(*_arguments):
        raise OSError(95, "Operation not supported")

    dead = left(tmp_path, "tune-softmax-abc")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with private_folder() as folder:
        assert folder.is_dir()
    assert dead.is_dir()


def test_nobody_else_can_enter_whatever_ray_does(tmp_path):
    """Ray opens its folder to all users, and has one below ours."""
    with private_folder() as folder:
        folder.chmod(0o777)
        (outer,) = (path for path in tmp_path.iterdir())
        assert outer == folder.parent
        assert outer.stat().st_mode & 0o777 == 0o700


def test_a_long_temporary_folder_is_not_used(monkeypatch):
    """Sockets below it would have paths that the system refuses."""
    monkeypatch.setattr(sandbox, "MAX_LENGTH", 40)
    with private_folder() as folder:
        assert len(str(folder)) <= 40
        assert folder.is_relative_to(sandbox.SHORT_PARENT)
    assert not folder.parent.exists()


def test_variables_are_put_back(monkeypatch):
    """Those that were there get their values, and the others go, also after an error."""
    monkeypatch.setenv("TS_THERE", "before")
    monkeypatch.delenv("TS_NEW", raising=False)
    seen = []

    def fail():
        with variables({"TS_THERE": None, "TS_NEW": "1"}):
            seen.append(("TS_THERE" in os.environ, os.environ["TS_NEW"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(False, "1")]
    assert os.environ["TS_THERE"] == "before"
    assert "TS_NEW" not in os.environ


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    """Let the user have no token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_token")
def test_a_random_token_leaves_the_environment():
    """It is the same in each search of a process, for Ray keeps the first that it reads."""
    with token_required():
        first = os.environ["RAY_AUTH_TOKEN"]
        assert len(first) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    with token_required():
        assert os.environ["RAY_AUTH_TOKEN"] == first


@pytest.mark.usefixtures("no_token")
def test_the_users_own_token_is_used(tmp_path, monkeypatch):
    """From the environment or from the file that Ray reads, so that later clusters know it."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t" * 32)
    with token_required():
        assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    own = "o" * 32
    monkeypatch.setenv("RAY_AUTH_TOKEN", own)
    with token_required():
        assert os.environ["RAY_AUTH_TOKEN"] == own
    assert os.environ["RAY_AUTH_TOKEN"] == own


@pytest.mark.parametrize(("before", "mode"), [("", "token"), ("import ray;", None)])
def test_the_mode_is_set_before_ray_is_imported(before, mode):
    """Ray reads it then; one that is imported already requires a token where no mode is set."""
    code = f"""
import os
os.environ["RAY_AUTH_MODE"] = "disabled"
{before}
from tune_softmax.cluster.sandbox import token_required
with token_required():
    print(os.environ.get("RAY_AUTH_MODE"))
print(os.environ["RAY_AUTH_MODE"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == [str(mode), "disabled"]
