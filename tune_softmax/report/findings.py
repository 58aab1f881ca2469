"""The report's summary: what was asked and what was found, in five items.

Where an interval includes zero, or two intervals overlap, the text says that no difference was
seen. Values without an interval are given without a word on which is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune_softmax.errors import ResultsError
from tune_softmax.metrics import State
from tune_softmax.report.measures import baseline, completed, gaps, regret, spending
from tune_softmax.stats.margins import Verdict
from tune_softmax.stats.winners import winner_sentence
from tune_softmax.stats.wording import and_list, count, interval_text, words

if TYPE_CHECKING:
    import pandas as pd

    from tune_softmax.report.inputs import Inputs
    from tune_softmax.run.results import Best, Results
    from tune_softmax.studies.confirm import Confirmation
    from tune_softmax.studies.remedies import Remedies

__all__ = ["best_of", "sentences"]

_BEST = {"min": "lowest", "max": "highest"}


def sentences(inputs: Inputs) -> list[str]:
    """Return what was found, of a search, a study of remedies, or both, in five sentences."""
    if inputs.search is None:
        return _of_remedies(inputs)
    trials = inputs.search.trials
    best = best_of(inputs.search)
    return [
        _asked(inputs, inputs.search),
        _found(inputs, inputs.search, best),
        inputs.stale or _tested(inputs.confirmation),
        _overfitted(trials, best) if inputs.remedies is None else _cured(inputs.remedies),
        _spent(inputs.search),
    ]


def best_of(search: Results) -> Best | None:
    """Return the best trial, or None while no trial has a value."""
    try:
        return search.best()
    except ResultsError:
        return None


def _asked(inputs: Inputs, search: Results) -> str:
    asked = inputs.experiment
    searched = and_list([words(name) for name in asked.space.searched])
    text = (
        f"The search looked for the {_BEST[asked.search.mode]} {words(asked.search.metric)} on "
        f"{asked.dataset.name}. The {asked.search.sampler} sampler proposes "
        f"{count(asked.num_trials, 'trial')} from seed {asked.search.seed}, which differ in "
        f"{searched}."
    )
    done = search.count(State.COMPLETE, State.PRUNED, State.FAIL)
    return text if done >= asked.num_trials else f"{text} So far {done:,} are done."


def _found(inputs: Inputs, search: Results, best: Best | None) -> str:
    if best is None:
        return "No trial has a result yet."
    row = search.trials.set_index("number").loc[best.number]
    num_complete = len(completed(search.trials, f"last_{best.metric}"))
    rank = (
        f"Trial {best.number} is the best of {count(num_complete, 'complete trial')}"
        if num_complete
        else f"No trial has run all its epochs; the best of the others is trial {best.number}"
    )
    text = (
        f"{rank}: validation loss {row['last_validation_loss']:.4f} and validation accuracy "
        f"{row['last_validation_accuracy']:.4f} after {count(best.epoch, 'epoch')}."
    )
    if best.num_averaged > 1:
        text += (
            f" It is ranked by the mean of {best.span}, {best.value:.4f}, because with a constant "
            "learning rate the loss goes up and down to the end."
        )
    if inputs.path is None:
        return text
    optimum = inputs.path["validation_loss"].min()
    above = regret(search.trials, inputs.path)
    if above is None:
        return f"{text} The lowest loss on the regularization path is {optimum:.4f}."
    side = "above" if above >= 0 else "below"
    return (
        f"{text} The lowest loss of the search is {abs(above):.4f} {side} the lowest on the "
        f"regularization path, {optimum:.4f}."
    )


def _tested(confirmation: Confirmation | None) -> str:
    if confirmation is None or confirmation.winners.empty:
        return "The best trials have not been confirmed on the test set over several seeds yet."
    winners = confirmation.winners  # the best first
    top = winners.iloc[0]
    loss, accuracy = (
        f"{name} {top[f'mean_test_{name}']:.4f} "
        f"({interval_text(top[f'{name}_low'], top[f'{name}_high'])})"
        for name in ("loss", "accuracy")
    )
    return (
        f"On the test set trial {int(top['trial'])} is first of "
        f"{count(len(winners), 'confirmed trial')}: {loss} and {accuracy} over "
        f"{count(int(top['num_seeds']), 'seed')}. {winner_sentence(winners)}"
    )


def _overfitted(trials: pd.DataFrame, best: Best | None) -> str:
    if best is None:
        return "There is no generalization gap yet."
    gap = gaps(trials).set_axis(trials["number"])
    text = (
        "The best trial's generalization gap (validation minus training loss) is "
        f"{gap[best.number]:.4f} nats."
    )
    other = baseline(trials, best.number)
    if other is None:
        return f"{text} It is of one training, so it has no interval."
    return (
        f"{text} Trial {other}, which fits the training images closest, has {gap[other]:.4f}. "
        "Each is of one training, so neither has an interval."
    )


def _spent(search: Results) -> str:
    spent = spending(search.trials)
    num_stopped = search.count(State.PRUNED)
    text = (
        f"The trials trained for {count(spent.epochs_trained, 'epoch')} and "
        f"{spent.seconds_trained:,.1f} s in all."
    )
    if search.experiment.search.asha is None:
        return f"{text} The experiment asks for no early stopping of trials."
    whole = spent.epochs_trained + spent.epochs_saved
    share = spent.epochs_saved / whole if whole else 0.0
    return (
        f"{text} ASHA stopped {num_stopped:,} of {count(len(search.trials), 'trial')} early, "
        f"which saved {count(spent.epochs_saved, 'epoch')} ({share:.0%}), about "
        f"{spent.seconds_saved:,.1f} s."
    )


# --- Remedies -----------------------------------------------------------------------------------


def _of_remedies(inputs: Inputs) -> list[str]:
    remedies = inputs.remedies
    if remedies is None or remedies.effects.empty:
        return ["This folder holds neither a search nor a finished study of remedies."]
    effects = remedies.effects
    singles = effects[effects["remedy"] != "combined"]
    num_seeds = remedies.arms["seed"].nunique()
    helping, hurting = (_which(singles, verdict) for verdict in (Verdict.BETTER, Verdict.WORSE))
    asked = (
        f"The study compares {count(len(singles), 'remedy', 'remedies')} against overfitting, "
        f"each alone and all that help together, by the {_metric(effects)} on "
        f"{inputs.experiment.dataset.name}, over {count(num_seeds, 'seed')}."
    )
    return [
        asked,
        remedies.overfitting.sentence,
        f"{_capitalized(helping)}.",
        f"{_capitalized(hurting)}; {_undecided(singles)}.",
        _together(effects, singles),
    ]


def _cured(remedies: Remedies) -> str:
    effects = remedies.effects
    helping, hurting = (_which(effects, verdict) for verdict in (Verdict.BETTER, Verdict.WORSE))
    return f"{_capitalized(helping)}; {hurting}; {_undecided(effects)}."


def _which(effects: pd.DataFrame, verdict: Verdict) -> str:
    """Return which remedies have a verdict, the strongest first, with their intervals."""
    is_lower = _is_lower_better(effects) == (verdict is Verdict.BETTER)
    did = f"{'lowered' if is_lower else 'raised'} the {_metric(effects)}"
    rows = effects[effects["verdict"] == verdict]
    rows = rows.sort_values("difference", key=abs, ascending=False)
    if rows.empty:
        return f"no remedy {did}"
    return f"{and_list([_with_interval(row) for _, row in rows.iterrows()])} {did}"


def _undecided(effects: pd.DataFrame) -> str:
    found = []
    for verdict, text in (
        (Verdict.NO_DIFFERENCE, "there is no difference that matters for"),
        (Verdict.UNSETTLED, "not settled is"),
    ):
        names = effects.loc[effects["verdict"] == verdict, "remedy"]
        if len(names):
            found.append(f"{text} {and_list(map(words, names))}")
    return "; ".join(found) or "every remedy made a difference"


def _together(effects: pd.DataFrame, singles: pd.DataFrame) -> str:
    combined = effects[effects["remedy"] == "combined"]
    if combined.empty or singles.empty:
        return "No combination of remedies was tried."
    is_lower = _is_lower_better(effects)
    row, best = combined.iloc[0], singles.sort_values("difference", ascending=is_lower).iloc[0]
    text = (
        f"Against the baseline, {_with_interval(row)} and the best single remedy, "
        f"{_with_interval(best)}"
    )
    if not (row["low"] > best["high"] or best["low"] > row["high"]):
        return f"{text}, have overlapping intervals: no difference was seen between the two."
    side = "lower" if row["difference"] < best["difference"] else "higher"
    return f"{text}, have separate intervals: the combination's {_metric(effects)} is {side}."


def _metric(effects: pd.DataFrame) -> str:
    return words(effects["metric"].iloc[0])


def _is_lower_better(effects: pd.DataFrame) -> bool:
    return not str(effects["metric"].iloc[0]).endswith("accuracy")


def _with_interval(row: pd.Series[Any]) -> str:
    ends = interval_text(row["low"], row["high"], "+.4f")
    return f"{words(row['remedy'])} ({row['difference']:+.4f}, {ends})"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
