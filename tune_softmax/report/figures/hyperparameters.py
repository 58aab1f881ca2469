"""Optuna's figures of hyperparameters, from a study rebuilt from the dataframes.

Stopped trials are in it as PRUNED with their intermediate values, failed ones as FAIL, so that
Optuna judges by complete trials alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tune_softmax.errors import DamagedRunError
from tune_softmax.metrics import State
from tune_softmax.report.figures.base import HEIGHT, describe, range_of_the_better, spec_of
from tune_softmax.report.measures import completed
from tune_softmax.report.theme import BLUE, GREY, RANKS, SURFACE, VERMILION, template

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import plotly.graph_objects as go

    from tune_softmax.experiment.experiment import Experiment

__all__ = ["contour", "importance", "parallel_coordinates", "slices", "study"]

_BAR = {"thickness": 10, "outlinewidth": 0, "xpad": 4}
MAX_CONTOUR, MAX_LINES, MAX_JUDGED = (
    60,
    150,
    1000,
)  # trials; a contour's grid has the square of the first in cells


def study(trials: pd.DataFrame, epochs: pd.DataFrame, experiment: Experiment) -> optuna.Study:
    """Rebuild Optuna's study of a search.

    Args:
        trials: One row a trial, as `results.load(run).trials`.
        epochs: One row a trial and epoch, as `results.load(run).epochs`.
        experiment: Its space and metric.

    Returns:
        A study in memory, its trials in the order of `trials`.

    Raises:
        DamagedRunError: A trial's hyperparameters are not in the space.
    """
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import TrialState, create_trial

    from tune_softmax.scheduler.study import distribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, metric = experiment.space, experiment.search.metric
    distributions = {name: distribution(domain) for name, domain in space.searched.items()}
    curves = {
        number: dict(zip(part["epoch"].tolist(), part[metric].tolist(), strict=True))
        for number, part in epochs.groupby("trial")
    }
    states = {State.PRUNED: TrialState.PRUNED, State.FAIL: TrialState.FAIL}
    whole = set(completed(trials, "value")["number"])
    rebuilt = []
    columns = ["number", "state", "value", *distributions]
    for number, state, value, *row in trials[columns].astype(object).itertuples(index=False):
        params = dict(zip(distributions, row, strict=True))
        wrong = [name for name, given in params.items() if not space.contains(name, given)]
        if wrong:
            raise DamagedRunError(
                f"trial {number}: {wrong[0]} is {params[wrong[0]]!r}, which is not in the space "
                "of experiment.yaml; restore the folder from a copy"
            )
        lost = TrialState.FAIL if state == State.COMPLETE else TrialState.RUNNING
        rebuilt.append(
            create_trial(
                state=TrialState.COMPLETE if number in whole else states.get(state, lost),
                value=value if number in whole else None,
                params=params,
                distributions=distributions,
                intermediate_values=curves.get(number),
            )
        )
    is_min = experiment.search.mode == "min"
    return _study_of(rebuilt, StudyDirection.MINIMIZE if is_min else StudyDirection.MAXIMIZE)


def importance(study: optuna.Study, metric: str = "objective value") -> go.Figure:
    """Draw how much each hyperparameter decides over being among the best complete trials.

    PED-ANOVA, Optuna's default (Watanabe, Bansal and Hutter 2023); the importances add up to 1.
    More than 1,000 complete trials are thinned to that many evenly spaced ranks, because Optuna
    copies the study for every bar.

    Args:
        study: As `study` rebuilds it, with two or more complete trials.
        metric: The name of what is minimized or maximized.
    """
    from optuna.visualization import plot_param_importances

    thin = _thinned(study, MAX_JUDGED)
    spec = spec_of(plot_param_importances(thin, target_name=metric))
    (bars,) = spec["data"]
    bars["marker"] = {"color": BLUE}
    shares = list(zip(bars["y"], bars["x"], strict=True))[::-1]
    longest = max(share for _, share in shares)
    parts = ", ".join(f"{name} {share:.2f}" for name, share in shares)
    axis = {"title": {"text": "importance"}, "range": [0, 1.15 * longest or 1.0]}  # and its text
    spec["layout"] |= {"showlegend": False, "yaxis": {}, "xaxis": axis}
    text = f"Hyperparameter importance, from {len(thin.trials)} complete trials: {parts}."
    return _in_our_looks(spec, "Hyperparameter importance", text, 110 + 34 * len(shares))


def parallel_coordinates(study: optuna.Study, metric: str = "objective value") -> go.Figure:
    """Draw each complete trial as a line through its hyperparameters and its value.

    Of more than 150 complete trials, 150 are drawn: the best, the worst, and evenly spaced
    ranks between.
    """
    from optuna.visualization import plot_parallel_coordinate

    thin = _thinned(study, MAX_LINES)
    spec = spec_of(plot_parallel_coordinate(thin, target_name=metric))
    *lines, scale = spec["data"]
    worst_first = _mode(study) == "max"
    for trace in lines:
        trace.pop("customdata", None)  # what the axes say, once more for each line
        trace["hoverinfo"] = "skip"
        height = trace["y"][0]  # of the value on its axis, 0 to 1
        trace["line"]["color"] = _between(VERMILION, GREY, 1 - height if worst_first else height)
    colors = [[0, GREY], [1, VERMILION]] if worst_first else [[0, VERMILION], [1, GREY]]
    scale["marker"] |= {"colorscale": colors, "reversescale": False}
    scale["marker"]["colorbar"] |= _BAR
    for annotation in spec["layout"]["annotations"]:
        annotation["font"] = {"size": 11}
    names = [metric, *sorted(thin.trials[0].params)]
    ticks = [name.replace("_", "<br>").replace(" ", "<br>") for name in names]
    span = [-0.6, len(names) - 0.8]  # room for the numbers left of the first axis
    spec["layout"]["xaxis"] |= {"ticktext": ticks, "tickangle": 0, "range": span}
    text = f"Parallel coordinates of {len(thin.trials)} trials: {metric} and hyperparameters."
    return _in_our_looks(spec, "Parallel coordinates", text, 420)


def slices(study: optuna.Study, name: str, metric: str = "objective value") -> go.Figure:
    """Draw the complete trials' values against one hyperparameter, later trials redder."""
    from optuna.visualization import plot_slice

    spec = spec_of(plot_slice(study, params=[name], target_name=metric))
    (trace,) = spec["data"]
    spec["layout"]["yaxis"]["range"] = range_of_the_better(trace["y"], _mode(study))
    trace["marker"] |= {"colorscale": RANKS, "size": 6, "colorbar": {"title": "trial"} | _BAR}
    text = f"Slice: {metric} of {len(trace['x'])} complete trials against {name}."
    return _in_our_looks(spec, f"Slice of {name}", text, 300)


