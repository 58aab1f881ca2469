"""The section `remedies` of an experiment file: what a study of remedies compares.

Each remedy against overfitting has a list of strengths to choose from, as many as every other one,
so that none is tuned more than the others.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tune_softmax.experiment.problems import Faults, Frozen
from tune_softmax.experiment.space import Domain, HyperparameterReader, Space
from tune_softmax.experiment.yaml_reader import KeyPath, shown

__all__ = ["REMEDIES", "RemedyOptions", "conflicts"]

REMEDIES = ("early_stopping", "weight_decay", "l1", "augmentation", "smaller_model", "more_data")
"""The remedies, in the order in which they are compared."""

_PENALTIES = ("weight_decay", "l1", "augmentation")  # what the unregularized baseline is without
_DEFAULT_STRENGTHS = 4

_Positive = Annotated[float, Field(gt=0)]
_Part = Annotated[float, Field(gt=0, lt=1)]
_UpToAll = Annotated[float, Field(gt=0, le=1)]
_Count = Annotated[int, Field(ge=1)]
_Width = Annotated[int, Field(ge=0)]


def _strengths(annotation: object) -> Callable[[object], object]:
    """Return what reads a list of strengths, and names everything that is wrong with it."""
    reader = HyperparameterReader(annotation)

    def read(value: object) -> object:
        if value == "auto" or isinstance(value, tuple):
            return value  # whether auto is allowed here, the field says
        if not isinstance(value, list):
            raise ValueError(  # noqa: TRY004 - pydantic passes a TypeError on
                f"must be a list of strengths, empty to leave the remedy out, got {shown(value)}"
            )
        faults: list[tuple[KeyPath, str, KeyPath]] = []
        strengths: list[object] = []
        for index, item in enumerate(value):
            try:
                strength = reader.constant(item)
            except ValueError as error:
                faults.append(((index,), str(error), ()))
                continue
            if strength in strengths:
                faults.append(((index,), f"must not repeat, got {shown(item)} again", ()))
            strengths.append(strength)
        if faults:
            raise Faults(faults)
        return tuple(strengths)

    return read


class RemedyOptions(Frozen):
    """Which remedies against overfitting are compared with the space's one configuration."""

    seeds: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=10,
        description="How many seeds every arm is trained with, an integer >= 2 and <= 1000: "
        "search.seed and those after it. A seed draws the training images, the initial weights "
        "and the order.",
    )
    early_stopping: Annotated[tuple[_Count, ...], BeforeValidator(_strengths(_Count))] = Field(
        default=(1, 3, 10, 30),
        description="Patiences: stop after so many epochs without a better validation loss, and "
        "keep the best epoch's weights; integers >= 1, below num_epochs.",
    )
    weight_decay: Annotated[tuple[_Positive, ...], BeforeValidator(_strengths(_Positive))] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1),
        description="L2: lambda > 0 in lambda/2 * ||W||^2; biases are not penalized.",
    )
    l1: Annotated[tuple[_Positive, ...], BeforeValidator(_strengths(_Positive))] = Field(
        default=(1e-5, 1e-4, 1e-3, 1e-2), description="Factors > 0 of ||W||_1."
    )
    augmentation: Annotated[tuple[_UpToAll, ...], BeforeValidator(_strengths(_UpToAll))] = Field(
        default=(0.1, 0.25, 0.5, 1.0),
        description="How far training images are moved anew in every epoch, > 0 and <= 1.",
    )
    smaller_model: Annotated[
        Literal["auto"] | tuple[_Width, ...], BeforeValidator(_strengths(_Width))
    ] = Field(
        default="auto",
        description="Hidden units below the base's, integers >= 0; auto halves them, and ends "
        "with 0, softmax regression.",
    )
    more_data: Annotated[
        Literal["auto"] | tuple[_UpToAll, ...], BeforeValidator(_strengths(_UpToAll))
    ] = Field(
        default="auto",
        description="Fractions of the training images above dataset.train_fraction, <= 1; auto "
        "takes equal factors up to all of them.",
    )
    margin: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        default="auto",
        description="The smallest difference of the test loss that matters, in nats, >= 0; auto "
        "is 1 % of the baseline's loss and at least 0.001, near half of the standard error that a "
        "test set of 10,000 images leaves.",
    )
    less_data: Annotated[tuple[_Part, ...], BeforeValidator(_strengths(_Part))] = Field(
        default=(),
        description="Fractions below dataset.train_fraction, to be seen beside more_data; they "
        "are no remedy.",
    )

    @property
    def num_strengths(self) -> int:
        """How many strengths each remedy has: the tuning budget of all of them."""
        listed = (getattr(self, name) for name in REMEDIES)
        lengths = [len(strengths) for strengths in listed if strengths and strengths != "auto"]
        return lengths[0] if lengths else _DEFAULT_STRENGTHS

    def widths(self, hidden_units: int) -> tuple[int, ...]:
        """Return the hidden units to try instead of the base's; none where there are none."""
        if self.smaller_model != "auto":
            return self.smaller_model
        if not hidden_units:
            return ()
        halved = [hidden_units >> halvings for halvings in range(1, self.num_strengths)]
        return (*halved, 0)

    def fractions(self, train_fraction: float) -> tuple[float, ...]:
        """Return the larger fractions of the images to try; none where the base has all."""
        if self.more_data != "auto":
            return self.more_data
        if train_fraction == 1:
            return ()
        steps = self.num_strengths
        return tuple(
            float(f"{train_fraction ** (1 - step / steps):.3g}") for step in range(1, steps + 1)
        )


