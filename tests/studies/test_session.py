"""What every run needs around its trials; test_search.py has whole runs."""

import subprocess
import sys
from contextlib import closing, nullcontext

import pytest

from tune_softmax.cluster import driver
from tune_softmax.errors import ClusterLostError
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.dispatcher import Job
from tune_softmax.studies import session
from tune_softmax.studies.stopping import Stop

CODE = """
import sys, threading
from collections import Counter
from tune_softmax.metrics import State
from tune_softmax.scheduler.progress import Snapshot
from tune_softmax.studies.session import ResultsImport

shown = []
results = ResultsImport()
observe = results.with_last_pack(shown.append)
for num_packs, running, parked in [(2, 8, 0), (1, 6, 2), (1, 7, 0)]:
    states = Counter({State.RUNNING: running, State.PARKED: parked, State.COMPLETE: 2})
    observe(Snapshot("searching", 10, states, num_packs=num_packs))
before = threading.active_count(), "pandas" in sys.modules
observe(Snapshot("searching", 10, Counter({State.RUNNING: 8, State.PRUNED: 2}), num_packs=1))
observe(Snapshot("searching", 10, Counter({State.PRUNED: 10}), num_packs=1))
results.begin()
started = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
for thread in started:
    thread.join()
print(*before, len(started) <= 1, "pandas" in sys.modules, len(shown))
"""


def test_what_results_need_is_imported_once_the_last_pack_trains_alone():
    """Once, and not while another pack trains, or trials wait or have yet to be handed out."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "False", "True", "True", "5"]


@pytest.mark.parametrize(
    ("num_done", "reason"), [(3, "lost the cluster"), (10, "finished")], ids=["lost", "finished"]
)
def test_the_ledger_says_finished_of_a_finished_search_alone(
    tmp_path, monkeypatch, num_done, reason
):
    """Ray Tune returns as if all were done when it has lost its cluster."""
    monkeypatch.setattr(
        driver, "drive", lambda _job, _cluster: driver.Outcome(num_done, 10, was_stopped=False)
    )
    folder = RunFolder(tmp_path)
    with closing(Ledger.create(folder.ledger, {})) as ledger:
        job = Job(
            experiment=None,
            agenda=None,
            ledger=ledger,
            dataset=None,
            num_places=1,
            should_stop=lambda: False,
            observe=lambda _snapshot: None,
        )
        lost = pytest.raises(ClusterLostError, match="Ray ended after 3 of 10 trials")
        with lost if num_done < 10 else nullcontext():
            session.run(folder, job, None, Stop())
        _, kind, detail = ledger.events()[-1]
    assert (kind, detail["reason"]) == ("ended", reason)
