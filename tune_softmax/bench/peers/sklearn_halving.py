"""scikit-learn's successive halving, `HalvingRandomSearchCV`, over `SGDClassifier`.

After https://scikit-learn.org/stable/modules/grid_search.html#successive-halving, with epochs
(`max_iter`) as the resource. `SGDClassifier` fits one class against the others, knows neither
batches nor momentum, and is fitted anew on every rung.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import loguniform
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - lets the next line work
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import HalvingRandomSearchCV
from torchvision.datasets import FashionMNIST

from tune_softmax.bench.task import (
    BATCH_SIZES,
    GRACE_PERIOD,
    LEARNING_RATES,
    NUM_EPOCHS,
    NUM_WORKERS,
    REDUCTION_FACTOR,
    WEIGHT_DECAYS,
    Task,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tune_softmax.bench.trace import Trace

__all__ = ["Score", "main"]


class Score:
    """The negative validation loss, as scikit-learn wants it, reported to a trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(
        self, model: SGDClassifier, images: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> float:
        """Judge one fitted candidate."""
        loss = float(log_loss(labels, model.predict_proba(images), labels=model.classes_))
        candidate = f"{model.eta0:.6g} {model.alpha:.6g}"
        self._trace.add(candidate, loss, model.max_iter)
        return -loss


def main() -> None:
    """Run the task that the command line names."""
    task = Task.from_command_line()
    source = FashionMNIST(str(task.images), train=True)
    images = source.data.numpy().reshape(len(source), -1).astype(np.float32) / 255
    search = HalvingRandomSearchCV(
        SGDClassifier(loss="log_loss", learning_rate="constant", tol=None, random_state=task.seed),
        {
            # A batch is one image here, so that the rates are those of the space for each image.
            "eta0": loguniform(
                LEARNING_RATES[0] / max(BATCH_SIZES), LEARNING_RATES[1] / min(BATCH_SIZES)
            ),
            "alpha": loguniform(*WEIGHT_DECAYS),
        },
        n_candidates=task.num_trials,
        resource="max_iter",
        min_resources=GRACE_PERIOD,
        max_resources=NUM_EPOCHS,
        factor=REDUCTION_FACTOR,
        scoring=Score(task.trace),
        return_train_score=False,
        cv=[task.split()],
        refit=False,
        n_jobs=NUM_WORKERS,
        random_state=task.seed,
    )
    search.fit(images, source.targets.numpy())


if __name__ == "__main__":
    main()
