"""The report's figures: what is drawn is what the dataframes say."""

import math

import numpy as np
import optuna
import pandas as pd
import pytest
from report_runs import (
    CLASSES,
    config,
    confirmation,
    evaluation,
    losses,
    path_points,
    remedies,
    write_run,
)

from tune_softmax.errors import DamagedRunError
from tune_softmax.metrics import State
from tune_softmax.report import figures, measures
from tune_softmax.report.figures.base import axis_of, range_of_the_better
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.study import Study


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    """Return a run that was written by hand."""
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def run(run_path):
    """Return its results."""
    return results.load(run_path)


@pytest.fixture(scope="module")
def study(run):
    """Return Optuna's study, rebuilt."""
    return figures.study(run.trials, run.epochs, run.experiment)


def trace(figure, name):
    """Return a figure's only trace of a name."""
    (found,) = [part for part in figure.data if part.name == name]
    return found


def text_of(figure):
    """Return what stands for a figure where it cannot be seen."""
    return figure.layout.meta["description"]


# --- Axes ---------------------------------------------------------------------------------------


def test_near_values_get_a_plain_axis():
    """As they are."""
    assert axis_of([1.0, 2.0, 4.0]) == ([1.0, 2.0, 4.0], {})
    assert axis_of([0.0, 0.0]) == ([0.0, 0.0], {})
    assert axis_of([]) == ([], {})


def test_far_values_get_a_logarithmic_axis():
    """One tick a decade."""
    places, axis = axis_of([1e-5, 1e-2])
    assert places == [1e-5, 1e-2]
    assert (axis["type"], axis["dtick"]) == ("log", 1)


def test_zero_has_a_place_on_a_logarithmic_axis():
    """A decade below the least value, where the tick says 0."""
    places, axis = axis_of([0.0, 3e-5, 1e-2])
    assert places == pytest.approx([1e-6, 3e-5, 1e-2])
    assert axis["tickvals"][0] == pytest.approx(1e-6)
    assert axis["ticktext"][0] == "0"
    assert axis["tickvals"][1:] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])


def test_an_outlier_does_not_squeeze_the_others():
    """It lies outside; what is not finite does not count."""
    low, high = figures.robust_range([*np.linspace(0, 1, 50), 1000.0, math.inf, math.nan])
    assert -0.1 < low <= 0
    assert 1 <= high < 1.1
    assert figures.robust_range([]) == [0.0, 1.0]
    one = figures.robust_range([5.0])
    assert one[0] < 5 < one[1]


@pytest.mark.parametrize(("mode", "inside", "outside"), [("min", 0, 99), ("max", 99, 0)])
def test_an_axis_shows_the_better_end(mode, inside, outside):
    """The best is inside, the worst tenth is not."""
    low, high = range_of_the_better(list(range(100)), mode)
    assert low <= inside <= high
    assert not low <= outside <= high


# --- Training -----------------------------------------------------------------------------------


def test_learning_curves_are_the_epochs(run):
    """Both losses of one trial, the gap between them shaded, its best epoch marked."""
    figure = figures.learning_curves(run.epochs, 14)
    length = config(14).num_epochs
    for column, name in ((0, "training"), (1, "validation")):
        expected = [losses(14, epoch)[column] for epoch in range(1, length + 1)]
        assert list(trace(figure, name).y) == pytest.approx(expected)
    assert trace(figure, "validation").fill == "tonexty"
    best = min(range(1, length + 1), key=lambda epoch: losses(14, epoch)[1])
    assert figure.layout.shapes[0].x0 == best
    assert f"best epoch {best}" in figure.layout.annotations[0].text
    gap = losses(14, length)[1] - losses(14, length)[0]
    assert f"the gap at the end is {gap:.4f} nats" in text_of(figure)


def test_a_given_best_epoch_is_marked(run):
    """The experiment's metric may choose another epoch than the loss."""
    figure = figures.learning_curves(run.epochs, 14, best_epoch=2)
    assert figure.layout.shapes[0].x0 == 2


def test_learning_curves_bear_a_trial_without_epochs(run):
    """It says so."""
    assert "has no epochs" in text_of(figures.learning_curves(run.epochs, 999))


