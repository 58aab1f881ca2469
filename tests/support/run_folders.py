"""What tests of run folders share: runs written by hand, as a search writes them."""

from contextlib import closing

from tune_softmax.config import Config
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

EXPERIMENT = """
name: small
dataset: {name: digits}
space:
  batch_size: {choice: [16, 32]}
  num_epochs: {int: [1, 4]}
  learning_rate: {log_uniform: [1e-2, 1]}
  learning_rate_schedule: {choice: [constant, linear]}
  momentum: {uniform: [0, 0.9]}
  weight_decay: 1e-4
search: {num_trials: 100, pack_size: 2}
resources: {max_concurrent_packs: 1}
"""


def begin(path, checksum="none"):
    """Make a run folder with a ledger that is still being written; return both."""
    folder = RunFolder(path)
    folder.create()
    folder.experiment.write_text(experiments.parse(EXPERIMENT, "small.yaml").to_yaml())
    folder.environment.write_text(f'{{"dataset_checksum": "{checksum}"}}\n')
    folder.log.write_text("begun\n")
    meta = {"dataset_checksum": checksum, "experiment": folder.experiment.read_text()}
    ledger = Ledger.create(folder.ledger, meta)
    ledger.event("started")
    return folder, ledger


def config(number):
    """Return a trial's hyperparameters, a function of its number."""
    return Config(
        batch_size=16 * (1 + number % 2),
        num_epochs=1 + number % 4,
        learning_rate=0.01 * (1 + number % 90),
        learning_rate_schedule="linear" if number % 3 else "constant",
        momentum=0.009 * (number % 100),
        weight_decay=1e-4,
    )


def metrics(number, epoch):
    """Return what is measured of a trial at an epoch, a function of both."""
    loss = 1 / (epoch + number + 1)
    return EpochMetrics(loss, 0.9, loss + 0.1, 0.8 - loss / 10, 0.25)


def train(ledger, numbers, *, pack=0, state=State.COMPLETE, last=None, error=None):
    """Hand trials out and record their epochs, the last with a state; by default to their end."""
    ledger.hand_out(pack, {number: config(number) for number in numbers})
    for number in numbers:
        end = config(number).num_epochs if last is None else last
        for epoch in range(1, end + 1):
            at_end = state if epoch == end else State.RUNNING
            fault = error if epoch == end else None
            report = Report(number, epoch, metrics(number, epoch), at_end, error=fault)
            ledger.record(pack, [report])


def finished(path, num_trials=6, checksum="none"):
    """Make a run of some trials that are all complete, on images of a checksum."""
    folder, ledger = begin(path, checksum)
    with closing(ledger):
        train(ledger, range(num_trials))
    return folder
