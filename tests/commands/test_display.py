"""The live line: whole parts, the most important first, at any width."""

import io
from collections import Counter

import pytest
from rich.console import Console

from tune_softmax.commands.display import Display
from tune_softmax.metrics import State
from tune_softmax.scheduler.progress import Snapshot

SNAPSHOT = Snapshot(
    "searching",
    256,
    Counter({State.COMPLETE: 100, State.RUNNING: 7}),
    num_packs=1,
    best=(41, 0.41194),
    seconds=61.0,
    seconds_left=125.0,
)
PARTS = SNAPSHOT.by_importance()


def shown(width, **options):
    """Return what a terminal of so many columns shows of a snapshot."""
    file = io.StringIO()
    options = {"force_terminal": True, "legacy_windows": False} | options
    console = Console(file=file, width=width, markup=False, **options)
    with Display(console) as display:
        display(SNAPSHOT)
        if display._is_live:
            display._live.refresh()
    return file.getvalue()


def test_the_parts_are_ordered_by_importance():
    """The best, the time left, then counts."""
    assert PARTS == [
        "best 0.4119 (trial 41)",
        "about 2:05 left",
        "100 of 256 trials done",
        "100 complete, 0 stopped early, 0 failed, 7 running in 1 pack",
        "1:01",
    ]
    assert Snapshot("starting", 9, Counter()).by_importance() == []


@pytest.mark.parametrize(
    ("width", "num_parts"), [(30, 0), (40, 1), (60, 2), (80, 2), (100, 3), (160, 5)]
)
def test_a_part_is_shown_whole_or_not_at_all(width, num_parts):
    """No number is cut, and nothing wraps."""
    text = shown(width)
    assert "…" not in text
    assert [part in text for part in PARTS[:num_parts]] == [True] * num_parts


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"_environ": {"TERM": "dumb"}}])
def test_where_nothing_is_live_there_are_lines(options):
    """A pipe, and a terminal that can only print."""
    assert shown(200, **options).strip() == str(SNAPSHOT)