@pytest.mark.parametrize("against", ["weight_decay", "epochs_trained"])
def test_every_finite_gap_is_drawn(run, against):
    """One mark a trial that has a gap, at its place, and the winner once more."""
    figure = figures.generalization_gap(run.trials, against, winner=7)
    gap = measures.gaps(run.trials)
    there = run.trials[np.isfinite(gap)]
    drawn = {}
    for part in figure.data:
        if part.name != "best":
            drawn |= {int(data[0]): x for data, x in zip(part.customdata, part.x, strict=True)}
    assert drawn == pytest.approx(dict(zip(there["number"], there[against], strict=True)))
    best = trace(figure, "best")
    assert best.customdata[0][0] == 7
    assert best.customdata[0][1] == pytest.approx(gap[7])
    assert f"{len(there)} trials" in text_of(figure)


def test_unfinished_trials_are_drawn_as_such(run):
    """While a search runs, the gap of one that trains is that so far."""
    trials = run.trials.copy()
    trials.loc[4, "state"] = "RUNNING"
    assert [
        int(n) for n, _ in trace(figures.generalization_gap(trials), "unfinished").customdata
    ] == [4]


def test_a_gap_far_off_is_drawn_at_the_edge(run):
    """With its true value at hand."""
    trials = run.trials.copy()
    trials.loc[4, "last_validation_loss"] = 1000.0
    figure = figures.generalization_gap(trials)
    beyond = trace(figure, "beyond")
    assert beyond.customdata[0][0] == 4
    assert beyond.customdata[0][1] > 900
    assert beyond.y[0] < 10
    assert beyond.marker.symbol[0] == "triangle-up"


# --- The search ---------------------------------------------------------------------------------


def test_the_best_so_far_falls_to_the_best(run):
    """Its line ends at the best trial's value; marks are the complete trials' values."""
    history = measures.history(run.trials, "min")
    for over in ("trial", "seconds"):
        figure = figures.best_so_far(history, "validation_loss", over, optimum=0.1)
        best = run.best()
        assert trace(figure, "the best so far").y[-1] == pytest.approx(best.value)
        assert f"reached by trial {best.number} " in text_of(figure)
        assert figure.layout.shapes[0].y0 == 0.1
        assert list(trace(figure, "the best so far").x) == history[over].tolist()


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_regret_is_the_distance_from_the_optimum(mode, sign):
    """Less is better, whichever way the metric goes."""
    history = pd.DataFrame({"trial": [0, 1], "best": [0.9, 0.4], "seconds": [1.0, 2.0]})
    figure = figures.regret(history, 0.5, mode)
    assert list(figure.data[0].y) == pytest.approx([sign * 0.4, sign * -0.1])


def test_rungs_are_stacked(run):
    """The three parts of a bar are the trials that entered."""
    table = measures.rungs(run.trials)
    figure = figures.rung_counts(table)
    assert figure.layout.barmode == "stack"
    heights = np.sum([part.y for part in figure.data], axis=0)
    assert heights.tolist() == table["entered"].tolist() == [heights[0]]
    assert f"{table['stopped'][0]} were stopped" in text_of(figure)


def test_figures_bear_an_empty_search(run):
    """Before the first trial is complete there is nothing to draw, and the text says it."""
    none = run.trials[run.trials["number"] < 0]
    history = measures.history(none, "min")
    assert "no trial is complete" in text_of(figures.best_so_far(history, "validation_loss"))
    assert "no trial is complete" in text_of(figures.regret(history, 0.0))
    assert "none was reached" in text_of(figures.rung_counts(measures.rungs(none)))
    assert "0 trials" in text_of(figures.generalization_gap(none))


# --- Regularization -----------------------------------------------------------------------------


def test_the_path_has_the_trials_beside_it(run):
    """The optimum's two losses, and each complete trial at its weight decay."""
    points = path_points()
    figure = figures.regularization_path(points, run.trials, winner=7)
    validation = trace(figure, "optimum, validation loss")
    assert list(validation.y) == pytest.approx(points["validation_loss"].tolist())
    complete = measures.completed(run.trials).set_index("number")["weight_decay"]
    drawn = [part for part in figure.data if part.name in {"complete", "beyond"}]
    marks = {int(d[0]): x for part in drawn for d, x in zip(part.customdata, part.x, strict=True)}
    assert marks == pytest.approx(complete.to_dict())
    assert "lowest validation loss is 0.3500, at weight decay 0.001" in text_of(figure)


def test_trials_off_the_path_are_left_out(run):
    """L1 makes it another problem."""
    trials = run.trials.assign(l1=0.1)
    figure = figures.regularization_path(path_points(), trials)
    assert [part.name for part in figure.data] == [
        "optimum, training loss",
        "optimum, validation loss",
    ]


