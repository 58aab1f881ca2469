"""A served report: on this machine alone, and anew when the run has changed."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from report_runs import config, write_run

from tune_softmax.errors import ResultsError
from tune_softmax.report.serve import Live, follow, serving, stamp
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger


@pytest.fixture
def run(tmp_path):
    """Return the path of a run with few trials."""
    return write_run(tmp_path / "run", 3)


@pytest.fixture
def live(run):
    """Return a page that names its version."""
    return Live(lambda version: f"<p>version {version}</p>", run)


def fetch(address):
    """Return what an address answers with."""
    with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - our own server
        return answer.read().decode()


def add_trials(run, numbers):
    """Let a search hand trials out."""
    with closing(Ledger.open(RunFolder(run).ledger, writable=True)) as ledger:
        ledger.hand_out(1, {number: config(number) for number in numbers})


def test_the_page_and_its_version_are_served(live):
    """At the root and beside it; nothing else is there, and no file of the run."""
    with serving(live, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        assert fetch(address) == "<p>version 1</p>"
        assert fetch(f"{address}version") == "1"
        for name in ("run.db", "../run/run.db", "etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                fetch(address + name)
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(address)


def test_another_name_gets_nothing(live):
    """A page elsewhere cannot read the report by a name that it made lead here."""
    with serving(live, 0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        for host, status in ((f"localhost:{port}", 200), (f"evil.example:{port}", 421)):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/", headers={"Host": host})
                assert connection.getresponse().status == status


def test_it_listens_on_loopback_alone(live):
    """Other machines cannot reach it."""
    with serving(live, 0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        elsewhere = "127.0.0.2"  # this machine too, and not the address that was asked for
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((elsewhere, port))


def test_a_port_in_use_is_an_error(live):
    """The message names it, and the way out."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ResultsError, match=f"--port {port}: .*choose another"):  # noqa: SIM117
            with serving(live, port):
                pass


def test_a_change_of_the_ledger_makes_a_new_page(run, live):
    """And nothing else does: reading, logging and the report's own files."""
    assert not live.refresh()
    with closing(Ledger.open(RunFolder(run).ledger)) as ledger:
        ledger.trials()
    (run / "log.txt").write_text("a line\n")
    (run / "report.html").write_text("a page\n")
    assert not live.refresh()
    add_trials(run, [3])
    assert live.refresh()
    assert (live.version, live.page) == ("2", "<p>version 2</p>")
    assert not live.refresh()


def test_a_change_shows_while_a_search_writes(run, live):
    """Before the writer has closed the ledger."""
    with closing(Ledger.open(RunFolder(run).ledger, writable=True)) as ledger:
        live.refresh()
        ledger.hand_out(1, {3: config(3)})
        assert live.refresh()


def test_a_ledger_in_a_database_is_looked_at_by_the_clock(run, monkeypatch):
    """No file tells when it has changed."""
    (run / "ledger.url").write_text("postgresql://somebody@127.0.0.1/runs?schema=run_1\n")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    first = stamp(run)
    assert stamp(run) == first
    monkeypatch.setattr(time, "time", lambda: 1020.0)
    assert stamp(run) != first


@pytest.fixture
def _interruptible():
    """Let SIGINT be what Ctrl-C makes of it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_following_ends_with_ctrl_c(run, live):
    """And keeps the page up to date until then."""

    def change_and_stop():
        add_trials(run, [3])
        end = time.monotonic() + 10
        while live.version == "1" and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=change_and_stop)
    other.start()
    follow(live)
    other.join()
    assert live.version == "2"


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(run):
    """It prints the address, writes the page too, and ends with 0."""
    code = "from tune_softmax.cli import main; main()"
    command = [sys.executable, "-c", code, "report", str(run), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        page = fetch(address)
        assert 'data-version="1"' in page
        assert "connect-src 'self'" in page
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert "data-version" not in (run / "report.html").read_text(encoding="utf-8")
