"""The disk is full, read-only or damaged; the clock is wrong; two drivers want one folder."""

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import time
import unittest.mock
from contextlib import closing
from functools import partial
from pathlib import Path

from faults.command import Run, await_true, start
from faults.drivers import EPOCH_S, unbroken
from faults.oracle import Oracle, compare, read
from faults.scenarios import UnavailableError, digits, scenario
from tune_softmax.run.ledger import Ledger

__all__ = ["cut", "damage", "flip", "killed_run", "race"]

# A mount namespace of its own, where a small disk can be mounted; needs root.
PRIVATE = ("unshare", "--mount", "--propagation", "private", "sh", "-c")


def _inside(process, *command):
    """Run a command in a process's mount namespace."""
    subprocess.run([*_entering(process), *command], check=True, timeout=30)


def _entering(process):
    return ("nsenter", "--target", str(process.pid), "--mount")


def _disk(place, command):
    """Return a process that holds a mount namespace with a small disk mounted at a folder."""
    place.mkdir(parents=True, exist_ok=True)
    script = f"{command} && echo ready && exec sleep 1800"
    try:
        holder = subprocess.Popen(
            [*PRIVATE, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise UnavailableError(f"a small disk cannot be mounted here: {error}") from error
    if holder.stdout.readline() != "ready\n":
        _, reason = holder.communicate()
        raise UnavailableError(f"a small disk cannot be mounted here: {reason.strip()}")
    return holder


def _view(holder, home):
    """Return a folder as the holder of a mount namespace sees it."""
    return f"/proc/{holder.pid}/root{home}"


@scenario("1", "exit code 4 with the reason; resumable once there is room")
def a_disk_with_64_KiB_left(folder):  # noqa: N802 - a unit's name
    """The run folder's disk runs full in mid-search."""
    place = folder / "disk"
    full = (
        f"free=$(df -k --output=avail {place} | tail -1); "
        f"head -c $(((free - 64) * 1024)) /dev/zero > {place}/ballast"
    )
    mount = f"mount -t tmpfs -o size=2m small {place}"
    return _storage_fault(folder, mount, full, f"rm {place}/ballast")


@scenario("1", "exit code 4 with the reason; resumable once it may be written")
def a_disk_turned_read_only(folder):
    """The run folder's file system goes read-only in mid-search, as ext4 does after an error."""
    place, image = folder / "disk", folder / "image"
    folder.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(24 * 2**20)
    mount = f"mkfs.ext4 -q {image} && mount -o loop {image} {place}"
    mend = f"umount {place} && mount -o loop {image} {place}"
    return _storage_fault(folder, mount, f"mount -o remount,abort {place}", mend)


@scenario("2", "exit code 4 within seconds; what is done is saved or named, and resumable")
def a_run_folder_gone_in_mid_search(folder):
    """The run folder is deleted, or moved; the advice leads to a run with all that was done."""
    seen = []
    for name, harm in (("deleted", shutil.rmtree), ("moved", _move_away)):
        run = Run(folder / name, {"epoch_s": EPOCH_S})
        run.search(digits(folder / name, trials=60, pack=10))
        assert run.await_epochs(12), run.last_text()
        started = time.monotonic()
        harm(run.path)
        run.finish(4, timeout_s=60)
        seconds = time.monotonic() - started
        assert name in run.last_text(), run.last_text()
        (place,) = re.findall(r"go on with `tune-softmax resume (\S+)`", run.last_text())
        run.path = Path(place)
        oracle = Oracle(run)
        oracle.look()
        num_kept = oracle.num_final
        run.faults["epoch_s"] = 0
        run.resume()
        run.finish()
        oracle.complete(60)
        seen.append(f"{name}: exit code 4 after {seconds:.1f} s, {num_kept} trials kept")
    return "; ".join(seen)


def _move_away(path):
    path.rename(path.with_name("elsewhere"))


def _storage_fault(folder, mount, fault, mend):
    experiment = digits(folder, trials=100, pack=10)
    place = folder / "disk"
    holder = _disk(place, mount)
    try:
        run = Run(folder / "run", {"epoch_s": EPOCH_S}, prefix=_entering(holder))
        inside = run.path = place / "run"
        run.search(experiment)
        assert run.await_epochs(12), run.last_text()
        _inside(holder, "sh", "-c", fault)
        run.finish(4)
        message = run.last_text().strip().splitlines()[-1]
        _inside(holder, "sh", "-c", mend)
        oracle = Oracle(run)
        run.path = _outside(run, holder, place)
        oracle.look()
        num_kept = oracle.num_final
        run.path = inside
        run.faults["epoch_s"] = 0
        run.resume()
        run.finish()
        run.path = _outside(run, holder, place)
        oracle.complete(100)
    finally:
        holder.kill()
        holder.wait()
    reason = (message.partition("run.db: ")[2] or message).partition(";")[0]
    return f"exit code 4: {reason}; {num_kept} trials kept; mended and resumed: 100 of 100"


def _outside(run, holder, place):
    """Copy the run out of the small disk, to be read here."""
    copy = run.home / f"copy-{len(list(run.home.glob('copy-*')))}"
    shutil.copytree(f"{_view(holder, place)}/run", copy)
    return copy


def killed_run(folder):
    """Return a run that was killed in mid-search, with its write-ahead log beside it."""
    run = Run(folder / "killed", {"epoch_s": EPOCH_S})
    run.search(digits(folder, trials=60, pack=10))
    assert run.await_epochs(12), run.last_text()
    run.kill()
    return run


@scenario("3 x 5 cuts, 3 x 50 bits", "nothing missing, or named with exit code 5; never silent")
def a_damaged_ledger(folder):
    """run.db or its log cut at 0 to 99 %, or one bit flipped; `check`, `results`, `resume`.

    Of a killed run, and of one whose log was put into the file.
    """
    run = killed_run(folder)
    assert (run.path / "run.db-wal").stat().st_size, "there is no log to damage"
    draw = random.Random(1)  # noqa: S311 - no secret
    files = ("run.db", "run.db-wal")
    cuts = [
        (name, f"cut at {percent} %", partial(cut, percent=percent))
        for name in files
        for percent in (0, 25, 50, 75, 99)
    ]
    flips = [
        (name, "with a bit flipped", partial(flip, draw=draw)) for name in files for _ in range(50)
    ]
    seen = [_seen("killed", run, folder, cuts, flips)]
    whole = run.copy(folder / "whole")
    Ledger.open(whole.path / "run.db", writable=True).close()  # puts its log into the file
    assert not (whole.path / "run.db-wal").exists()
    alone = [[one for one in damages if one[0] == "run.db"] for damages in (cuts, flips)]
    seen.append(_seen("put together", whole, folder, *alone))
    run.faults["epoch_s"] = 0
    run.resume()
    run.finish()
    Oracle(run).complete(60)
    effect = "the others without effect on any trial or epoch"
    return "; ".join([*seen, effect, "undamaged it resumes to 60 of 60"])


def _seen(what, run, folder, cuts, flips):
    num_cuts = damage(run, folder / f"{what} cuts", cuts)
    num_flips = damage(run, folder / f"{what} flips", flips)
    return (
        f"{what}: {num_cuts} of {len(cuts)} cuts and {num_flips} of {len(flips)} bits named with "
        "exit code 5"
    )


def damage(run, folder, damages):
    """Damage copies of a run, each in another way, and see that nothing is missing in silence.

    Args:
        run: The run.
        folder: Where the copies are made.
        damages: Each the name of a file, what is done to it, and the function that does it.

    Returns:
        How many were named; the others had no effect.
    """
    wanted = read(run)
    num_named = 0
    for number, (name, what, change) in enumerate(damages):
        what = f"{name} {what} ({number})"  # noqa: PLW2901 - to say which
        copy = run.copy(folder / str(number))
        change(copy.path / name)
        (code, text), (code_of_results, _) = (
            call("check", copy.path),
            call("results", copy.path),
        )
        if code == 0:
            assert code_of_results == 0, f"{what}: `check` is content, `results` is not"
            assert read(copy) == wanted, f"{what}: other trials, and exit code 0"
        else:
            num_named += 1
            assert code == 5, f"{what}: exit code {code}: {text}"
            assert "run.db" in text or "table " in text, f"{what}: {text}"
            assert code_of_results in {0, 5}, f"{what}: `results` exits with {code_of_results}"
            # What is damaged is not written to: it says so before Ray starts.
            assert call("resume", copy.path)[0] == 5, f"{what}: resumed"
        shutil.rmtree(copy.home)
    return num_named


def cut(path, percent):
    """Cut a file at some per cent of its length."""
    os.truncate(path, path.stat().st_size * percent // 100)


def flip(path, draw):
    """Flip one bit of a file, drawn at random."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def call(*arguments):
    """Call the command line within this process, which saves its start.

    Returns:
        Its exit code, and what it printed as an error.
    """
    from tune_softmax import cli

    with (
        unittest.mock.patch.object(sys, "argv", ["tune-softmax", *map(str, arguments)]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as printed,
    ):
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, printed.getvalue()
    return 0, printed.getvalue()


@scenario("1", "resumes as unbroken: order is by sequence, not by time")
def a_clock_set_back(folder):
    """The driver is killed, and the clock is an hour back when it is resumed."""
    run = Run(folder / "run", {"epoch_s": EPOCH_S})
    experiment = digits(folder, trials=30, pack=6)
    run.search(experiment)
    assert run.await_epochs(8), run.last_text()
    run.kill()
    oracle = Oracle(run)
    oracle.look()
    run.resume(clock_s=-3600)
    run.finish()
    oracle.complete(30)
    twin = unbroken(folder, experiment, 30)
    difference = compare(run, twin)
    assert difference <= 1e-6
    with closing(Ledger.open(run.path / "run.db")) as ledger:
        times = [(at, kind) for at, kind, _ in ledger.events()]
    assert times[-1][0] < times[0][0], times
    assert times[-1][1] == "ended"
    return f"30 of 30 trials, values differ by {difference:g}; the last event an hour older"


@scenario("20", "one of two wins, the other exits with 6 and names it")
def two_drivers_race(folder):
    """Two resumes of one killed run, started at the same moment."""
    run = killed_run(folder)
    for number in range(20):
        last = run.copy(folder / f"copy-{number}")
        race(last)
    last.resume()  # removes what the killed winners' clusters have left
    last.finish()
    return "20 of 20: one went on, the other exited with 6"


def race(run):
    """Start two resumes of one run at the same moment; kill the winner once the other has lost."""
    logs = [run.home / f"printed-{one}.txt" for one in (0, 1)]
    both = [start("resume", run.path, log=log) for log in logs]
    try:
        first = await_true(
            lambda: next((p for p in both if p.poll() is not None), None), "one of two is refused"
        )
        loser = both.index(first)
        text = logs[loser].read_text()
        assert first.returncode == 6, text
        winner = both[1 - loser]
        assert f"process {winner.pid}" in text or "another process" in text, text
        assert winner.poll() is None, logs[1 - loser].read_text()
    finally:
        for process in both:
            process.kill()
            process.wait()
