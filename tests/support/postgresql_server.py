"""A real PostgreSQL server for tests, with a folder and a port of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

PASSWORD = "canary-8d1f"  # noqa: S105 - of a server that lives as long as the tests
USER = "team"


def programs():
    """Return the folder of the server's programs, None where none is installed."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Server:
    """A server that listens on 127.0.0.1 and asks for a password.

    `start` and `stop` may follow one another; `remove` ends it and deletes its files. PostgreSQL
    refuses to run as root, so it runs as `nobody` then.
    """

    def __init__(self):
        self._programs = programs()
        self._user = "nobody" if os.geteuid() == 0 else None
        # Not below pytest's folder, which nobody else may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="tune-softmax-postgresql-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = None
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        command = [self._programs / "initdb", "--pgdata=data", f"--username={USER}"]
        command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            command, cwd=self.folder, check=True, capture_output=True, **self._as_user()
        )

    @property
    def url(self):
        """The URL of its database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self):
        """Start it, and wait until it answers."""
        command = [self._programs / "postgres", "-D", "data", "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", self.folder, "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, **self._as_user()
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def connect(self):
        """Return a session of its own, to look and to meddle."""
        return psycopg.connect(self.url, password=PASSWORD, autocommit=True)

    def stop(self, signal_number):
        """Stop it with a signal: SIGINT cuts every session off, SIGQUIT as a crash would."""
        self._process.send_signal(signal_number)
        self._process.wait(30)

    def remove(self):
        """End it, if it runs, and delete its files."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        shutil.rmtree(self.folder)

    def _as_user(self):
        return {"user": self._user, "group": "nogroup", "extra_groups": []} if self._user else {}
