"""Garbage is not looked for while what stays is made, and is afterwards."""

import gc

import pytest

from tune_softmax.gc_paused import lasting


@pytest.fixture(autouse=True)
def _collector_on():
    """Leave the collector on, whatever a test does."""
    yield
    gc.enable()


def fail():
    """Make something in one context within another, and fail."""
    with lasting():
        with lasting():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ZeroDivisionError


def test_the_collector_comes_back_whatever_happens():
    """Also where one context lies in another, and where making something fails."""
    with pytest.raises(ZeroDivisionError):
        fail()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    """Whoever turned it off knows why."""
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()
