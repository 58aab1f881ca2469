"""Ray Tune without pandas and Ray Data, and how it comes to the real ones all the same."""

import subprocess
import sys


def run(code):
    """Run code in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_worker_loads_neither_pandas_nor_ray_data_nor_layouts():
    """Ray Tune names one class of each in annotations; of rich it has an output that is off."""
    code = """
import sys
import tune_softmax.cluster.worker, tune_softmax.cluster.driver
heavy = {"pandas", "ray.data", "ray.tune", "rich.layout", "torch"}
print(*sorted(heavy & sys.modules.keys()))
"""
    assert run(code) == ["ray.tune"]


def test_the_program_leaves_ray_trains_second_version_out():
    """In its own process, and in its workers, which have its environment."""
    code = """
import os, sys
from tune_softmax import cli

def main():
    import tune_softmax.cluster.driver
    print("ray.train" in sys.modules, "ray.train.v2.api.config" in sys.modules)
    print(os.environ["RAY_TRAIN_V2_ENABLED"])

cli.main = main
cli.program()
"""
    assert run(code) == ["True", "False", "0"]


def test_a_driver_connects_without_what_ray_names_alone():
    """Neither importing Ray nor starting a node uses what takes a third of Ray's import."""
    code = """
import sys
from tune_softmax.cluster import connect
import tune_softmax.cluster.driver
from tune_softmax.experiment.experiment import Resources
with connect(None, Resources()) as connecting:
    connecting.result()
    print(*sorted({"requests", "jsonschema", "ray"} & sys.modules.keys()))
"""
    assert run(code) == ["ray"]


def test_the_real_modules_are_there_for_whoever_uses_them():
    """After Ray Tune is imported, also for Ray Tune itself, and for a name that it took."""
    code = """
import tune_softmax.cluster.fast_start.lean_tune
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
import tune_softmax.cluster.fast_start.lean_tune
from ray.tune.analysis import experiment_analysis
print(experiment_analysis.DataFrame is pandas.DataFrame)
"""
    assert run(code) == ["True"]
