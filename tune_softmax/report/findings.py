"""What was asked and what was found, in five plain sentences that say what the numbers say.

Where an interval holds zero, or two intervals overlap, the sentence is that no difference was
seen. Values without an interval are given as they are, with no word on which is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tune_softmax.errors import ResultsError
from tune_softmax.metrics import State
from tune_softmax.report.measures import baseline, completed, gaps, regret, spending
from tune_softmax.stats.verdicts import Verdict
from tune_softmax.stats.wording import and_list, interval_text

if TYPE_CHECKING:
    import pandas as pd

    from tune_softmax.report.inputs import Confirmation, Inputs, Remedies
    from tune_softmax.run.results import Best, Results

__all__ = ["best_of", "effective_verdicts", "sentences"]

_WORDS = {"min": "lowest", "max": "highest"}


def sentences(inputs: Inputs) -> list[str]:
    """Return the five sentences.

    Args:
        inputs: What the report is made from: a search, a study of remedies, or both.
    """
    if inputs.search is None:
        return _of_remedies(inputs)
    trials = inputs.search.trials
    best = best_of(inputs.search)
    return [
        _asked(inputs, inputs.search),
        _found(inputs, inputs.search, best),
        _tested(inputs.confirmation),
        _overfitted(trials, best) if inputs.remedies is None else _cured(inputs.remedies),
        _spent(inputs.search),
    ]


def best_of(search: Results) -> Best | None:
    """Return the best trial, or None while no trial has a value."""
    try:
        return search.best()
    except ResultsError:
        return None


def effective_verdicts(effects: pd.DataFrame) -> pd.Series[str]:
    """Return each remedy's verdict, which is `no difference seen` where its interval holds 0."""
    holds_zero = (effects["low"] <= 0) & (effects["high"] >= 0)
    return effects["verdict"].mask(holds_zero, str(Verdict.UNCLEAR))


def _asked(inputs: Inputs, search: Results) -> str:
    asked = inputs.experiment
    metric = asked.search.metric.replace("_", " ")
    text = (
        f"Asked was the {_WORDS[asked.search.mode]} {metric} of softmax regression on "
        f"{asked.dataset.name} over {and_list(list(asked.space.searched))}, in "
        f"{asked.num_trials:,} trials that the {asked.search.sampler} sampler proposed from seed "
        f"{asked.search.seed}"
    )
    done = search.count(State.COMPLETE, State.PRUNED, State.FAIL)
    return f"{text}." if done >= asked.num_trials else f"{text}; {done:,} of them are done so far."


def _found(inputs: Inputs, search: Results, best: Best | None) -> str:
    if best is None:
        return "No trial has a result yet."
    row = search.trials.set_index("number").loc[best.number]
    num_complete = len(completed(search.trials, f"last_{best.metric}"))
    rank = (
        f"Of {num_complete:,} complete trials the best is trial {best.number}"
        if num_complete
        else f"No trial has run all its epochs; the best of the others is trial {best.number}"
    )
    text = (
        f"{rank}, with validation loss {row['last_validation_loss']:.4f} and validation accuracy "
        f"{row['last_validation_accuracy']:.4f} after {_count(best.epoch, 'epoch')}"
    )
    if best.num_averaged > 1:
        text += (
            f"; it is ranked by the mean of {best.span}, {best.value:.4f}, because with a "
            "constant learning rate a loss goes on going up and down"
        )
    if inputs.path is None:
        return f"{text}."
    optimum = inputs.path["validation_loss"].min()
    above = regret(search.trials, inputs.path)
    if above is None:
        return f"{text}; the best on the regularization path is {optimum:.4f}."
    side = "above" if above >= 0 else "below"
    return (
        f"{text}; the lowest loss found is {abs(above):.4f} {side} the best on the "
        f"regularization path, {optimum:.4f}."
    )


def _tested(confirmation: Confirmation | None) -> str:
    if confirmation is None or confirmation.winners.empty:
        return "The winner has not been confirmed on the test set over several seeds."
    winners = confirmation.winners  # the best first
    top, others = winners.iloc[0], winners.iloc[1:]
    text = (
        f"On the test set the best of {_count(len(winners), 'confirmed trial')} is trial "
        f"{int(top['trial'])}, with accuracy {top['mean_test_accuracy']:.4f} "
        f"({interval_text(top['accuracy_low'], top['accuracy_high'], '.4f')}) over "
        f"{_count(int(top['num_seeds']), 'seed')}"
    )
    if others.empty:
        return f"{text}."
    num_alike = int(others["is_winner"].sum())
    if not num_alike:
        return f"{text}; each of the others was shown to be worse."
    return (
        f"{text}; between it and {num_alike} of the {len(others)} others no difference was seen."
    )


