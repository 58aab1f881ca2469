"""The ledger in PostgreSQL: URLs without a password, one writer, and a server that goes away."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from run_folders import EXPERIMENT

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, RunInUseError, StorageError
from tune_softmax.experiment.experiment import parse
from tune_softmax.metrics import EpochMetrics, Report, State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.postgresql import ServerLocation
from tune_softmax.run.results import load
from tune_softmax.studies.search import search

CONFIG = Config(batch_size=64, num_epochs=5, learning_rate=0.1)


# URLs

URL = "postgresql://ann@db.example:5433/team"


def test_every_run_gets_a_schema_of_its_own():
    """Its name says whose it is, and is new each time."""
    first, second = (ServerLocation.choose(URL, "Fashion MNIST-2/é") for _ in range(2))
    assert re.fullmatch(r"run_fashion_mnist_2_[0-9a-f]{8}", first.schema)
    assert first.schema != second.schema
    assert first.url == second.url == sa.make_url(URL)


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "postgresql://db.example/team",
        "postgresql://ann%40lab@[::1]/team?sslmode=require",
        "postgresql:///team?host=%2Frun%2Fpostgresql",
        "postgresql://ann@/t%C3%A9am?host=/run/postgresql&sslmode=disable",
    ],
)
@pytest.mark.parametrize("run", ["x", "", "-" * 99, "a" * 99])
def test_a_location_is_read_back_from_its_text(url, run):
    """What a run folder holds leads to the same schema."""
    location = ServerLocation.choose(url, run)
    assert ServerLocation.parse(str(location)) == location
    assert len(location.schema) <= 63


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://ann:secret@db/team", "put the password into PGPASSWORD or into ~/.pgpass"),
        ("postgresql://ann:@db/team", "put the password into PGPASSWORD"),
        ("postgresql://db/team?password=secret", "put the password into PGPASSWORD"),
        ("postgresql://ann:se@cret@db/team", "put the password into PGPASSWORD"),
        ("postgresql://ann:sec/ret@db/team", "put the password into PGPASSWORD"),
        ("postgresql://ann@db:secret/team", "cannot be read"),
        ("secret", "cannot be read"),
        ("", "cannot be read"),
        ("postgres://ann@db/team", "got one that begins with postgres://"),
        ("mysql://ann@db/team", "got one that begins with mysql://"),
        ("postgresql+psycopg2://ann@db/team", "got one that begins with postgresql+psycopg2://"),
        ("postgresql://ann@db", "names no database"),
        ("postgresql:///team", "names no host"),
        ("postgresql://ann@db/team?sslkey=secret", "host, sslmode, got sslkey"),
        ("postgresql://ann@db/team?sslmode=a&sslmode=secret", "names an option twice"),
        ("postgresql://ann@db/team?schema=run_x", "host, sslmode, got schema"),
    ],
)
def test_a_url_of_another_form_is_refused(url, reason):
    """With what is allowed, and never repeating what might be a password."""
    with pytest.raises(ResultsError) as caught:
        ServerLocation.choose(url, "run")
    assert "must be postgresql://USER@HOST:PORT/DATABASE, without a password" in str(caught.value)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.exit_code == 2


@given(st.text(min_size=1), st.sampled_from(["@db/team", "@db:5432/team", "@/team?host=/tmp"]))
def test_no_password_is_taken_or_shown(password, rest):
    """Whatever characters it has, quoted or not."""
    marked = f"canary{password}canary"
    for text in (marked, st.__name__ + marked):
        with pytest.raises(ResultsError) as caught:
            ServerLocation.choose(f"postgresql://ann:{text}{rest}", "run")
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", [URL, f"{URL}?schema=public", f"{URL}?schema=run_x%22%3B--", ""])
def test_a_text_that_is_no_location_is_a_damaged_run(tmp_path, text):
    """A run folder may come from a stranger: its file leads to schemas of ours alone."""
    folder = RunFolder(tmp_path)
    (tmp_path / "ledger.url").write_text(text)
    with pytest.raises(DamagedRunError, match=r"ledger\.url: ") as caught:
        load(folder.path)
    assert caught.value.exit_code == 5


# A server


@pytest.fixture
def location(postgresql):
    """Return where a ledger goes."""
    return ServerLocation.choose(postgresql.url, "test")


@pytest.fixture
def ledger(location):
    """Return a new ledger, open for writing."""
    with closing(Ledger.create(location, {"dataset_checksum": "abc"})) as ledger:
        yield ledger


def reports(epoch, state=State.RUNNING):
    """Return one epoch of two trials."""
    return [Report(n, epoch, EpochMetrics(1.0, 0.5, 1.0, 0.5, 0.1), state) for n in range(2)]


def test_a_run_folder_leads_to_its_ledger(location, tmp_path):
    """What is in the folder is the location and no more, and results are read through it."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.place_ledger(location)
    assert folder.ledger == location
    assert (folder.path / "ledger.url").read_text() == f"{location}\n"
    folder.experiment.write_text(
        "dataset: {name: digits}\nsearch: {num_trials: 2}\n"
        "space: {batch_size: 64, num_epochs: 5, learning_rate: {uniform: [0.1, 1]}}\n"
    )
    with closing(Ledger.create(folder.ledger, {})) as ledger:
        ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
        ledger.record(0, reports(1))
        ledger.finish([0, 1], State.WAITING)
    folder.record_test_opening(command="train", trial=0)
    found = load(folder.path)
    assert list(found.trials["state"]) == [State.WAITING, State.WAITING]
    assert not (folder.path / "run.db").exists()


