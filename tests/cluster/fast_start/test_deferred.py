"""A deferred module is there for whoever uses it."""

import sys

import pytest

from tune_softmax.cluster.fast_start.deferred import deferred


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a module that can be deferred."""
    (tmp_path / "late.py").write_text("class Named:\n    pass\n\nother = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late"
    sys.modules.pop("late", None)


def test_another_name_brings_the_real_module(module):
    """While it is deferred, only the one class is made up; all else is the module's own."""
    with deferred(module, "Named"):
        import late
        from late import Named

        assert late is sys.modules[module]
        assert late.other == 7
        assert late is not sys.modules[module]
        assert late.Named is sys.modules[module].Named
    assert type(Named()) is sys.modules[module].Named


def test_what_is_not_there_is_not_made_up(module):
    """An unknown name fails as it does with the real module."""
    with deferred(module, "Named"):
        import late

        with pytest.raises(AttributeError, match="nothing"):
            late.nothing  # noqa: B018


def test_who_imports_it_later_has_the_real_one(module):
    """The placeholder goes with the context, and stays with those who have it."""
    with deferred(module, "Named"):
        import late as early
    import late

    assert early is not late
    assert early.other == late.other == 7


def test_a_module_that_is_there_already_is_not_replaced(module):
    """Somebody uses it."""
    import late

    with deferred(module, "Named"):
        assert sys.modules[module] is late
    assert sys.modules[module] is late
