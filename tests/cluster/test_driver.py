"""How packs get workers and nodes; test_search.py and test_dispatcher.py have the rest."""

import os
import subprocess
import sys

import pytest
from faults.clusters import the_last_node_killed
from faults.workers import a_pack_that_always_dies

from tune_softmax.cluster import fast_start

SHORT_TRIALS = """
import os, sys, time
from pathlib import Path
from tune_softmax.cluster.connect import connect
from tune_softmax.experiment.sections import Resources
from ray import tune
from tune_softmax.cluster.driver import KeepPlacement
from tune_softmax.cluster import fast_start

folder, num_trials, in_rounds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "rounds"

class Short(tune.Trainable):
    def setup(self, config):
        (folder / str(os.getpid())).touch()
        self.seconds = 0
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            if in_rounds:
                self.seconds = 0.5
            else:
                time.sleep(2)

    def reset_config(self, new_config):
        return True

    def step(self):
        while in_rounds and len(list(folder.iterdir())) < 3:  # the other has not begun
            time.sleep(1)
        time.sleep(self.seconds)
        return {"done": True}

class TwoAtATime(tune.search.Searcher):
    given, live = 0, set()

    def set_search_properties(self, *_args, **_spec):
        return True

    def suggest(self, trial_id):
        if self.given == num_trials:
            return tune.search.Searcher.FINISHED
        if len(self.live) == 2 or in_rounds and self.live and self.given % 2 == 0:
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
            search_alg=TwoAtATime(), num_samples=-1, reuse_actors=True, scheduler=KeepPlacement()
        ),
        run_config=tune.RunConfig(
            storage_path=str(cluster.folder / "results"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with fast_start.tuning():
        assert len(tuner.fit()) == num_trials
"""


def workers(folder, num_trials, manner):
    """Run short trials, two at a time, and return the workers in which they ran."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TRIALS, str(folder), str(num_trials), manner],
        env=os.environ | {fast_start.SWITCH: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr.strip() == "this machine has one CPU":
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return {path.name for path in folder.iterdir()} - {"first"}


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_starts_late_is_waited_for(tmp_path):
    """The other one has ended many packs by then, and takes none of the late one's."""
    assert len(workers(tmp_path, 120, "at once")) == 2


@pytest.mark.slow
@pytest.mark.ray
def test_workers_wait_for_their_next_pack(tmp_path):
    """Both have none until the other's has ended; none is replaced by a new one."""
    assert len(workers(tmp_path, 8, "rounds")) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_without_a_node_says_what_it_waits_for(tmp_path):
    """The last node that can run a pack dies, and another joins; on a real cluster."""
    assert "60 of 60 trials" in the_last_node_killed(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_of_a_pack_that_kills_its_worker_one_trial_fails(tmp_path):
    """The trial that does it; its neighbours complete."""
    assert "trial 5 FAILs" in a_pack_that_always_dies(tmp_path)
