"""Started by Ray in place of a worker: asks the fork server for it, or else becomes it.

A script, run without site packages, so that it is there in no time.
"""

import json
import os
import socket
import sys

__all__ = ["DONE", "END", "JOB", "NO_JOB", "main"]

# Ends what is asked for, and the answer once it is there.
END = b"\n"
DONE = b"!"
# Of which job a worker is, and what that is for those that a node starts before there is one.
JOB = "RAY_JOB_ID"
NO_JOB = "ffffffff"


def main() -> None:
    """Ask at the socket that the first argument names for what the others are the command of."""
    place, *command = sys.argv[1:]
    if os.environ.get(JOB) != NO_JOB or not _ask(place, command):
        os.execv(command[0], command)  # noqa: S606 - what Ray was to start


def _ask(place: str, command: list[str]) -> bool:
    """Return whether the server has forked a worker that stands in our place."""
    asked = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - pathlib takes 5 ms
    text = json.dumps(asked).encode() + END
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(place)
            sent = socket.send_fds(connection, [text], [0, 1, 2])
            connection.sendall(text[sent:])
            return connection.recv(len(DONE)) == DONE
    except OSError:  # no server, or no more
        return False


if __name__ == "__main__":
    main()
