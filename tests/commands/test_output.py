"""Output to streams of any kind: closed, full, in any encoding, or with a reader that goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_folders

COMMAND = Path(sys.executable).with_name("tune-softmax")
ONE = "dataset: {name: digits}\nspace: {batch_size: 64, num_epochs: 1, learning_rate: 0.1}\n"


def shell(line, folder, **environment):
    """Run a line of a shell in which `$TUNE` is our command."""
    return subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        cwd=folder,
        env=os.environ | {"TUNE": str(COMMAND)} | environment,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """Return a folder with an experiment and a run."""
    (tmp_path / "one.yaml").write_text(ONE, encoding="utf-8")
    run_folders.finished(tmp_path / "run", 40)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "stream"),
    [
        *(("validate one.yaml", stream) for stream in ("<&-", ">&-", "2>&-")),
        ("results run", ">&-"),
        ("train one.yaml", "<&- >&- 2>&-"),
    ],
)
def test_a_closed_stream_is_no_fault(folder, command, stream):
    """What is written to it is dropped; files are written as ever, and not into each other."""
    done = shell(f'"$TUNE" {command} {stream}', folder)
    assert (done.returncode, done.stderr) == (0, b"")
    if command.startswith("train"):
        saved = folder / "runs" / "one-train"
        assert (saved / "curves.csv").read_text(encoding="utf-8").startswith("epoch,train_loss")
        assert (saved / "weights.safetensors").stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "encoding"),
    [("train one.yaml", "ascii"), ("results run", "latin-1"), ("validate one.yaml", "cp437")],
)
def test_any_encoding_will_do(folder, command, encoding):
    """A character that it lacks is replaced."""
    done = shell(f'"$TUNE" {command}', folder, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding)


def test_a_reader_that_goes_is_no_fault(folder):
    """`| head -1` gets its line, and there is no traceback."""
    done = shell('"$TUNE" results run --format csv | head -1', folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"number,state,")
    done = shell('"$TUNE" train one.yaml | true', folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "runs" / "one-train" / "evaluation.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("command", ["results run", "results run --format json"])
def test_a_full_disk_is_said(folder, command):
    """Output that is lost is not passed over in silence."""
    done = shell(f'"$TUNE" {command} > /dev/full', folder)
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: [Errno 28] No space left on device; make room")


@pytest.mark.skipif(shutil.which("localedef") is None, reason="glibc has it")
def test_files_are_utf_8_in_every_locale(folder, write_idx):
    """What `train` writes in a Latin-1 locale can be read everywhere."""
    locale = folder / "en_US.ISO-8859-1"
    made = shell(f"localedef -i en_US -f ISO-8859-1 {locale}", folder)
    if made.returncode > 1:  # 1: made, with warnings
        pytest.skip(f"no such locale here: {made.stderr.decode()}")
    images = folder / os.fsdecode("donn\u00e9es".encode("latin-1"))
    for part in ("train", "t10k"):
        write_idx(
            images / f"{part}-images-idx3-ubyte", np.arange(8, dtype=np.uint8)[:, None, None]
        )
        write_idx(images / f"{part}-labels-idx1-ubyte", np.arange(8, dtype=np.uint8) % 2)
    text = ONE.replace("digits", "idx, path: donn\u00e9es, validation: 2").replace("64", "2")
    (folder / "one.yaml").write_text(text, encoding="utf-8")
    line = '"$TUNE" train one.yaml --run-dir out && "$TUNE" validate out/experiment.yaml'
    done = shell(line, folder, LOCPATH=str(folder), LC_ALL=locale.name)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "donn\u00e9es" in (folder / "out" / "experiment.yaml").read_text(encoding="utf-8")
