"""Faults from outside: Python runs this at the start of every process that has it on its path.

The product has no hook. Where `TUNE_SOFTMAX_FAULTS` holds a JSON object, chosen modules are
changed as they are imported, in the driver and in Ray's workers, which inherit the environment:

    witness        file to which every epoch trained and every final commit is appended
    epoch_s        seconds that every epoch takes longer
    kill_at        the driver kills itself at this write point, from 1; see `_write_point`
    points         file to which the name of every write point is appended
    dies_with      a worker kills itself whenever its pack holds this trial
    freezes        file; the first worker that trains while it is not there makes it and stops
    raises_with    a pack that holds this trial raises
    fits           a pack of more trials runs out of memory
    clock_s        seconds that Python's clock is wrong by
    ledger_times   file to which the seconds of every outermost call of the ledger are appended
"""

import datetime as dt
import functools
import importlib.util
import json
import os
import signal
import sys
import time
from contextlib import contextmanager

FAULTS = json.loads(os.environ.get("TUNE_SOFTMAX_FAULTS", "{}"))


class _Changer:
    """Finds our modules as Python would, and changes each after it was executed."""

    def __init__(self, changes):
        self._changes = dict(changes)

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 - Python's signature
        """Return the module's own spec, with a loader that changes it."""
        change = self._changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change
        return spec


def _append(path, line):
    """Append a line in one write, which the system does not mix with others'."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _change_packs(module):
    train_epoch = module.Pack.train_epoch

    @functools.wraps(train_epoch)
    def changed(self):
        import torch

        numbers = self.numbers
        if "witness" in FAULTS:
            line = f"epoch {os.getpid()} {self._seed} {self.epoch + 1} "
            _append(FAULTS["witness"], line + ",".join(map(str, numbers)))
        if FAULTS.get("dies_with") in numbers:
            _die()
        if "freezes" in FAULTS:
            try:
                os.close(os.open(FAULTS["freezes"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGSTOP)
        if FAULTS.get("raises_with") in numbers:
            raise ValueError("a fault from outside")
        if len(numbers) > FAULTS.get("fits", len(numbers)):
            raise torch.OutOfMemoryError("a fault from outside")
        time.sleep(FAULTS.get("epoch_s", 0))
        return train_epoch(self)

    module.Pack.train_epoch = changed


_num_points = 0


def _write_point(name):
    global _num_points  # noqa: PLW0603 - one process, one count
    _num_points += 1
    if "points" in FAULTS:
        _append(FAULTS["points"], name)
    if FAULTS.get("kill_at") == _num_points:
        _die()


def _change_ledger(module):
    """Tell the witness of final states, and pass two write points in every transaction.

    One before its commit, and one between its commit and the count beside the file, see
    `_change_file`. What is on the disk after both is what is there before the next commit.
    """
    ledger = module.Ledger
    transaction, record, finish = ledger._transaction, ledger.record, ledger.finish

    @contextmanager
    def changed(self):
        with transaction(self) as batch:
            yield batch
            _write_point("written")

    def changed_record(self, pack, reports):
        record(self, pack, reports)
        _tell_finals([report.number for report in reports if report.state.is_final])

    def changed_finish(self, numbers, state, error=None):
        numbers = list(numbers)
        finish(self, numbers, state, error)
        _tell_finals(numbers if state.is_final else [])

    ledger._transaction = changed
    ledger.record = changed_record
    ledger.finish = changed_finish
    if "ledger_times" in FAULTS:
        _time_methods(ledger)


def _tell_finals(numbers):
    if numbers and "witness" in FAULTS:
        _append(FAULTS["witness"], "final " + ",".join(map(str, numbers)))


def _time_methods(ledger):
    depth = 0

    def timed(method):
        @functools.wraps(method)
        def call(*arguments, **named):
            nonlocal depth
            depth += 1
            started = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                depth -= 1
                if not depth:
                    seconds = time.perf_counter() - started
                    _append(FAULTS["ledger_times"], f"{method.__name__} {seconds:.6f}")

        return call

    for name in ("set_meta", "hand_out", "move", "record", "finish", "event"):
        setattr(ledger, name, timed(getattr(ledger, name)))
    for name in ("meta", "trials", "epochs", "events", "close"):
        setattr(ledger, name, timed(getattr(ledger, name)))


def _change_file(module):
    begin_writing, note_commit = module.SqliteFile.begin_writing, module.SqliteFile.note_commit

    def changed_begin(self, commits):
        begin_writing(self, commits)
        _write_point("begun")

    def changed_note(self, commits):
        _write_point("committed")
        note_commit(self, commits)

    module.SqliteFile.begin_writing = changed_begin
    module.SqliteFile.note_commit = changed_note


def _change_clock(module):
    """Let a module's `datetime` be wrong, whose clock is not Python's `time.time`."""

    class Wrong(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return dt.datetime.now(tz) + dt.timedelta(seconds=FAULTS["clock_s"])

    module.datetime = Wrong


if FAULTS:
    changes = {
        "tune_softmax.engine.pack": _change_packs,
        "tune_softmax.run.ledger": _change_ledger,
        "tune_softmax.run.sqlite": _change_file,
    }
    if "clock_s" in FAULTS:
        right = time.time
        time.time = lambda: right() + FAULTS["clock_s"]
        changes["tune_softmax.run.tables"] = _change_clock
    sys.meta_path.insert(0, _Changer(changes))
