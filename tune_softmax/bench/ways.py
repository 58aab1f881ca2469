"""The ways of searching that `bench search` holds side by side."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OURS", "PACKAGES", "PEERS", "WAYS", "Way"]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of searching.

    Attributes:
        name: What tables and the command line call it.
        module: Which of `peers` runs it; None: our own command line.
        packages: Whose versions matter, besides our own dependencies.
        is_synchronous: Whether all trials train on each rung before any goes on, so that what it
            has done is told by epochs and not by trials.
    """

    name: str
    module: str | None
    packages: tuple[str, ...] = ()
    is_synchronous: bool = False


OURS = Way("tune_softmax", None)
WAYS = (
    OURS,
    Way("optuna", "optuna_pruner"),
    Way("scikit-learn", "sklearn_halving", ("scikit-learn",), is_synchronous=True),
    Way("syne-tune", "syne_launcher", ("syne-tune",)),
    Way("ray-tutorial", "ray_tutorial"),
)
PACKAGES = tuple(package for way in WAYS for package in way.packages)
PEERS = tuple(way.name for way in WAYS if way is not OURS)
