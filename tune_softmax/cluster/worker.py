"""Train packs in a Ray worker: each is one trial of Ray Tune.

Reports go to the driver, which alone writes the ledger. On a rung the pack ends its step and
waits for the driver's decision. Torch takes seconds to import, so it is imported only where a
pack needs more than our own kernels.
"""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from tune_softmax.cluster import fast_start
from tune_softmax.engine.arrays import ArrayData
from tune_softmax.metrics import FinalTest, Report, State
from tune_softmax.scheduler.messages import Decision, PackResult

if TYPE_CHECKING:
    from ray import tune
else:
    tune = fast_start.import_tune()

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune_softmax.config import Precision, Reduction
    from tune_softmax.data.dataset import Dataset, Split
    from tune_softmax.engine.pack import Pack
    from tune_softmax.engine.plan import TrialState
    from tune_softmax.engine.tensors import TensorData
    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.scheduler.agenda import DataView
    from tune_softmax.scheduler.asha import Rungs
    from tune_softmax.scheduler.messages import PackTask

__all__ = ["PackTrainable", "Settings"]

# A report takes 10 ms, during which its pack waits, so epochs shorter than this share one.
REPORT_SECONDS = 0.5
# Torch's message where the host's memory is too small; for a GPU's it has an exception class.
HOST_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True, slots=True)
class Settings:
    """What all packs of a search have in common.

    Attributes:
        cpus_per_pack: Threads.
        reduction: Whether a mini-batch's loss is the mean or the sum over its images.
        initial_std: Standard deviation of the initial weights.
        precision: The precision of products with the images.
        rungs: Where trials are compared; None stops nothing early.
    """

    cpus_per_pack: int
    reduction: Reduction
    initial_std: float
    precision: Precision
    rungs: Rungs | None


