"""A ledger in a PostgreSQL database, where a team shares one: each run has a schema of its own.

The URL of a server never holds a password: that comes from PGPASSWORD or from a password file
(PGPASSFILE, ~/.pgpass), which the driver reads by itself, so that nothing here can show it. One
session writes a run, and holds an advisory lock on it as long as it lives.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tune_softmax.errors import DamagedRunError, ResultsError, RunInUseError, StorageError

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresqlSchema", "ServerLocation"]

_FORM = "postgresql://USER@HOST:PORT/DATABASE"
_OPTIONS = ("host", "sslmode")  # the folder of a socket instead of HOST, and how to encrypt
_SCHEMA = re.compile(r"run_[a-z0-9_]{1,59}")  # PostgreSQL's names have at most 63 bytes

# Classes of SQLSTATE that say that the ledger is sound and something is in its way: connection,
# authorization, unknown database, resources, intervention of an operator, system; and missing
# rights, a server that only reads, and a lock. https://www.postgresql.org/docs/current/errcodes-appendix.html
_STORAGE_CLASSES = {"08", "28", "3D", "53", "57", "58"}
_STORAGE_STATES = {"42501", "25006", "55P03"}

# Who holds a lock. Its 64-bit key stands in the catalogue as two halves.
_HOLDER = """
SELECT a.application_name, a.client_addr, a.backend_start
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32) | l.objid::bigint = %s
"""


@dataclass(frozen=True, slots=True)
class ServerLocation:
    """One run's schema in a PostgreSQL database.

    Attributes:
        url: The database, without a password.
        schema: The schema's name.
    """

    url: sa.URL
    schema: str

    @classmethod
    def choose(cls, url: str, run: str) -> ServerLocation:
        """Return a new location, whose schema nobody has yet.

        Args:
            url: The database.
            run: The run's name, for people to recognize its schema by.

        Raises:
            ResultsError: The URL is not of the right form, or holds a password.
        """
        readable = re.sub("[^a-z0-9]+", "_", run.lower()).strip("_")[:40] or "unnamed"
        return cls(_parsed(url, _OPTIONS), f"run_{readable}_{secrets.token_hex(4)}")

    @classmethod
    def parse(cls, text: str) -> ServerLocation:
        """Read what `str` of a location wrote.

        Raises:
            ResultsError: The text is no such location.
        """
        url = _parsed(text, (*_OPTIONS, "schema"))
        schema = url.query.get("schema")
        if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
            raise ResultsError(f"{text}: must end in ?schema=run_NAME, as a search writes it")
        return cls(url.difference_update_query(["schema"]), schema)

    def __str__(self) -> str:
        return self.url.update_query_dict({"schema": self.schema}).render_as_string()


def _parsed(text: str, options: tuple[str, ...]) -> sa.URL:
    """Read a URL; no message repeats it before it is sure that it holds no password."""
    wrong = f"the ledger's URL must be {_FORM}, without a password"
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ResultsError(f"{wrong}; this one cannot be read") from None
    if url.password is not None or {"password", "passfile"} & url.query.keys():
        raise ResultsError(f"{wrong}; put the password into PGPASSWORD or into ~/.pgpass")
    if url.drivername != "postgresql":
        raise ResultsError(f"{wrong}, got one that begins with {url.drivername}://")
    if unknown := url.query.keys() - set(options):
        allowed = ", ".join(options)
        raise ResultsError(f"{wrong}; allowed options: {allowed}, got {', '.join(unknown)}")
    if any(not isinstance(value, str) for value in url.query.values()):
        raise ResultsError(f"{wrong}; it names an option twice")
    if not url.database or not (url.host or url.query.get("host")):
        raise ResultsError(f"{wrong}; this one names no {'host' if url.database else 'database'}")
    return url


class PostgresqlSchema:
    """Where a PostgreSQL ledger lies.

    Args:
        location: Its database and schema.
        writable: Whether this process will write; one session at a time may.
        is_new: Whether to make it.

    Raises:
        ResultsError: The driver is not installed.
    """

    def __init__(self, location: ServerLocation, *, writable: bool, is_new: bool = False) -> None:
        self.name = str(location)
        self._location = location
        self._writable = writable
        self._is_new = is_new
        self._has_connected = False
        try:
            self.engine = sa.create_engine(
                "postgresql+psycopg://",
                creator=self._connect,
                poolclass=sa.pool.QueuePool,
                pool_size=1,
                max_overflow=0,
                isolation_level="READ COMMITTED" if writable else "REPEATABLE READ",
            )
        except ImportError as error:
            raise ResultsError(
                f"{self.name}: PostgreSQL needs a driver that is not installed ({error}); "
                "install it: pip install 'tune-softmax[postgresql]'"
            ) from error

    def _connect(self) -> psycopg.Connection[Any]:
        """Open a session, and lock the run where it is to write.

        Raises:
            RunInUseError: Another session writes the run.
            StorageError: This was a writer's session before, and is lost: since then another may
                have written.
        """
        import psycopg

        if self._writable and self._has_connected:
            raise StorageError(
                f"{self.name}: the connection was lost; what was committed is there, resume the "
                "run"
            )
        url = self._location.url
        options: dict[str, Any] = dict(url.query)
        if url.host:
            options["host"] = url.host
        connection = psycopg.connect(
            **options,
            port=url.port,
            user=url.username,
            dbname=url.database,
            application_name=f"tune-softmax, process {os.getpid()} on {socket.gethostname()}"[:63],
            connect_timeout=os.environ.get("PGCONNECT_TIMEOUT") or "10",  # seconds
            # A server that has vanished is noticed within about a minute.
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,  # milliseconds
            autocommit=True,
        )
        try:
            connection.execute(f'SET search_path TO "{self._location.schema}"')
            if self._writable:
                self._lock(connection)
        except BaseException:
            connection.close()
            raise
        connection.autocommit = False
        connection.read_only = not self._writable
        self._has_connected = True
        return connection

    def _lock(self, connection: psycopg.Connection[Any]) -> None:
        digest = hashlib.sha256(self._location.schema.encode()).digest()
        key = int.from_bytes(digest[:8], signed=True)
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
        if row == (True,):
            return
        who = "another session"
        if holder := connection.execute(_HOLDER, [key]).fetchone():
            name, address, since = holder
            who = name or who
            if since is not None:  # else we may not see more of another user's session
                who += f" ({address or 'local'}, since {since.isoformat(timespec='seconds')})"
        raise RunInUseError(
            f"{self.name}: {who} writes this run; wait until it ends or stop it first"
        )

    def check_made(self) -> None:
        """Check that the schema is there, with something in it.

        Raises:
            ResultsError: It is not, or its writer has not come so far yet.
        """
        with self.engine.connect() as connection:
            inspector = sa.inspect(connection)
            if not inspector.has_schema(self._location.schema):
                raise ResultsError(
                    f"{self.name}: no ledger there; its schema is not in the database"
                )
            if not inspector.get_table_names(self._location.schema):
                raise ResultsError(
                    f"{self.name}: the search has not begun to write; if none runs, one was "
                    "killed before its first trial: remove the folder and search again"
                )

    def begin_writing(self, _commits: int) -> None:
        """Make the schema, if it is to be new.

        Raises:
            ResultsError: There is one already.
        """
        if not self._is_new:
            return
        with self.engine.begin() as connection:
            if sa.inspect(connection).has_schema(self._location.schema):
                raise ResultsError(
                    f"{self.name}: there is a run already; resume it or choose another folder"
                )
            connection.execute(sa.schema.CreateSchema(self._location.schema))

    def check_in_place(self) -> None:
        """Check nothing: the server keeps what it has committed."""

    def note_commit(self, _commits: int) -> None:
        """Note nothing: the server keeps what it has committed."""

    def loss(self, _found: int) -> None:
        """Return None: the server keeps what it has committed."""

    def faults(self, _connection: sa.Connection) -> list[str]:
        """Return nothing: the server checks its files itself."""
        return []

    def close(self) -> None:
        """Close the session, and with it release the run."""
        self.engine.dispose()

    def translated(self, error: Exception) -> ResultsError:
        """Return our error for one of the server's."""
        original = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
        state = getattr(original, "sqlstate", None)
        reason = " ".join(str(original).split())
        if not self._has_connected:
            return StorageError(
                f"{self.name}: cannot be reached ({reason}); see that the server runs, that the "
                "user may use the database, and that PGPASSWORD or ~/.pgpass holds the password"
            )
        if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
            return StorageError(
                f"{self.name}: the connection was lost ({reason}); what was committed is there, "
                "resume the run"
            )
        if state is None or state[:2] in _STORAGE_CLASSES or state in _STORAGE_STATES:
            return StorageError(
                f"{self.name}: the server says '{reason}'; put that right, then resume the run"
            )
        return DamagedRunError(
            f"{self.name}: the server says '{reason}'; restore the schema from a copy"
        )
