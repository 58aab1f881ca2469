"""What Ray costs, measured in a fresh process: its start, a worker, a report, its end.

`python -m tune_softmax.bench.probes` prints one JSON object of seconds by part.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import ray

from tune_softmax.cluster import fast_start
from tune_softmax.cluster.connect import connect
from tune_softmax.experiment.sections import Resources

if TYPE_CHECKING:
    from ray import tune
else:
    tune = fast_start.import_tune()

__all__ = ["main"]

NUM_REPORTS = 100


class _Worker:
    """An actor of one core, as a pack's is."""

    def answer(self) -> None:
        """Say that it is there."""

    def import_torch(self) -> None:
        """Import what training needs."""
        import torch  # noqa: F401


class _Reporter(tune.Trainable):
    """Reports at once, again and again, and how long all of it took."""

    def setup(self, config: dict[str, Any]) -> None:  # noqa: ARG002 - Ray's signature
        """Begin."""
        self._started = 0.0

    def step(self) -> dict[str, Any]:
        """Report."""
        if self.iteration == 0:
            self._started = time.perf_counter()
        seconds = time.perf_counter() - self._started
        return {"seconds": seconds, "done": self.iteration == NUM_REPORTS}


def main() -> None:
    """Measure and print."""
    parts = {}
    started = time.perf_counter()
    with connect(None, Resources()) as connecting:
        cluster = connecting.result()
        parts["Ray: start"] = _lap(started)
        started = time.perf_counter()
        actor = ray.remote(num_cpus=1)(_Worker).remote()
        ray.get(actor.answer.remote())
        parts["Ray: first worker"] = _lap(started)
        started = time.perf_counter()
        ray.get(actor.import_torch.remote())
        parts["Ray: torch in a worker"] = _lap(started)
        ray.kill(actor)
        parts["Ray Tune: one report"] = _time_reports(str(cluster.folder))
        started = time.perf_counter()
    parts["Ray: stop"] = _lap(started)
    print(json.dumps(parts))


def _lap(started: float) -> float:
    return time.perf_counter() - started


def _time_reports(folder: str) -> float:
    """Return seconds from one report of one trial to its next, the controller's work included."""
    tuner = tune.Tuner(
        _Reporter,
        run_config=tune.RunConfig(
            storage_path=folder,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    with fast_start.tuning():
        seconds: float = tuner.fit()[0].metrics["seconds"]
    return seconds / NUM_REPORTS


if __name__ == "__main__":
    main()