def test_runs_in_one_database_do_not_see_each_other(postgresql):
    """Each has its numbers from 0, and is locked by itself."""
    locations = [ServerLocation.choose(postgresql.url, "same") for _ in range(2)]
    first, second = (Ledger.create(location, {}) for location in locations)
    with closing(first), closing(second):
        first.hand_out(0, {0: CONFIG})
        second.hand_out(0, {0: CONFIG, 1: CONFIG})
        assert (len(first.trials()), len(second.trials())) == (1, 2)


def test_a_second_writer_is_refused_and_told_who_writes(ledger, location):
    """Process, host, address and time; and it takes over once the first is gone."""
    ledger.hand_out(0, {0: CONFIG})
    with pytest.raises(RunInUseError) as caught:
        Ledger.open(location, writable=True)
    assert caught.value.exit_code == 6
    who = rf"tune-softmax, process {os.getpid()} on {socket.gethostname()}"
    assert re.search(
        rf"{who} \(127\.0\.0\.1, since 20\d\d-.*\) writes this run", str(caught.value)
    )
    ledger.close()
    with closing(Ledger.open(location, writable=True)) as second:
        assert second.hand_out(1, {0: CONFIG}) == {0: 2}


def test_a_writer_whom_we_may_not_see_is_still_there(postgresql, ledger, location):
    """A user without the right to look at other sessions is refused all the same."""
    with postgresql.connect() as session:
        session.execute("CREATE ROLE guest LOGIN PASSWORD 'canary-8d1f'")
        session.execute(f'GRANT USAGE ON SCHEMA "{location.schema}" TO guest')
    guest = ServerLocation(location.url.set(username="guest"), location.schema)
    try:
        with pytest.raises(RunInUseError, match=r": tune-softmax, process .* writes this run"):
            Ledger.open(guest, writable=True)
        with pytest.raises(StorageError, match=r"permission denied for table meta.*; put that"):
            Ledger.open(guest)
        with pytest.raises(StorageError, match="permission denied for database"):
            Ledger.create(ServerLocation.choose(str(guest.url), "guest"), {})
        with postgresql.connect() as session:
            session.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "{location.schema}" TO guest')
        with closing(Ledger.open(guest)) as reader:
            assert reader.contents().faults == []
    finally:
        with postgresql.connect() as session:
            session.execute("DROP OWNED BY guest; DROP ROLE guest")
    assert ledger.events() == []