class PackTrainable(tune.Trainable):
    """Trains the pack that its Ray Tune configuration holds.

    The configuration is `{"task": PackTask}`; a result is `{"result": PackResult, "done": bool}`.
    """

    _pack: Pack | None
    _start_states: Mapping[int, TrialState]  # which the pack starts from
    _decision: Decision

    def setup(
        self,
        config: dict[str, Any],
        dataset: Dataset,
        test: Split | None,
        settings: Settings,
    ) -> None:
        """Keep what all packs of this worker share, and take the first pack.

        Args:
            config: See the class.
            dataset: Training and validation images, from Ray's object store.
            test: Test images, on which complete trials are evaluated; None: on none.
            settings: What all packs have in common.
        """
        self._dataset = dataset
        self._test = test
        self._settings = settings
        self._data: tuple[tuple[DataView, bool], ArrayData | TensorData] | None = None
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pack; the process keeps its imports and its data."""
        self._start(new_config)
        return True

    def start_from(self, states: Mapping[int, TrialState]) -> None:
        """Start the pack from the states in which other packs have parked its trials."""
        self._start_states = states

    def apply(self, decision: Decision) -> None:
        """Take the driver's decision on a rung; the next step carries it out."""
        self._decision = decision

    def step(self) -> dict[str, Any]:
        """Train one epoch, or short ones until a report is due or a rung is reached."""
        started = time.perf_counter()
        reports: list[Report] = []
        states: dict[int, TrialState] = {}
        error = None
        is_over = is_small = is_on_rung = False
        try:
            if self._pack is None:
                self._pack = self._build()
            decision, self._decision = self._decision, Decision()
            self._pack.drop(decision.stopped)
            if decision.parks:
                states = {number: self._pack.state(number) for number in self._pack.numbers}
                is_over = True
            while not (is_over or is_on_rung) and time.perf_counter() - started < REPORT_SECONDS:
                found = self._train_epoch(self._pack)
                reports += found
                is_on_rung = any(_is_on_rung(report) for report in found)
                is_over = not self._pack.numbers
        except Exception as caught:  # noqa: BLE001 - the trial boundary: the traceback is kept with the trials
            is_small = _is_out_of_memory(caught)
            error = None if is_small else traceback.format_exc()
            is_over = True
        if is_over:
            self._pack = None
        result = PackResult(self._task.pack, reports, error, is_small, self._remark(), states)
        return {"result": result, "done": is_over}

    def _start(self, config: dict[str, Any]) -> None:
        self._task: PackTask = config["task"]
        self._best: dict[int, tuple[float, int, Any]] = {}  # loss, epoch, weights; with patience
        self._pack = None
        self._start_states = {}
        self._decision = Decision()

    def _build(self) -> Pack:
        from tune_softmax.engine.pack import Pack, needs_torch

        task = self._task
        configs = {number: one.config for number, one in task.tasks.items()}
        states = {
            number: [(w.copy(), v.copy()) for w, v in layers]  # Ray's own are read-only
            for number, layers in self._start_states.items()
        }
        self._start_states = {}
        lost = not task.tasks.keys() <= states.keys()
        pack = Pack(
            configs,
            self._view(
                task.view,
                as_tensors=_device() != "cpu"
                or self._settings.cpus_per_pack > 1
                or needs_torch(configs.values(), self._settings.precision),
            ),
            seed=task.view.seed,
            reduction=self._settings.reduction,
            initial_std=self._settings.initial_std,
            precision=self._settings.precision,
            draws={number: one.draw for number, one in task.tasks.items()},
            epoch=0 if lost else task.epoch,
            states=None if lost or not task.epoch else states,
        )
        for _ in range(task.epoch if lost else 0):  # these epochs are recorded already
            pack.train_epoch()
        return pack

    def _remark(self) -> str | None:
        precision, device = self._settings.precision, _device()
        if device == "cuda":
            from tune_softmax.engine.gpu_check import remark_on_fallback

            remark = remark_on_fallback(precision)
            if remark is not None:
                return remark
        if precision == "float32":
            return None
        import torch

        from tune_softmax.engine.products import remark_on

        return remark_on(precision, torch.device(device))

    def _set_up_torch(self) -> None:
        import torch

        torch.set_num_threads(self._settings.cpus_per_pack)
        # Denormal numbers, to which velocities decay, make every product slow.
        torch.set_flush_denormal(True)

    def _view(self, view: DataView, *, as_tensors: bool) -> ArrayData | TensorData:
        """Return the images of a view; they are kept until a pack needs others."""
        from tune_softmax.data import dataset as data
        from tune_softmax.engine.arrays import to_arrays

        wanted = (view, as_tensors)
        if self._data is None or self._data[0] != wanted:
            self._data = None
            dataset = self._dataset
            if view.train_fraction < 1 or view.with_validation:
                dataset = data.view(
                    dataset,
                    seed=view.seed,
                    train_fraction=view.train_fraction,
                    with_validation=view.with_validation,
                )
            if as_tensors:
                self._set_up_torch()
                from tune_softmax.engine.tensors import to_tensors

                self._data = (wanted, to_tensors(dataset, _device()))
            else:
                self._data = (wanted, to_arrays(dataset))
        return self._data[1]

    def _train_epoch(self, pack: Pack) -> list[Report]:
        measured = pack.train_epoch()
        reports = [self._report(pack, number, metrics) for number, metrics in measured.items()]
        pack.drop(report.number for report in reports if report.state is not State.RUNNING)
        return reports

    def _report(self, pack: Pack, number: int, metrics: EpochMetrics) -> Report:
        """Return the report of one trial's last epoch."""
        epoch, rungs = pack.epoch, self._settings.rungs
        is_final = self._task.tasks[number].config.num_epochs == epoch
        state, error, test = State.RUNNING, None, None
        if not metrics.is_finite:
            state, error = State.FAIL, f"diverged: {_diverged(metrics)} in epoch {epoch}"
        elif self._has_lost_patience(pack, number, metrics) or is_final:
            state = State.COMPLETE
            test = None if self._test is None else self._test_result(pack, number)
        rung = rungs.reached(number, epoch) if rungs else None
        return Report(number, epoch, metrics, state, rung, error, test)

    def _has_lost_patience(self, pack: Pack, number: int, metrics: EpochMetrics) -> bool:
        """Return whether early stopping ends a trial here; keep its best weights."""
        patience = self._task.tasks[number].patience
        if not patience:
            return False
        loss = metrics.validation_loss
        if number not in self._best or loss < self._best[number][0]:
            self._best[number] = loss, pack.epoch, pack.weights(number)
        return pack.epoch - self._best[number][1] >= patience

    def _test_result(self, pack: Pack, number: int) -> FinalTest:
        self._set_up_torch()
        from tune_softmax.engine.model import from_layers
        from tune_softmax.engine.reference import evaluate
        from tune_softmax.engine.tensors import from_arrays, to_images

        assert self._test is not None
        assert self._data is not None
        data = self._data[1]
        tensors = from_arrays(data) if isinstance(data, ArrayData) else data
        weights = self._best[number][2] if number in self._best else pack.weights(number)
        model = from_layers(weights).to(tensors.device)
        found = evaluate(model, to_images(self._test, tensors.device), tensors)
        return FinalTest(
            found.loss, found.accuracy, tuple(tuple(row) for row in found.confusion.tolist())
        )


def _is_on_rung(report: Report) -> bool:
    """Return whether the trial waits for a decision."""
    return report.state is State.RUNNING and report.rung == report.epoch


def _device() -> str:
    return "cuda" if ray.get_gpu_ids() else "cpu"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and HOST_OUT_OF_MEMORY in str(error)


def _diverged(metrics: EpochMetrics) -> str:
    return f"train_loss {metrics.train_loss}, validation_loss {metrics.validation_loss}"
