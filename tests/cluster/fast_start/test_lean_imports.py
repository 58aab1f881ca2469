"""Ray Tune without pandas and Ray Data, and how it comes to the real ones all the same."""

import os
import subprocess
import sys

from tune_softmax.cluster.fast_start import SWITCH


def run(code, switch="1"):
    """Run code in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {SWITCH: switch},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_worker_loads_neither_pandas_nor_ray_data():
    """Ray Tune names one class of each in annotations."""
    code = """
import sys
import tune_softmax.cluster.worker, tune_softmax.cluster.driver
heavy = {"pandas", "ray.data", "ray.tune", "torch"}
print(*sorted(heavy & sys.modules.keys()))
"""
    assert run(code) == ["ray.tune"]
    assert run(code, switch="0") == ["pandas", "ray.data", "ray.tune"]


def test_the_real_modules_are_there_for_whoever_uses_them():
    """After Ray Tune is imported, also for Ray Tune itself, and for a name that it took."""
    code = """
from tune_softmax.cluster import fast_start
fast_start.import_tune()
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
from tune_softmax.cluster import fast_start
fast_start.import_tune()
from ray.tune.analysis import experiment_analysis
print(experiment_analysis.DataFrame is pandas.DataFrame)
"""
    assert run(code) == ["True"]


def test_ray_tune_is_imported_in_whole_where_the_fast_way_fails():
    """A release of Ray Tune may use what is deferred; the log says so."""
    code = """
import logging, sys
from contextlib import contextmanager
from tune_softmax.cluster import fast_start
from tune_softmax.cluster.fast_start import lean_imports

@contextmanager
def broken():
    sys.modules["ray.air"] = None  # so that the import fails half way
    yield

lean_imports.without_annotations = broken
logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stdout)
tune = fast_start.import_tune()
print(tune.__name__, "pandas" in sys.modules, issubclass(tune.Trainable, object))
"""
    *words, name, has_pandas, is_whole = run(code)
    assert (name, has_pandas, is_whole) == ("ray.tune", "True", "True")
    assert "TUNE_SOFTMAX_FAST_START=0" in words