def test_a_remedy_has_its_interval():
    """Its two arms reach to the ends; verdicts differ in shape as in colour."""
    effects = remedies().effects
    figure = figures.remedy_effects(effects)
    verdicts = {part.name: part for part in figure.data}
    assert set(verdicts) == {"better", "worse", "not settled"}
    assert len({part.marker.symbol for part in verdicts.values()}) == 3
    row = effects.set_index("remedy").loc["augmentation"]
    drawn = verdicts["worse"]
    assert drawn.x[0] == pytest.approx(row["difference"])
    assert drawn.x[0] + drawn.error_x.array[0] == pytest.approx(row["high"])
    assert drawn.x[0] - drawn.error_x.arrayminus[0] == pytest.approx(row["low"])
    assert "augmentation +0.06" in text_of(figure)


def test_a_dose_is_answered_by_the_mean():
    """Over seeds, at each strength, with the baseline's mean to hold it against."""
    arms = remedies().arms
    figure = figures.dose_response(arms, "l2")
    mean = arms[arms["remedy"] == "l2"].groupby("strength")["validation_loss"].mean()
    drawn = trace(figure, "validation, mean over seeds")
    assert list(drawn.x) == pytest.approx(mean.index.tolist())
    assert list(drawn.y) == pytest.approx(mean.tolist())
    base = arms.loc[arms["remedy"] == "baseline", "validation_loss"].mean()
    assert figure.layout.shapes[0].y0 == pytest.approx(base)


# --- Test images --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["test_loss", "test_accuracy"])
def test_confirmed_trials_are_drawn_by_what_decides(metric):
    """Filled marks are those that may be the best, at their means of the deciding metric."""
    winners = confirmation().winners.assign(metric=metric)
    figure = figures.confirmed(winners)
    best = winners[winners["is_winner"]]
    drawn = trace(figure, "may be the best")
    means = dict(zip(drawn.y, drawn.x, strict=True))
    for row in best.to_dict("records"):
        assert means[f"trial {row['trial']}"] == row[f"mean_{metric}"]
    assert trace(figure, "worse").y == ("trial 0",)
    assert figure.layout.title.text == f"Confirmed {metric.replace('_', ' ')}"


def test_a_confusion_matrix_has_its_counts():
    """In its cells; the text names the most frequent mistake."""
    counts = np.array(evaluation()["baseline_confusion"])
    figure = figures.confusion_matrix(counts, CLASSES)
    assert figure.data[0].text[6][0] == "92"
    assert figure.data[0].z[6][0] == pytest.approx(math.log(93))
    assert f"{counts.sum() - np.trace(counts)} of {counts.sum()} wrong" in text_of(figure)
    assert "92 times, class 6 is predicted as class 0" in text_of(figure)


def test_differences_that_are_certain_carry_a_number():
    """The rest of the cells stays empty: no difference was seen."""
    found = evaluation()
    pair = np.array(found["confusion"]), np.array(found["baseline_confusion"])
    figure = figures.confusion_difference(*pair, CLASSES)
    texts = np.array(figure.data[0].text)
    assert texts[6, 0] == "-45.0"
    assert texts[6, 6] == "+45.0"
    assert (texts != "").sum() == 2
    assert "class 6 predicted as class 0 -45.0 %" in text_of(figure)
    same = figures.confusion_difference(pair[0], pair[0], CLASSES)
    assert "no difference was seen in any of 100 cells" in text_of(same)


def test_recalls_have_intervals():
    """One class gained; of the others no difference was seen."""
    found = evaluation()
    pair = np.array(found["confusion"]), np.array(found["baseline_confusion"])
    figure = figures.recall_difference(*pair, CLASSES)
    more = trace(figure, "more")
    assert more.y == ("class 6",)
    assert more.x[0] == pytest.approx(45)
    assert more.x[0] - more.error_x.arrayminus[0] > 0
    assert len(trace(figure, "no difference seen").y) == 9


def test_class_names_are_no_markup():
    """Plotly's text knows a little HTML, links among it."""
    names = ["<a href='http://elsewhere'>x</a>", *CLASSES[1:]]
    figure = figures.confusion_matrix(np.eye(10, dtype=int), names)
    assert figure.data[0].x[0] == "&lt;a href='http://elsewhere'&gt;x&lt;/a&gt;"


# --- Optuna's -----------------------------------------------------------------------------------


