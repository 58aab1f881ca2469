"""Results in words."""

import math

import pytest

from tune_softmax.stats.wording import and_list, count, interval_text, words


@pytest.mark.parametrize(
    ("low", "high", "form", "text"),
    [
        (-0.00125, 0.5, "+.4f", "-0.0013 to +0.5000"),
        (0.25, 0.75, ".2f", "0.25 to 0.75"),
        (-math.inf, math.inf, ".4f", "no interval"),
        (0.1, math.inf, ".4f", "no interval"),
        (math.nan, math.nan, ".4f", "no interval"),
    ],
)
def test_an_interval_is_written_with_both_ends_or_not_at_all(low, high, form, text):
    """An end that is not finite is no end."""
    assert interval_text(low, high, form) == text


@pytest.mark.parametrize(
    ("items", "text"),
    [([], ""), ([7], "7"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_a_list_ends_with_and(items, text):
    """Of one item nothing is joined."""
    assert and_list(items) == text


def test_counts():
    """One has the singular, thousands have commas."""
    assert count(1, "epoch") == "1 epoch"
    assert count(12_000, "epoch") == "12,000 epochs"
    assert count(2, "remedy", "remedies") == "2 remedies"


def test_names():
    """Underscores become spaces; abbreviations keep their capitals."""
    assert [words(name) for name in ("weight_decay", "l1", "baseline")] == [
        "weight decay",
        "L1",
        "baseline",
    ]
