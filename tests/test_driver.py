"""How packs get workers from Ray Tune; test_search.py and test_dispatcher.py have the rest."""

import subprocess
import sys

import pytest

SHORT_TRIALS = """
import os, sys, time
from pathlib import Path
from tune_softmax.cluster import connect, in_running_workers
from tune_softmax.driver import _Patient
from tune_softmax.experiment import Resources
from tune_softmax.lean_tune import tune, without_ray_data

folder = Path(sys.argv[1])

class Short(tune.Trainable):
    def setup(self, config):
        (folder / str(os.getpid())).touch()
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(2)

    def reset_config(self, new_config):
        return True

    def step(self):
        return {"done": True}

class TwoAtATime(tune.search.Searcher):
    given, live = 0, set()

    def set_search_properties(self, *_args, **_spec):
        return True

    def suggest(self, trial_id):
        if self.given == 200:
            return tune.search.Searcher.FINISHED
        if len(self.live) == 2:
            return None
        self.given += 1
        self.live.add(trial_id)
        return {}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.live.discard(trial_id)

resources = Resources(max_concurrent_packs=2)
with connect(None, resources) as connecting:
    cluster = connecting.result()
    if cluster.num_packs(resources) < 2:
        sys.exit("this machine has one CPU")
    tuner = tune.Tuner(
        tune.with_resources(Short, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=TwoAtATime(), num_samples=-1, reuse_actors=True, scheduler=_Patient()
        ),
        run_config=tune.RunConfig(
            storage_path=str(cluster.folder / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with in_running_workers(), without_ray_data():
        assert len(tuner.fit()) == 200
"""


@pytest.mark.ray
def test_a_worker_that_starts_late_is_waited_for(tmp_path):
    """The other one has ended many packs by then, and takes none of the late one's."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TRIALS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.strip() == "this machine has one CPU":
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert len({path.name for path in tmp_path.iterdir()} - {"first"}) == 2