def conflicts(
    remedies: RemedyOptions, space: Space, train_fraction: float, metric: str
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong between the section and others, each with the key to put it on.

    Args:
        remedies: The section.
        space: The experiment's, which must hold one configuration without a remedy.
        train_fraction: `dataset.train_fraction`.
        metric: `search.metric`.
    """
    for name, place in space:
        if isinstance(place, Domain):
            text = f"must be one value, since remedies are compared with one base, got {place}"
            yield ("space", name), text
        elif name in _PENALTIES and place:
            text = f"must be 0, since the baseline of remedies has no remedy, got {place}"
            yield ("space", name), text
    if metric != "validation_loss":
        text = f"must be validation_loss, by which remedies choose their strengths, got {metric}"
        yield ("search", "metric"), text
    if isinstance(space.num_epochs, int):
        for index, patience in enumerate(remedies.early_stopping):
            if patience >= space.num_epochs:
                text = f"must be below space.num_epochs, {space.num_epochs}, got {patience}"
                yield ("remedies", "early_stopping", index), text
    yield from _width_conflicts(remedies, space)
    yield from _data_conflicts(remedies, train_fraction)
    yield from _budget_conflicts(remedies)


def _width_conflicts(remedies: RemedyOptions, space: Space) -> Iterator[tuple[KeyPath, str]]:
    base = space.hidden_units
    if not isinstance(base, int):
        return
    if remedies.smaller_model == "auto":
        least = 2 ** (remedies.num_strengths - 1)
        if 0 < base < least:
            text = f"must be a list where the base has fewer than {least} hidden units, got auto"
            yield ("remedies", "smaller_model"), text
        return
    for index, width in enumerate(remedies.smaller_model):
        if width >= base:
            rule = f"below the base's hidden_units, {base}" if base else "left out: base has none"
            yield ("remedies", "smaller_model", index), f"must be {rule}, got {width}"


def _data_conflicts(
    remedies: RemedyOptions, train_fraction: float
) -> Iterator[tuple[KeyPath, str]]:
    if remedies.more_data != "auto":
        for index, fraction in enumerate(remedies.more_data):
            if fraction <= train_fraction:
                text = f"must be above dataset.train_fraction, {train_fraction}, got {fraction}"
                yield ("remedies", "more_data", index), text
    for index, fraction in enumerate(remedies.less_data):
        if fraction >= train_fraction:
            text = f"must be below dataset.train_fraction, {train_fraction}, got {fraction}"
            yield ("remedies", "less_data", index), text


def _budget_conflicts(remedies: RemedyOptions) -> Iterator[tuple[KeyPath, str]]:
    budget = remedies.num_strengths
    listed = {name: getattr(remedies, name) for name in REMEDIES}
    first = next((name for name, s in listed.items() if s and s != "auto"), None)
    for name, strengths in listed.items():
        if strengths and strengths != "auto" and len(strengths) != budget:
            text = (
                f"must have {budget} strengths, as many as {first}, for an equal tuning budget, "
                f"got {len(strengths)}"
            )
            yield ("remedies", name), text
    if not any(listed.values()):
        yield ("remedies",), "must leave a remedy in, got empty lists only"