def _overfitted(trials: pd.DataFrame, best: Best | None) -> str:
    if best is None:
        return "There is no generalization gap to speak of yet."
    gap = gaps(trials).set_axis(trials["number"])
    text = (
        "The best trial's generalization gap, validation minus training loss, is "
        f"{gap[best.number]:.4f} nats"
    )
    other = baseline(trials, best.number)
    if other is None:
        return f"{text}, of one training."
    return (
        f"{text} and that of trial {other}, which fits the training images closest, is "
        f"{gap[other]:.4f}; one training each, so neither has an interval."
    )


def _spent(search: Results) -> str:
    spent = spending(search.trials)
    num_stopped = search.count(State.PRUNED)
    text = (
        f"The trials trained for {_count(spent.epochs_trained, 'epoch')} and "
        f"{spent.seconds_trained:,.1f} s in all"
    )
    if search.experiment.search.asha is None:
        return f"{text}; ASHA was not asked to stop any."
    whole = spent.epochs_trained + spent.epochs_saved
    share = spent.epochs_saved / whole if whole else 0.0
    return (
        f"{text}; ASHA stopped {num_stopped:,} of {len(search.trials):,} and so saved "
        f"{_count(spent.epochs_saved, 'epoch')} ({share:.0%}) and about "
        f"{spent.seconds_saved:,.1f} s."
    )


# --- Remedies -----------------------------------------------------------------------------------


def _of_remedies(inputs: Inputs) -> list[str]:
    remedies = inputs.remedies
    if remedies is None or remedies.effects.empty:
        return ["There is neither a search nor a study of remedies in this folder yet."]
    effects = remedies.effects.assign(verdict=effective_verdicts(remedies.effects))
    singles = effects[effects["remedy"] != "combined"]
    num_seeds = remedies.arms["seed"].nunique()
    helping, hurting = (_which(singles, verdict) for verdict in (Verdict.HELPS, Verdict.HURTS))
    asked = (
        f"Asked was what {_count(len(singles), 'remedy', 'remedies')} against overfitting, each "
        f"alone and all together, do to the {_metric(effects)} of softmax regression on "
        f"{inputs.experiment.dataset.name}, over {_count(num_seeds, 'seed')}."
    )
    return [
        asked,
        _diseased(remedies),
        f"{_begun(helping)}.",
        f"{_begun(hurting)}; {_undecided(singles)}.",
        f"{_together(effects, singles)}.",
    ]


def _diseased(remedies: Remedies) -> str:
    if remedies.overfitting is None:
        return "Whether the baseline overfits was not recorded."
    return remedies.overfitting.sentence


def _cured(remedies: Remedies) -> str:
    effects = remedies.effects.assign(verdict=effective_verdicts(remedies.effects))
    helping, hurting = (_which(effects, verdict) for verdict in (Verdict.HELPS, Verdict.HURTS))
    return f"{_begun(helping)}; {hurting}; {_undecided(effects)}."


def _which(effects: pd.DataFrame, verdict: Verdict) -> str:
    """Return which remedies have a verdict, the strongest first, with their intervals."""
    is_lower = _is_lower_better(effects) == (verdict is Verdict.HELPS)
    did = f"{'lowered' if is_lower else 'raised'} the {_metric(effects)}"
    rows = effects[effects["verdict"] == verdict]
    rows = rows.sort_values("difference", key=abs, ascending=False)
    if rows.empty:
        return f"no remedy {did}"
    return f"{and_list([_with_interval(row) for _, row in rows.iterrows()])} {did}"


def _undecided(effects: pd.DataFrame) -> str:
    rows = effects[effects["verdict"] == Verdict.UNCLEAR]
    if rows.empty:
        return "there was none for which no difference was seen"
    return f"no difference was seen for {and_list([_words(name) for name in rows['remedy']])}"


def _together(effects: pd.DataFrame, singles: pd.DataFrame) -> str:
    combined = effects[effects["remedy"] == "combined"]
    if combined.empty or singles.empty:
        return "No combination of remedies was tried"
    is_lower = _is_lower_better(effects)
    row, best = combined.iloc[0], singles.sort_values("difference", ascending=is_lower).iloc[0]
    text = (
        f"Held against the baseline, {_with_interval(row)} and the best of the single remedies, "
        f"{_with_interval(best)}"
    )
    if not (row["low"] > best["high"] or best["low"] > row["high"]):
        return f"{text}, overlap: between the two no difference was seen"
    side = "lower" if row["difference"] < best["difference"] else "higher"
    return f"{text}, do not overlap: the combination's {_metric(effects)} is {side}"


def _metric(effects: pd.DataFrame) -> str:
    return _words(effects["metric"].iloc[0])


def _is_lower_better(effects: pd.DataFrame) -> bool:
    return not str(effects["metric"].iloc[0]).endswith("accuracy")


def _with_interval(row: pd.Series[Any]) -> str:
    ends = interval_text(row["low"], row["high"], "+.4f")
    return f"{_words(row['remedy'])} ({row['difference']:+.4f}, {ends})"


def _begun(text: str) -> str:
    """Return a text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
