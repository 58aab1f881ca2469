"""The forms that benches share: tables, spreads, curves in text, and the conditions they hold."""

import subprocess

import pytest
import torch

from tune_softmax.bench.conditions import Conditions
from tune_softmax.bench.forms import aligned, sparkline, spread


def test_columns_are_aligned():
    """Names stand to the left, figures to the right, and every line is as long."""
    assert aligned([("", "s"), ("a", "10"), ("long", "1")]) == "       s\na     10\nlong   1"


def test_a_spread_is_median_and_extremes():
    """One value has no spread, and says so."""
    assert spread([3, 1, 1000.25], 1) == ("3.0", "1.0 to 1,000.2")
    assert spread([2.0], 2) == ("2.00", "one run")


def test_a_curve_rises_from_zero_to_its_largest_value():
    """Each bar is an eighth; a longer curve keeps the peaks of its parts."""
    assert sparkline([0, 1, 2, 7], 10) == "▁▂▃█"
    assert sparkline([0, 0], 10) == "▁▁"
    assert sparkline([0, 7, 0, 0, 0, 0], 3) == "█▁▁"
    assert len(sparkline(range(1, 1000), 60)) == 60


def test_conditions_name_hardware_versions_commit_and_load():
    """What is not installed is left out."""
    conditions = Conditions.now(["pytest", "no-such-package"])
    assert conditions.packages["torch"] == torch.__version__.partition("+")[0]
    assert conditions.packages["pytest"] == pytest.__version__
    assert "no-such-package" not in conditions.packages
    text = str(conditions)
    for part in (f"commit {conditions.commit}", "cores of", "GiB", "UTC", "load before it"):
        assert part in text


def test_outside_git_the_commit_is_unknown(monkeypatch):
    """A package that was installed from a wheel still measures."""
    failed = subprocess.CompletedProcess([], 128, stdout="", stderr="not a git repository")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: failed)
    assert Conditions.now().commit == "unknown"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert Conditions.now().commit == "unknown"