def contour(
    study: optuna.Study, one: str, other: str, metric: str = "objective value"
) -> go.Figure:
    """Draw the value over two hyperparameters, interpolated between complete trials.

    Of more than 60 complete trials, 60 are used: the best, the worst, and evenly spaced ranks
    between.
    """
    from optuna.visualization import plot_contour

    thin = _thinned(study, MAX_CONTOUR)
    spec = spec_of(plot_contour(thin, params=[one, other], target_name=metric))
    surface, *marks = spec["data"]
    values = [trial.value for trial in thin.trials if trial.value is not None]
    low, high = range_of_the_better(values, _mode(study))
    surface |= {
        "colorscale": SURFACE,
        "colorbar": {"title": {"text": metric, "side": "right"}} | _BAR,
        "zmin": low,
        "zmax": high,
        "zauto": False,
    }
    for trace in marks:
        trace["marker"] |= {"size": 5, "line": {"width": 1, "color": "white"}}
    text = f"Contour of {metric} over {one} and {other}, from {len(thin.trials)} trials."
    return _in_our_looks(spec, f"{one} and {other}", text, 320)


def _thinned(study: optuna.Study, limit: int) -> optuna.Study:
    """Return a study of at most `limit` complete trials, evenly spaced by rank."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(complete, key=lambda trial: trial.value or 0.0)
    rows = np.unique(np.linspace(0, len(ranked) - 1, min(limit, len(ranked))).round().astype(int))
    return _study_of([ranked[row] for row in rows], study.direction)


def _study_of(
    trials: list[optuna.trial.FrozenTrial], direction: optuna.study.StudyDirection
) -> optuna.Study:
    import optuna

    made = optuna.create_study(direction=direction)
    made.add_trials(trials)
    return made


def _mode(study: optuna.Study) -> str:
    return "max" if study.direction.name == "MAXIMIZE" else "min"


def _between(one: str, other: str, share: float) -> str:
    """Return the colour that lies a share of the way from one `#rrggbb` to another."""
    ends = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (one, other)]
    mixed = [round(a + share * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _in_our_looks(
    spec: dict[str, Any], title: str, description: str, height: int = HEIGHT
) -> go.Figure:
    """Return Optuna's figure with our template; its own is dropped first, as merging is slow."""
    import plotly.graph_objects as go

    layout = {
        **spec["layout"],
        "template": go.layout.Template(template("light")),
        "title": {"text": title},
        "height": height,
    }
    for name in ("plot_bgcolor", "margin", "width"):
        layout.pop(name, None)
    return describe(go.Figure(spec["data"], layout), description)