def test_the_study_is_the_one_that_the_search_had(run, run_path, study):
    """States, values, parameters and intermediate values are those of a replay of the ledger."""
    replayed = Study(run.experiment.space, run.experiment.search)
    ledger = Ledger.open(RunFolder(run_path).ledger)
    curves = {}
    for number, _, metrics in ledger.epochs():
        curves.setdefault(number, []).append(metrics.validation_loss)
    replayed.replay(ledger.trials(), curves)
    ledger.close()
    pairs = zip(study.get_trials(deepcopy=False), replayed.trials, strict=True)
    for number, (one, other) in enumerate(pairs):
        assert (one.number, one.state, one.params) == (number, other.state, other.params)
        assert one.distributions == other.distributions
        np.testing.assert_equal(one.intermediate_values, other.intermediate_values)
        if one.state is optuna.trial.TrialState.COMPLETE:
            assert one.value == other.value
    assert study.direction == replayed._view({}).direction


def test_stopped_trials_are_pruned_with_what_they_had(run, study):
    """So that no figure takes them for complete."""
    states = {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}
    assert states == dict(zip(run.trials["number"], run.trials["state"], strict=True))
    pruned = run.trials.loc[run.trials["state"] == State.PRUNED, "number"]
    assert len(pruned)
    values = study.trials[pruned.iloc[0]].intermediate_values
    assert list(values) == [1, 2]


def test_importance_is_of_complete_trials_alone(run, study):
    """Without the others it is the same, and counting them as complete would change it."""
    whole = run.trials[run.trials["state"] == State.COMPLETE]
    alone = figures.study(whole, run.epochs, run.experiment)
    shares = figures.importance(study).data[0].x
    assert shares == pytest.approx(figures.importance(alone).data[0].x)
    assert sum(shares) == pytest.approx(1)
    counted = run.trials.assign(
        state=run.trials["state"].replace(str(State.PRUNED), str(State.COMPLETE))
    )
    wrong = figures.importance(figures.study(counted, run.epochs, run.experiment))
    assert wrong.data[0].x != pytest.approx(shares, abs=1e-3)


def test_slices_show_every_complete_trial(run, study):
    """At its value."""
    whole = measures.completed(run.trials)
    figure = figures.slices(study, "learning_rate", "validation loss")
    assert list(figure.data[0].x) == pytest.approx(whole["learning_rate"].tolist())
    assert list(figure.data[0].y) == pytest.approx(whole["value"].tolist())
    assert figure.layout.xaxis.type == "log"


def test_parallel_coordinates_have_a_line_for_each_trial(run, study):
    """The best is the most colourful."""
    figure = figures.parallel_coordinates(study, "validation loss")
    *lines, _ = figure.data
    whole = measures.completed(run.trials)
    assert len(lines) == len(whole)
    best = min(lines, key=lambda line: line.y[0])
    assert best.line.color == "#d55e00"
    assert figure.layout.xaxis.ticktext[0] == "validation<br>loss"


def test_many_trials_are_thinned(run):
    """To the best, the worst, and evenly spaced ranks between, so that the page stays light."""
    whole = measures.completed(run.trials)
    many = pd.concat([whole] * 20, ignore_index=True)
    many["number"] = range(len(many))
    many["value"] = np.random.default_rng(0).permutation(len(many)) / 100
    study = figures.study(many, run.epochs, run.experiment)
    *lines, scale = figures.parallel_coordinates(study).data
    assert len(lines) == 150
    assert list(scale.marker.color) == [0, (len(many) - 1) / 100]
    surface, marks, _ = figures.contour(study, "learning_rate", "weight_decay").data
    assert len(marks.x) == 60
    assert np.isfinite(np.array(surface.z, dtype=float)).sum() <= 60


def test_more_is_better_of_an_accuracy(tmp_path):
    """The study is to be maximized, and the line of the best is the most colourful."""
    run = results.load(write_run(tmp_path / "run", metric="validation_accuracy"))
    study = figures.study(run.trials, run.epochs, run.experiment)
    assert study.direction.name == "MAXIMIZE"
    assert study.best_value == pytest.approx(run.best().value)
    *lines, _ = figures.parallel_coordinates(study).data
    assert max(lines, key=lambda line: line.y[0]).line.color == "#d55e00"


def test_a_trial_outside_the_space_is_a_damaged_run(run):
    """The message names trial, hyperparameter and value."""
    trials = run.trials.assign(learning_rate=7.0)
    with pytest.raises(DamagedRunError, match=r"trial 0: learning_rate is 7\.0"):
        figures.study(trials, run.epochs, run.experiment)


def test_every_figure_is_public_and_documented():
    """A notebook finds each by its name, with a docstring and a title."""
    for name in figures.__all__:
        assert getattr(figures, name).__doc__
