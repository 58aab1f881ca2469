"""What tests of Optuna studies share: a run of every kind, and what Optuna makes of its rows."""

import math
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta

import optuna
import run_folders
from optuna.trial import TrialState, create_trial
from sqlalchemy.pool import NullPool

from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run import results
from tune_softmax.run.ledger import Ledger
from tune_softmax.scheduler.study import distribution

METRIC = "validation_loss"
ATTRIBUTES = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]


def every_kind(path):
    """Make a run that was stopped, with trials of every state and with values of every kind."""
    folder, ledger = run_folders.begin(path)
    with closing(ledger):
        run_folders.train(ledger, range(4))
        run_folders.train(ledger, [4, 5], pack=1, state=State.PRUNED, last=1)
        run_folders.train(ledger, [6], pack=2, state=State.FAIL, last=1, error="it diverged")
        ledger.hand_out(3, {number: run_folders.config(number) for number in range(7, 11)})
        ledger.record(3, [Report(7, 1, run_folders.metrics(7, 1))])
        broken = EpochMetrics(math.inf, 0.1, math.nan, 0.1, 0.25)
        ledger.record(3, [Report(8, 1, broken, State.FAIL, error="a \u201cquote\u201d\n'")])
        ledger.finish([9], State.WAITING)
        ledger.hand_out(4, {11: run_folders.config(11)})
        ledger.record(4, [Report(11, 1, run_folders.metrics(11, 1), State.PARKED, rung=1)])
    return folder


def read(path):
    """Return the study of a file, as Optuna reads it; of any path, which a URL would not take."""
    options = {"creator": lambda: sqlite3.connect(path), "poolclass": NullPool}
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=options)
    return optuna.load_study(study_name=None, storage=storage)


def expected(folder):
    """Return a run's trials as Optuna itself makes them, from the ledger's rows."""
    space = results.load(folder.path).experiment.space
    distributions = {name: distribution(domain) for name, domain in space.searched.items()}
    with closing(Ledger.open(folder.ledger)) as ledger:
        trials, epochs, events = ledger.trials(), ledger.epochs(), ledger.events()
    # Optuna shows naive local times.
    started = datetime.fromisoformat(events[0][0]).astimezone().replace(tzinfo=None)
    made = []
    for trial in trials:
        curve = [metrics for number, _, metrics in epochs if number == trial.number]
        seconds = sum(metrics.seconds for metrics in curve)
        valued = trial.state in {State.COMPLETE, State.PRUNED}
        attributes = {name: getattr(curve[-1], name) for name in ATTRIBUTES} if curve else {}
        attributes |= {
            "seconds": seconds,
            "epochs_trained": len(curve),
            "pack": trial.pack,
            "attempts": trial.attempts,
        }
        attributes |= {} if trial.rung is None else {"rung": trial.rung}
        attributes = {k: v for k, v in attributes.items() if math.isfinite(v)}
        attributes |= {"error": trial.error} if trial.error else {}
        one = create_trial(
            state=TrialState.RUNNING if trial.state == "PARKED" else TrialState[trial.state],
            value=getattr(curve[-1], METRIC) if valued else None,
            params={name: getattr(trial.config, name) for name in distributions},
            distributions=distributions,
            user_attrs=attributes,
            intermediate_values={e: getattr(m, METRIC) for e, m in enumerate(curve, 1)},
        )
        one.number = trial.number
        one.datetime_start = None if trial.state is State.WAITING else started
        ended = started + timedelta(seconds=seconds)
        one.datetime_complete = ended if trial.state.is_final else None
        made.append(one)
    return made


def plain(trial):
    """Return all that a trial holds, so that NaN equals itself."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": {k: repr(v) for k, v in trial.intermediate_values.items()},
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
    }


def same(trials, others):
    """Hold two lists of trials against each other."""
    assert [plain(trial) for trial in trials] == [plain(trial) for trial in others]


def states(path):
    """Return the states of the trials in a study's file, as far as it is there."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
            return [state for (state,) in file.execute("SELECT state FROM trials ORDER BY 1")]
    except sqlite3.OperationalError:
        return None
