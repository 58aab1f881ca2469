"""What runs on a Ray worker: one Ray Tune trial that trains one pack.

The pack's own trials are judged by the referee at every epoch and leave when it says so; what
happened goes back to the driver, which alone writes the ledger. The driver names the class but
never trains, so torch is imported where training begins: that takes seconds.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from tune_softmax.config import Config
from tune_softmax.metrics import Report, State

if TYPE_CHECKING:
    from tune_softmax.asha import Verdict
    from tune_softmax.data import Dataset
    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.packed import Pack
    from tune_softmax.steps import TrialState
    from tune_softmax.tensors import TensorData

__all__ = ["PackTrainable"]

# Ray's controller takes 10 to 18 ms a report, so epochs shorter than this share one.
REPORT_SECONDS = 0.25
# A pack that is down to this fraction of its trials parks them. Measured with two packs of 32 at
# a time: half of a search's seconds went into packs of three trials or fewer.
PARK_FRACTION = 8


class PackTrainable(tune.Trainable):
    """Trains the pack that its Ray Tune configuration holds.

    The configuration is `{"pack": number, "trials": {trial number: hyperparameters}, "epoch":
    epochs that they have trained already}`; a result is `{"pack": number, "reports":
    [Report, ...], "parked": trials that wait for a fuller pack, "epoch": their last, "error":
    text or None, "done": bool}`.
    """

    _pack: Pack | None

    def setup(
        self,
        config: dict[str, Any],
        dataset: Dataset,
        settings: dict[str, Any],
        referee: Any,  # noqa: ANN401 - an actor handle has no type
    ) -> None:
        """Keep what every pack of this worker needs.

        Args:
            config: See the class.
            dataset: Training and validation images, from Ray's object store.
            settings: `seed`, `metric`, `cpus_per_pack`, and the model's `reduction` and
                `initial_std`.
            referee: The referee's actor handle, or None where nothing is stopped early.
        """
        import torch

        torch.set_num_threads(settings["cpus_per_pack"])
        # A velocity that decays through denormal numbers would slow every product it meets.
        torch.set_flush_denormal(True)
        self._dataset = dataset
        self._settings = settings
        self._referee = referee
        self._data: TensorData | None = None
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pack, and keep the process with its imports and its data."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch, or as many short ones as fit into one report."""
        started = time.perf_counter()
        reports: list[Report] = []
        error = None
        parked: list[int] = []
        try:
            if self._pack is None:
                self._pack = self._build()
            pack = self._pack
            while pack.numbers and not parked and time.perf_counter() - started < REPORT_SECONDS:
                reports += self._train_epoch(pack)
                parked = self._park(pack, reports)
        except Exception:  # noqa: BLE001 - the trial boundary: the traceback is kept with the trials
            error = traceback.format_exc()
        return {
            "pack": self._number,
            "reports": reports,
            "parked": parked,
            "epoch": 0 if self._pack is None else self._pack.epoch,
            "error": error,
            "done": error is not None or bool(parked) or not pack.numbers,
        }

    def _start(self, config: dict[str, Any]) -> None:
        self._number: int = config["pack"]
        self._configs = {int(n): Config(**values) for n, values in config["trials"].items()}
        self._epoch: int = config["epoch"]
        self._pack = None

    def _build(self) -> Pack:
        from tune_softmax.packed import Pack
        from tune_softmax.tensors import to_tensors

        if self._data is None:
            device = "cuda" if ray.get_gpu_ids() else "cpu"
            self._data = to_tensors(self._dataset, device)
        return Pack(
            self._configs,
            self._data,
            seed=self._settings["seed"],
            reduction=self._settings["reduction"],
            initial_std=self._settings["initial_std"],
            epoch=self._epoch,
            states=self._fetch() if self._epoch else None,
        )

    def _fetch(self) -> dict[int, TrialState]:
        import torch

        states = ray.get(self._referee.fetch.remote(list(self._configs)))
        return {
            number: [(torch.tensor(w), torch.tensor(v)) for w, v in layers]
            for number, layers in states.items()
        }

    def _park(self, pack: Pack, reports: list[Report]) -> list[int]:
        """Leave the pack on a rung once few trials are left in it, for they cost as much as many.

        Trials that another pack began go on to their end.
        """
        few = len(self._configs) // PARK_FRACTION
        on_rung = any(report.rung == report.epoch == pack.epoch for report in reports)
        if self._epoch or not on_rung or not 0 < len(pack.numbers) <= few:
            return []
        states = {
            number: [(w.numpy(), v.numpy()) for w, v in pack.state(number)]
            for number in pack.numbers
        }
        ray.get(self._referee.park.remote(states))
        return pack.numbers

    def _train_epoch(self, pack: Pack) -> list[Report]:
        measured = pack.train_epoch()
        epoch = pack.epoch
        final = {n for n in measured if self._configs[n].num_epochs == epoch}
        verdicts = self._judge(epoch, measured, final)
        reports = []
        for number, metrics in measured.items():
            verdict = verdicts.get(number)
            state, error = State.RUNNING, None
            if not metrics.is_finite:
                state, error = State.FAIL, f"diverged: {_diverged(metrics)} in epoch {epoch}"
            elif number in final:
                state = State.COMPLETE
            elif verdict is not None and verdict.stop:
                state = State.PRUNED
            rung = verdict.rung if verdict else None
            reports.append(Report(number, epoch, metrics, state, rung, error))
        pack.drop(report.number for report in reports if report.state.is_final)
        return reports

    def _judge(
        self, epoch: int, measured: dict[int, EpochMetrics], final: set[int]
    ) -> dict[int, Verdict]:
        if self._referee is None:
            return {}
        metric = self._settings["metric"]
        values = {
            n: getattr(metrics, metric) for n, metrics in measured.items() if metrics.is_finite
        }
        verdicts: dict[int, Verdict] = ray.get(self._referee.judge.remote(epoch, values, final))
        return verdicts


def _diverged(metrics: EpochMetrics) -> str:
    return f"train_loss {metrics.train_loss}, validation_loss {metrics.validation_loss}"