def test_a_lost_connection_is_a_storage_error_and_what_was_committed_is_there(
    postgresql, ledger, location
):
    """Exit code 4; the session does not come back, for another may have written meanwhile."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.record(0, reports(1))
    with postgresql.connect() as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE 'tune-softmax%'"
        )
    for _ in range(2):
        with pytest.raises(StorageError, match=r"connection was lost.*, resume the run") as caught:
            ledger.record(0, reports(2))
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    with closing(Ledger.open(location, writable=True)) as second:
        assert [epoch for _, epoch, _ in second.epochs()] == [1, 1]
        second.record(0, reports(2))
        assert second.contents().faults == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_goes_down_has_kept_what_was_committed(
    postgresql, ledger, location, signal_number
):
    """In order or by a crash: the search ends with one message, and a resume finds it all."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.record(0, reports(1))
    postgresql.stop(signal_number)
    try:
        with pytest.raises(StorageError, match=r"connection was lost \(.*\); what was committed"):
            ledger.record(0, reports(2))
        ledger.close()
        with pytest.raises(StorageError, match=r"cannot be reached \(.*Connection refused"):
            Ledger.open(location)
    finally:
        postgresql.start()
    with closing(Ledger.open(location, writable=True)) as second:
        assert [epoch for _, epoch, _ in second.epochs()] == [1, 1]
        assert second.contents().faults == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"username": "nobody"}, 'password authentication failed for user "nobody"'),
        ({"database": "nothing"}, 'database "nothing" does not exist'),
        ({"port": 1}, "Connection refused"),
        ({"host": "no.such.host.invalid"}, "no.such.host.invalid"),
    ],
)
@pytest.mark.parametrize(
    "use", [Ledger.open, Ledger.check_reachable, lambda x: Ledger.create(x, {})]
)
def test_a_server_that_cannot_be_reached_is_a_storage_error(location, change, reason, use):
    """Exit code 4 and one line, that tells where the password is looked for."""
    elsewhere = ServerLocation(location.url.set(**change), location.schema)
    with pytest.raises(
        StorageError, match=r"PGPASSWORD or ~/\.pgpass holds the password"
    ) as caught:
        use(elsewhere)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{elsewhere}: cannot be reached")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("password", ["wrong-canary", None])
def test_a_wrong_password_is_not_shown(location, monkeypatch, tmp_path, password):
    """Nor is one that is missing asked for."""
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    monkeypatch.delenv("PGPASSWORD")
    if password:
        monkeypatch.setenv("PGPASSWORD", password)
    with pytest.raises(StorageError, match=r"cannot be reached .*password") as caught:
        Ledger.check_reachable(location)
    assert "canary" not in str(caught.value)


def test_the_password_may_come_from_a_file(location, monkeypatch, tmp_path):
    """As every client of PostgreSQL reads it."""
    password = os.environ["PGPASSWORD"]
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:*:*:*:{password}\n")
    file.chmod(0o600)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(file))
    Ledger.check_reachable(location)


def test_a_reachable_database_need_not_hold_a_ledger(location):
    """Nothing is made by looking."""
    Ledger.check_reachable(location)
    with pytest.raises(ResultsError, match="its schema is not in the database"):
        Ledger.open(location)


def test_a_run_whose_schema_was_dropped_is_no_run(postgresql, ledger, location):
    """The message says what is missing."""
    ledger.close()
    with postgresql.connect() as session:
        session.execute(f'DROP SCHEMA "{location.schema}" CASCADE')
    with pytest.raises(ResultsError, match="no ledger there; its schema is not in the database"):
        Ledger.open(location)


