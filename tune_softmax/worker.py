"""What runs on a Ray worker: one Ray Tune trial that trains one pack.

The pack's own trials are judged by the referee on their rungs and leave when it says so; what
happened goes back to the driver, which alone writes the ledger. Torch takes seconds to import, so
it is imported where our own kernels do not do what a pack needs.
"""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from tune_softmax.arrays import ArrayData
from tune_softmax.lean_tune import tune
from tune_softmax.metrics import FinalTest, Report, State

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tune_softmax.agenda import Task, View
    from tune_softmax.asha import Rungs
    from tune_softmax.config import Precision, Reduction
    from tune_softmax.data import Dataset, Split
    from tune_softmax.metrics import EpochMetrics
    from tune_softmax.packed import Pack
    from tune_softmax.steps import TrialState
    from tune_softmax.tensors import TensorData

__all__ = ["PackResult", "PackTask", "PackTrainable", "Settings"]

# A report costs Ray 2 ms and the ledger a commit, so epochs shorter than this share one.
REPORT_SECONDS = 0.25
# What torch says where the host's memory ends; of the GPU's it has an exception of its own.
HOST_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True, slots=True)
class PackTask:
    """What a worker is to train.

    Attributes:
        pack: The pack's number.
        tasks: Its trials by number, all of one view.
        epoch: How many epochs the trials have behind them, in another pack.
        recorded: Up to which epoch an earlier attempt has reported; it parked nothing there.
    """

    pack: int
    tasks: Mapping[int, Task]
    epoch: int = 0
    recorded: int = 0

    @property
    def view(self) -> View:
        """What its trials train on."""
        return next(iter(self.tasks.values())).view


@dataclass(frozen=True, slots=True)
class Settings:
    """What all packs of a search have in common.

    Attributes:
        metric: By which ASHA judges.
        cpus_per_pack: Threads.
        reduction: Whether a mini-batch's loss is the mean or the sum over its images.
        initial_std: Standard deviation of the initial weights.
        precision: In which products with the images are computed.
        parks_at: A pack that is down to so many trials on a rung parks them.
        rungs: Where the referee compares trials, or None where nothing is stopped early.
    """

    metric: str
    cpus_per_pack: int
    reduction: Reduction
    initial_std: float
    precision: Precision
    parks_at: int
    rungs: Rungs | None


@dataclass(frozen=True, slots=True)
class PackResult:
    """What a worker tells the driver.

    Attributes:
        pack: The pack's number.
        reports: Of its trials' epochs, in their order.
        error: The traceback, if the pack raised.
        out_of_memory: Whether memory was too little for a pack of this size.
        remark: What to tell who asked for it, if there is anything.
    """

    pack: int
    reports: list[Report]
    error: str | None = None
    out_of_memory: bool = False
    remark: str | None = None


