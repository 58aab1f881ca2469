"""Ray Tune without pandas and Ray Data, and how it comes to the real ones all the same."""

import subprocess
import sys

import pytest

from tune_softmax.lean_tune import _only_named


def run(code):
    """Run code in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_worker_loads_neither_pandas_nor_ray_data():
    """Ray Tune names one class of each in annotations, which is no reason to import them."""
    code = """
import sys
import tune_softmax.worker, tune_softmax.driver
print(*sorted({"pandas", "ray.data", "ray.tune", "torch"} & sys.modules.keys()))
"""
    assert run(code) == ["ray.tune"]


def test_the_real_modules_are_there_for_whoever_uses_them():
    """After Ray Tune is imported, also for Ray Tune itself, and for a name that it took."""
    code = """
import tune_softmax.lean_tune
from ray.tune.analysis import experiment_analysis
made = experiment_analysis.DataFrame({"a": [1, 2]})
import pandas, ray
print(type(made) is pandas.DataFrame, len(made))
print(experiment_analysis.pd.DataFrame is pandas.DataFrame, experiment_analysis.pd.NA is pandas.NA)
print(ray.data.Dataset.__module__)
"""
    assert run(code) == ["True", "2", "True", "True", "ray.data.dataset"]


def test_a_module_that_is_loaded_already_stays():
    """Whoever imported pandas before us keeps it, and so does Ray Tune."""
    code = """
import pandas
import tune_softmax.lean_tune
from ray.tune.analysis import experiment_analysis
print(experiment_analysis.DataFrame is pandas.DataFrame)
"""
    assert run(code) == ["True"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a module that says when it is loaded."""
    (tmp_path / "put_off.py").write_text("class Named:\n    pass\n\nother = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "put_off"
    sys.modules.pop("put_off", None)


def test_another_name_brings_the_real_module(module):
    """While it is put off, only the one class is made up; all else is the module's own."""
    with _only_named(module, "Named"):
        import put_off
        from put_off import Named

        assert put_off is sys.modules[module]
        assert put_off.other == 7
        assert put_off is not sys.modules[module]
        assert put_off.Named is sys.modules[module].Named
    assert type(Named()) is sys.modules[module].Named


def test_what_is_not_there_is_not_made_up(module):
    """An unknown name fails as it does with the real module."""
    with _only_named(module, "Named"):
        import put_off

        with pytest.raises(AttributeError, match="nothing"):
            put_off.nothing  # noqa: B018