def test_a_search_that_was_killed_before_it_wrote_has_lost_nothing(
    location, in_child, monkeypatch
):
    """Its schema is there without tables; the message says so, and it is no damage."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("tune_softmax.run.ledger.make_tables", die)
    assert in_child(Ledger.create, location, {}) == -signal.SIGKILL
    with pytest.raises(ResultsError, match="killed before its first trial: remove the folder"):
        Ledger.open(location)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("UPDATE trials SET attempts = 2 WHERE number = 1", "trials, number 1: is not what was"),
        ("UPDATE epochs SET train_loss = 'NaN'", "epochs, number 0, epoch 1: is not what was"),
        ("DELETE FROM epochs WHERE number = 1", "epochs: has 1 rows where 2 were written"),
        ("DROP TABLE tests", 'relation "tests" does not exist'),
        ("ALTER TABLE epochs DROP COLUMN seconds", "column epochs.seconds does not exist"),
        ("DELETE FROM seal", "table seal: must hold one sound row"),
    ],
)
def test_a_harmed_ledger_says_what_is_wrong(postgresql, ledger, location, harm, reason):
    """A colleague's hand in the tables is found as damage of a file is."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.record(0, reports(1))
    ledger.close()
    with postgresql.connect() as session:
        session.execute(f'SET search_path TO "{location.schema}"')
        session.execute(harm)
    with pytest.raises(DamagedRunError, match=reason) as caught:
        Ledger.open(location, writable=True)
    assert str(caught.value).startswith(f"{location}: ")
    assert "\n" not in str(caught.value)


WITHOUT_DRIVER = """
import json, sys
sys.modules["psycopg"] = None
from tune_softmax.errors import ResultsError
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.postgresql import ServerLocation
try:
    Ledger.open(ServerLocation.parse(sys.argv[1]))
except ResultsError as error:
    print(json.dumps([str(error), error.exit_code]))
"""


def test_a_missing_driver_is_named_with_what_installs_it():
    """Nobody who keeps the ledger in a file needs it."""
    location = f"{URL}?schema=run_x"
    command = [sys.executable, "-c", WITHOUT_DRIVER, location]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    message, exit_code = json.loads(done.stdout)
    assert message.startswith(f"{location}: PostgreSQL needs a driver that is not installed")
    assert message.endswith("install it: pip install 'tune-softmax[postgresql]'")
    assert exit_code == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_into_a_database_is_killed_and_resumed(postgresql, tmp_path):
    """By the command line: no password is in the folder, and nothing finished is trained again."""
    experiment = tmp_path / "small.yaml"
    experiment.write_text(
        "dataset: {name: digits, validation: 0.25}\n"
        "space: {batch_size: 32, num_epochs: {int: [2, 6]}, learning_rate: {uniform: [0.01, 1]}}\n"
        "search: {num_trials: 200, pack_size: 10}\n"
    )
    command = [str(Path(sys.executable).with_name("tune-softmax"))]
    folder = tmp_path / "run"
    search = subprocess.Popen(
        [*command, "search", experiment, "--run-dir", folder, "--ledger", postgresql.url],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = {}
    for _ in range(600):
        time.sleep(0.1)
        with suppress(ResultsError):  # there is none yet
            before = done(folder)
        if len(before) >= 20:
            break
    search.kill()
    search.wait(30)
    assert 20 <= len(before) < 200
    for name in ("resume", "check"):
        ended = subprocess.run(
            [*command, name, folder], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("200 trials, ")
    after = done(folder)
    assert len(after) == 200
    assert {number: after[number] for number in before} == before
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    assert os.environ["PGPASSWORD"].encode() not in content
    assert str(postgresql.port).encode() in content


def done(folder):
    """Return pack and attempts of every trial that is done, by number."""
    trials = load(folder).trials
    trials = trials[trials["state"].isin([State.COMPLETE, State.PRUNED])]
    return {row.number: (row.pack, row.attempts) for row in trials.itertuples()}


@pytest.mark.parametrize("value", ["", "7"])
def test_a_timeout_of_the_drivers_own_variable_counts(location, monkeypatch, value):
    """An empty one is none, as for every variable of the driver."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", value)
    Ledger.check_reachable(location)


def test_a_timeout_that_is_no_number_is_named(location, monkeypatch):
    """The driver says which variable it is, and the command ends with exit code 4."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "soon")
    with pytest.raises(StorageError, match=r"cannot be reached .*connect_timeout.*soon"):
        Ledger.check_reachable(location)


def test_an_empty_address_is_not_taken_for_none(tmp_path):
    """As from a shell's unset variable: a team's run must not go to a file instead."""
    asked = parse(EXPERIMENT, "small.yaml")
    with pytest.raises(ResultsError, match="the ledger's URL must be postgresql://"):
        search(asked, run_dir=tmp_path / "run", ledger_url="")
    assert not (tmp_path / "run").exists()