class PackTrainable(tune.Trainable):
    """Trains the pack that its Ray Tune configuration holds.

    The configuration is `{"task": PackTask}`; a result is `{"result": PackResult, "done": bool}`.
    """

    _pack: Pack | None

    def setup(
        self,
        config: dict[str, Any],
        dataset: Dataset,
        test: Split | None,
        settings: Settings,
        referee: Any,  # noqa: ANN401 - an actor handle has no type
    ) -> None:
        """Keep what every pack of this worker needs.

        Args:
            config: See the class.
            dataset: Training and validation images, from Ray's object store.
            test: Test images to evaluate trials on at their end, or None where that is not asked.
            settings: What all packs have in common.
            referee: The referee's actor handle, or None where nothing is stopped early.
        """
        self._dataset = dataset
        self._test = test
        self._settings = settings
        self._referee = referee
        self._data: tuple[tuple[View, bool], ArrayData | TensorData] | None = None
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
        is_over = is_small = False
        try:
            if self._pack is None:
                self._pack = self._build()
            while not is_over and time.perf_counter() - started < REPORT_SECONDS:
                reports += self._train_epoch(self._pack)
                is_over = not self._pack.numbers
        except Exception as caught:  # noqa: BLE001 - the trial boundary: the traceback is kept with the trials
            is_small = _is_out_of_memory(caught)
            error = None if is_small else traceback.format_exc()
            is_over = True
        if is_over:
            self._pack = None
        result = PackResult(self._task.pack, reports, error, is_small, self._remark())
        return {"result": result, "done": is_over}

    def _start(self, config: dict[str, Any]) -> None:
        self._task: PackTask = config["task"]
        self._best: dict[int, tuple[float, int, Any]] = {}  # loss, epoch, weights; with patience
        self._pack = None

    def _build(self) -> Pack:
        from tune_softmax.packed import Pack, needs_torch

        task = self._task
        configs = {number: one.config for number, one in task.tasks.items()}
        states = self._fetch() if task.epoch else {}
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
        for _ in range(task.epoch if lost else 0):  # what was recorded already, once more
            pack.train_epoch()
        return pack

    def _remark(self) -> str | None:
        if self._settings.precision == "float32":
            return None
        import torch

        from tune_softmax.products import remark_on

        return remark_on(self._settings.precision, torch.device(_device()))

    def _set_up_torch(self) -> None:
        import torch

        torch.set_num_threads(self._settings.cpus_per_pack)
        # A velocity that decays through denormal numbers would slow every product it meets.
        torch.set_flush_denormal(True)

    def _view(self, view: View, *, as_tensors: bool) -> ArrayData | TensorData:
        """Return the images that the pack trains on, kept until a pack trains on others."""
        from tune_softmax import data
        from tune_softmax.arrays import to_arrays

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
                from tune_softmax.tensors import to_tensors

                self._data = (wanted, to_tensors(dataset, _device()))
            else:
                self._data = (wanted, to_arrays(dataset))
        return self._data[1]

    def _fetch(self) -> dict[int, TrialState]:
        states = ray.get(self._referee.fetch.remote(list(self._task.tasks)))
        return {
            number: [(w.copy(), v.copy()) for w, v in layers]  # Ray's own are read-only
            for number, layers in states.items()
        }

    def _train_epoch(self, pack: Pack) -> list[Report]:
        measured = pack.train_epoch()
        states = self._states(pack, measured)
        parked = self._park(pack, states)
        reports = []
        for number, metrics in measured.items():
            state, rung, error = states[number]
            test = None
            if state is State.COMPLETE and self._test is not None:
                test = self._test_result(pack, number)
            state = State.PARKED if number in parked else state
            reports.append(Report(number, pack.epoch, metrics, state, rung, error, test))
        pack.drop(report.number for report in reports if report.state is not State.RUNNING)
        return reports

    def _states(
        self, pack: Pack, measured: dict[int, EpochMetrics]
    ) -> dict[int, tuple[State, int | None, str | None]]:
        """Return each trial's state after the epoch, its highest rung, and why it failed."""
        epoch = pack.epoch
        rungs = self._settings.rungs
        final = {n for n in measured if self._task.tasks[n].config.num_epochs == epoch}
        stopped = self._judge(epoch, measured, final)
        states: dict[int, tuple[State, int | None, str | None]] = {}
        for number, metrics in measured.items():
            state, error = State.RUNNING, None
            if not metrics.is_finite:
                state, error = State.FAIL, f"diverged: {_diverged(metrics)} in epoch {epoch}"
            elif self._has_lost_patience(pack, number, metrics) or number in final:
                state = State.COMPLETE
            elif number in stopped:
                state = State.PRUNED
            states[number] = state, rungs.reached(number, epoch) if rungs else None, error
        return states

    def _judge(
        self, epoch: int, measured: dict[int, EpochMetrics], final: set[int]
    ) -> Collection[int]:
        """Return who ends on a rung; the referee is another process, and asked on rungs alone."""
        rungs, metric = self._settings.rungs, self._settings.metric
        values = {
            number: getattr(metrics, metric)
            for number, metrics in measured.items()
            if rungs and metrics.is_finite and epoch in rungs.of(number)
        }
        if not values:
            return ()
        stopped: set[int] = ray.get(self._referee.judge.remote(epoch, values, final))
        return stopped

    def _has_lost_patience(self, pack: Pack, number: int, metrics: EpochMetrics) -> bool:
        """Say whether early stopping ends a trial here, and keep its best weights."""
        patience = self._task.tasks[number].patience
        if not patience:
            return False
        loss = metrics.validation_loss
        if number not in self._best or loss < self._best[number][0]:
            self._best[number] = loss, pack.epoch, pack.weights(number)
        return pack.epoch - self._best[number][1] >= patience

    def _park(
        self, pack: Pack, states: Mapping[int, tuple[State, int | None, str | None]]
    ) -> set[int]:
        """Leave the pack on a rung once few trials are left in it: they cost as much as many."""
        left = {number for number, (state, _, _) in states.items() if state is State.RUNNING}
        on_rung = any(rung == pack.epoch for _, rung, _ in states.values())
        is_new = pack.epoch > self._task.recorded
        if not is_new or not on_rung or not 0 < len(left) <= self._settings.parks_at:
            return set()
        ray.get(self._referee.park.remote({number: pack.state(number) for number in left}))
        return left

    def _test_result(self, pack: Pack, number: int) -> FinalTest:
        self._set_up_torch()
        from tune_softmax.model import from_layers
        from tune_softmax.tensors import from_arrays, to_images
        from tune_softmax.training import evaluate

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
