"""The errors that tune_softmax raises on purpose, and the exit code that each one means.

TuneSoftmaxError                 2
├── ExperimentError (ValueError) 2  an experiment file, an option or a configuration is wrong
├── DataError                    2  a dataset cannot be had, or is not what it says
├── PackError (ValueError)       2  trials that cannot be trained as one pack
├── ClusterError                 2  a request that no node can ever meet, or no cluster there
│   └── ClusterLostError         7  the cluster went away; the run can be resumed
└── ResultsError                 2  no run there, or not one that this command can use
    ├── StorageError             4  the run folder cannot be written
    ├── DamagedRunError          5  the run folder's files contradict themselves
    ├── RunInUseError            6  another process writes this run
    └── SearchInterruptedError 130  a signal stopped the search; resumable (143 for SIGTERM, 138
                                    for SIGUSR1)

A message says where, the rule, the value received, what is allowed, and what to do next.
Any other exception is a defect of ours and keeps its traceback.
"""

import shlex
import signal
from pathlib import Path

__all__ = [
    "ClusterError",
    "ClusterLostError",
    "DamagedRunError",
    "DataError",
    "ExperimentError",
    "InterruptedEarlyError",
    "PackError",
    "ResultsError",
    "RunInUseError",
    "SearchInterruptedError",
    "StorageError",
    "TuneSoftmaxError",
    "command",
]


def command(*words: object, program: str = "tune-softmax") -> str:
    """Return a command for a person to type or paste, quoted for a shell.

    Args:
        words: The verb and its arguments. A `Path` that begins with a dash is written so that it
            is not taken for an option.
        program: What to run.
    """
    return " ".join([program, *map(_quoted, words)])


def _quoted(word: object) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    # As in Bash and Zsh: $'...' with what no terminal shows, or no encoding has, as escapes.
    escaped = (
        char
        if char.isprintable() and char not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )
    return f"$'{''.join(escaped)}'"


class TuneSoftmaxError(Exception):
    """Anything that the user, the machine or the cluster can put right."""

    exit_code = 2


class ExperimentError(TuneSoftmaxError, ValueError):
    """An experiment file, an option or a configuration is wrong."""


class DataError(TuneSoftmaxError):
    """A dataset cannot be had, or is not what it says it is."""


class PackError(TuneSoftmaxError, ValueError):
    """Trials that cannot be trained as one pack."""


class ClusterError(TuneSoftmaxError):
    """A request that no node can ever meet, or no cluster at that address."""


class ClusterLostError(ClusterError):
    """The cluster went away while a search ran; the run can be resumed."""

    exit_code = 7


class ResultsError(TuneSoftmaxError):
    """No run at that path, or not one that this command can use."""


class StorageError(ResultsError):
    """The run folder cannot be written."""

    exit_code = 4


class DamagedRunError(ResultsError):
    """The run folder's files contradict themselves."""

    exit_code = 5


class RunInUseError(ResultsError):
    """Another process writes this run."""

    exit_code = 6


class SearchInterruptedError(ResultsError):
    """A signal stopped a search; everything done is kept, and the run can be resumed."""

    def __init__(self, number: signal.Signals, run: Path, done: int, total: int) -> None:
        super().__init__(
            f"stopped by {number.name}: {done} of {total} trials are done and kept; "
            f"go on with: {command('resume', run)}"
        )
        self.exit_code = 128 + number


class InterruptedEarlyError(BaseException):
    """A signal came before a search trained anything; there is nothing to go on with.

    It is no Exception, so that nothing on the way takes it for a failure, and no
    KeyboardInterrupt, of which the command line's library makes its own exit code.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 128 + number
