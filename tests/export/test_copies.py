"""Copies of runs: whole at any moment, on a real S3 server and in a folder, and back again."""

import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import run_folders
import s3_server

from tune_softmax.cli import main
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError
from tune_softmax.export import copies
from tune_softmax.export.stores import CHUNK_BYTES, Store
from tune_softmax.metrics import State
from tune_softmax.run import results
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger


def forbid(line):
    """Take a report where none may come."""
    raise AssertionError(line)


@pytest.fixture
def s3(monkeypatch):
    """Return a store in a bucket of its own on a real S3 server."""
    s3_server.use(monkeypatch, s3_server.server_url())
    return Store.at(f"s3://{s3_server.new_bucket()}/runs/small")


@pytest.fixture
def shelf(tmp_path):
    """Return a store in a folder."""
    return Store.at(f"file://{tmp_path}/shelf")


@pytest.fixture(params=["s3", "shelf"])
def store(request):
    """Return each kind of store in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(tmp_path):
    """Return a finished run."""
    return run_folders.finished(tmp_path / "run")


def contents(path):
    """Return every file below a folder and what is in it."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def rows(path):
    """Return all that a ledger holds."""
    with closing(Ledger.open(path)) as ledger:
        return ledger.trials(), ledger.epochs(), ledger.events(), ledger.meta()


# --- There and back -----------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was(folder, store, tmp_path):
    """Every file byte for byte, and the ledger row for row."""
    (folder.path / "best").mkdir()
    (folder.path / "best" / "weights.safetensors").write_bytes(bytes(range(256)))
    (folder.path / "name with blanks \u00e4.txt").write_text("x")
    made = copies.put(folder, store)
    fetched = copies.fetch(store, tmp_path / "back", report=forbid)
    assert fetched == made
    mine, theirs = contents(folder.path), contents(tmp_path / "back")
    del mine["run.db"], theirs["run.db"]
    assert mine == theirs
    assert rows(folder.ledger) == rows(tmp_path / "back" / "run.db")
    assert results.load(tmp_path / "back").best() == results.load(folder.path).best()


def test_what_is_of_this_machine_stays(folder, shelf, tmp_path):
    """Locks, drafts, links out of the run and what can be made again are not copied."""
    for name in ("run.lock", "writer.json", "optuna.db", "optuna.db-journal", ".draft"):
        (folder.path / name).write_text("x")
    (tmp_path / "secret").write_text("x")
    (folder.path / "link").symlink_to(tmp_path / "secret")
    (folder.path / ".hidden").mkdir()
    (folder.path / ".hidden" / "file").write_text("x")
    made = copies.put(folder, shelf)
    names = [file.name for file in made.files]
    assert names == ["run.db", "environment.json", "experiment.yaml", "log.txt"]


def test_the_copy_of_a_run_being_written_is_one_plain_file(tmp_path, shelf):
    """It needs no write-ahead log beside it, and can be written on."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    with closing(ledger):
        run_folders.train(ledger, range(2))
        assert folder.ledger.with_name("run.db-wal").exists()
        copies.put(folder, shelf)
        run_folders.train(ledger, range(2, 4), pack=1)
    copies.fetch(shelf, tmp_path / "back", report=forbid)
    assert [path.name for path in (tmp_path / "back").glob("run.db*")] == ["run.db"]
    with closing(Ledger.open(tmp_path / "back" / "run.db", writable=True)) as back:
        assert [trial.number for trial in back.trials()] == [0, 1]
        run_folders.train(back, range(2, 4), pack=1)
        assert len(back.trials()) == 4


def test_a_fetched_folder_appears_whole(folder, shelf, tmp_path):
    """An empty folder is filled, one with something in it is refused and left alone."""
    copies.put(folder, shelf)
    (tmp_path / "empty").mkdir()
    copies.fetch(shelf, tmp_path / "empty", report=forbid)
    before = contents(tmp_path / "empty")
    with pytest.raises(ResultsError, match="empty: there is something already"):
        copies.fetch(shelf, tmp_path / "empty", report=forbid)
    assert contents(tmp_path / "empty") == before
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", "shelf", "empty"}


def test_nothing_there_is_said(s3, shelf, tmp_path):
    """Neither a wrong address nor one that only waits for its first copy has a run."""
    copies.prepare(run_folders.finished(tmp_path / "run"), shelf)
    for store in (s3, shelf):
        with pytest.raises(ResultsError, match="no copy of a run there; make one with"):
            copies.fetch(store, tmp_path / "back", report=forbid)
    assert not (tmp_path / "back").exists()


# --- While it is written ------------------------------------------------------------------------


SUPPORT = Path(run_folders.__file__).parent

WRITER = """
import sys, run_folders
from pathlib import Path
folder, ledger = run_folders.begin(Path(sys.argv[1]))
print("ready", flush=True)
for pack in range(1000):
    run_folders.train(ledger, [2 * pack, 2 * pack + 1], pack=pack)
"""


def written_by(number_of_trials):
    """Return the rows that the writer writes, in its order: trials handed out, then epochs."""
    order = []
    for pack in range(number_of_trials // 2):
        order.append(("pack", pack))
        for number in (2 * pack, 2 * pack + 1):
            order += [
                (number, epoch) for epoch in range(1, run_folders.config(number).num_epochs + 1)
            ]
    return order


def test_copies_during_writes_hold_a_prefix(tmp_path, shelf):
    """Another process commits all the time; each copy is what the ledger was at one moment."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        cwd=SUPPORT,
    )
    sizes = []
    try:
        assert writer.stdout.readline() == b"ready\n"
        folder = RunFolder(tmp_path / "run")
        for number in range(6):
            copies.put(folder, shelf)
            back = tmp_path / f"back-{number}"
            copies.fetch(shelf, back, report=forbid)
            with closing(sqlite3.connect(back / "run.db")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            trials, epochs, _, _ = rows(back / "run.db")
            handed_out = [("pack", trial.number // 2) for trial in trials[::2]]
            found = {*handed_out, *((number, epoch) for number, epoch, _ in epochs)}
            order = written_by(len(trials) + 2)
            assert found == set(order[: len(found)])
            assert all(measured == run_folders.metrics(*of) for *of, measured in epochs)
            sizes.append(len(found))
    finally:
        writer.kill()
        writer.communicate()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0], "the writer did not write meanwhile"
    assert len(set(sizes)) >= 3


def test_a_copy_does_not_hold_up_the_writer(tmp_path, monkeypatch, s3):
    """While a slow store takes its time, epochs are committed as ever."""
    folder, ledger = run_folders.begin(tmp_path / "run")
    busy, go_on = threading.Event(), threading.Event()

    def wait(method, _path):
        if method == "PUT":
            busy.set()
            assert go_on.wait(20)

    with closing(ledger), s3_server.Proxy().running() as proxy:
        run_folders.train(ledger, range(2))
        proxy.answer = wait
        s3_server.use(monkeypatch, proxy.url)
        copying = threading.Thread(target=copies.put, args=(folder, s3))
        copying.start()
        assert busy.wait(20)
        run_folders.train(ledger, range(2, 4), pack=1)
        go_on.set()
        copying.join()
        copies.fetch(s3, tmp_path / "back", report=forbid)
        assert len(rows(tmp_path / "back" / "run.db")[0]) == 2
        assert len(ledger.trials()) == 4


# --- What is kept -------------------------------------------------------------------------------


def test_the_newest_two_copies_are_kept(folder, store):
    """The list names the newest first; what it names no more is gone."""
    made = [copies.put(folder, store) for _ in range(4)]
    assert sorted(store.folders()) == sorted(copy.folder for copy in made[2:])
    listed = json.loads(b"".join(store.get("copies.json")))
    assert [copy["folder"] for copy in listed["copies"]] == [made[3].folder, made[2].folder]


def test_the_list_says_what_is_there(folder, s3):
    """Names, sizes and SHA-256 are those of the objects, by Amazon's own client."""
    made = copies.put(folder, s3)
    bucket, _, prefix = s3.root.partition("/")
    assert s3_server.keys(bucket) == sorted(
        [f"{prefix}/copies.json", *(f"{prefix}/{made.folder}/{f.name}" for f in made.files)]
    )
    for file in made.files:
        key = f"{prefix}/{made.folder}/{file.name}"
        content = s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        assert len(content) == file.size_bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256


def test_what_was_never_listed_goes_after_a_day(folder, shelf):
    """A copy that broke off is cleared away, one that may still be under way is not."""
    copies.put(folder, shelf)
    now = datetime.now(UTC)
    for age in (timedelta(hours=23), timedelta(hours=25)):
        shelf.put(f"{(now - age).strftime('%Y%m%dT%H%M%SZ')}-00000000/run.db", [b"x"])
    shelf.put("not-ours/file", [b"x"])
    made = copies.put(folder, shelf)
    left = set(shelf.folders())
    assert len(left) == 4
    assert made.folder in left
    assert "not-ours" in left
    assert not any(name.startswith(f"{now - timedelta(hours=25):%Y%m%dT%H}") for name in left)


def test_the_list_moves_last(folder, monkeypatch, s3, tmp_path):
    """Whatever request of a copy fails for good, the copy before it can still be fetched."""
    first = copies.put(folder, s3)
    with s3_server.Proxy().running() as proxy:
        copies.put(folder, s3)
        s3_server.use(monkeypatch, proxy.url)
        again = Store.at(s3.url)
        copies.put(folder, again)
        num_puts = sum(method == "PUT" for method, *_ in proxy.requests)
        assert num_puts >= len(first.files) + 1
        for failing in range(len(first.files) + 1):
            counter = iter(range(1000))
            proxy.answer = lambda method, _path, counter=counter, failing=failing: (
                403 if method == "PUT" and next(counter) >= failing else None
            )
            with pytest.raises(StorageError, match="access denied"):
                copies.put(folder, Store.at(s3.url))
            back = tmp_path / f"back-{failing}"
            copies.fetch(again, back, report=forbid)
            assert rows(back / "run.db") == rows(folder.ledger)


def test_an_address_takes_one_run(folder, shelf, tmp_path):
    """Copies of another run are not pushed out, whatever the runs are called."""
    copies.put(folder, shelf)
    other = run_folders.finished(tmp_path / "other" / "run")
    before = contents(shelf.local_path)
    for act in (copies.put, copies.prepare):
        with pytest.raises(ResultsError, match=r"holds copies of another run .*shelf/run"):
            act(other, shelf)
    new = RunFolder(tmp_path / "new")
    with pytest.raises(ResultsError, match="another run"):
        copies.prepare(new, shelf)
    assert contents(shelf.local_path) == before
    copies.prepare(folder, shelf)
    copies.put(folder, shelf)


def test_a_fetched_run_goes_on_in_its_place(folder, shelf, tmp_path):
    """It is the same run, wherever it lies now."""
    copies.put(folder, shelf)
    copies.fetch(shelf, tmp_path / "elsewhere", report=forbid)
    moved = RunFolder(tmp_path / "elsewhere")
    with closing(Ledger.open(moved.ledger, writable=True)) as ledger:
        run_folders.train(ledger, range(6, 8), pack=1)
    copies.prepare(moved, shelf)
    copies.put(moved, shelf)


def test_preparing_finds_a_store_that_cannot_be_written(monkeypatch, tmp_path):
    """Before a search begins, and not an hour later."""
    s3_server.use(monkeypatch, s3_server.server_url())
    new = RunFolder(tmp_path / "new")
    with pytest.raises(StorageError, match="there is no such bucket"):
        copies.prepare(new, Store.at("s3://no-such-bucket/x"))


# --- What is damaged ----------------------------------------------------------------------------


def test_a_damaged_ledger_is_not_copied(folder, shelf):
    """The copies made before stay."""
    copies.put(folder, shelf)
    before = contents(shelf.local_path)
    content = bytearray(folder.ledger.read_bytes())
    content[8000:8200] = bytes(200)
    folder.ledger.write_bytes(content)
    with pytest.raises(DamagedRunError, match=r"run\.db"):
        copies.put(folder, shelf)
    assert contents(shelf.local_path) == before


@pytest.mark.parametrize("table", ["trials", "epochs"])
def test_a_changed_row_is_not_copied(folder, shelf, table):
    """SQLite finds nothing wrong with it, the row's own checksum does."""
    column = {"trials": "attempts", "epochs": "train_loss"}[table]
    with closing(sqlite3.connect(folder.ledger)) as connection:
        connection.execute(f"UPDATE {table} SET {column} = 7 WHERE number = 2")  # noqa: S608
        connection.commit()
    with pytest.raises(DamagedRunError, match=f"table {table}"):
        copies.put(folder, shelf)
    assert not shelf.local_path.exists()


def spoil(store, copy, name):
    """Flip one bit of a copied file."""
    key = f"{copy.folder}/{name}"
    content = bytearray(b"".join(store.get(key)))
    content[len(content) // 2] ^= 1
    store.put(key, [bytes(content)])


def test_a_damaged_copy_gives_way_to_the_one_before(folder, store, tmp_path):
    """It is said which was damaged and why."""
    older, newer = copies.put(folder, store), copies.put(folder, store)
    spoil(store, newer, "run.db")
    said = []
    assert copies.fetch(store, tmp_path / "back", report=said.append) == older
    (line,) = said
    assert "is damaged: run.db is not what was put there" in line
    spoil(store, older, "log.txt")
    with pytest.raises(DamagedRunError, match="no copy there is whole"):
        copies.fetch(store, tmp_path / "back-2", report=said.append)
    assert not (tmp_path / "back-2").exists()


def test_a_file_that_goes_on_is_no_whole_copy(folder, shelf, tmp_path):
    """Even where what was put there is all at its beginning."""
    (folder.path / "long").write_bytes(bytes(CHUNK_BYTES))
    made = copies.put(folder, shelf)
    with (shelf.local_path / made.folder / "long").open("ab") as file:
        file.write(b"more")
    said = []
    with pytest.raises(DamagedRunError, match="no copy there is whole"):
        copies.fetch(shelf, tmp_path / "back", report=said.append)
    assert "long is not what was put there" in said[0]


def test_a_lost_file_is_missed(folder, shelf, tmp_path):
    """A copy that lacks a file is not whole."""
    made = copies.put(folder, shelf)
    (shelf.local_path / made.folder / "experiment.yaml").unlink()
    said = []
    with pytest.raises(DamagedRunError):
        copies.fetch(shelf, tmp_path / "back", report=said.append)
    assert "experiment.yaml is missing" in said[0]


def test_a_reader_overtaken_by_new_copies_finds_them(folder, shelf, tmp_path, monkeypatch):
    """Both copies that it knew are deleted while it reads; it fetches a newer one."""
    copies.put(folder, shelf)
    copies.put(folder, shelf)
    get = Store.get
    newer = []

    def overtaken(self, name):
        if name.endswith("run.db") and not newer:
            newer.extend(copies.put(folder, shelf) for _ in range(2))
        return get(self, name)

    monkeypatch.setattr(Store, "get", overtaken)
    said = []
    assert copies.fetch(shelf, tmp_path / "back", report=said.append) in newer
    assert len(said) == 2


@pytest.mark.parametrize("longer_first", [False, True])
def test_a_list_replaced_while_it_is_read_is_read_again(
    folder, monkeypatch, s3, tmp_path, longer_first
):
    """A store tells a length and then gives the bytes of what is there by then."""
    bucket, _, prefix = s3.root.partition("/")
    copies.put(folder, s3)
    short = b"".join(s3.get("copies.json"))
    copies.put(folder, s3)
    long = b"".join(s3.get("copies.json"))
    assert len(long) > len(short)
    before, after = (long, short) if longer_first else (short, long)
    s3.put("copies.json", [before])
    replaced = []

    def replace(method, path):
        if method == "GET" and path.endswith("copies.json") and not replaced:
            replaced.append(path)
            key = f"{prefix}/copies.json"
            s3_server.client().put_object(Bucket=bucket, Key=key, Body=after)

    with s3_server.Proxy().running() as proxy:
        proxy.answer = replace
        s3_server.use(monkeypatch, proxy.url)
        copies.fetch(Store.at(s3.url), tmp_path / "back", report=lambda _line: None)
    assert replaced
    assert (tmp_path / "back" / "run.db").exists()


@pytest.mark.parametrize(
    "name", ["../escaped", "/abs", "a/../../b", "", ".", "a//b", "nul\0", "a/."]
)
def test_a_strangers_list_cannot_write_elsewhere(folder, shelf, tmp_path, name):
    """A name that leads out of the folder makes the list one of nobody's."""
    copies.put(folder, shelf)
    listed = json.loads(b"".join(shelf.get("copies.json")))
    listed["copies"][0]["files"][0]["name"] = name
    shelf.put("copies.json", [json.dumps(listed).encode()])
    with pytest.raises(DamagedRunError, match="is no list of copies"):
        copies.fetch(shelf, tmp_path / "back", report=forbid)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "shelf"}


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"format":2}', b"\xff", b"[]"])
def test_a_list_that_is_none_is_refused(folder, shelf, tmp_path, content):
    """Neither fetched from nor replaced."""
    shelf.put("copies.json", [content])
    for act in (
        lambda: copies.fetch(shelf, tmp_path / "back", report=forbid),
        lambda: copies.put(folder, shelf),
    ):
        with pytest.raises(DamagedRunError, match="is no list of copies"):
            act()
    assert b"".join(shelf.get("copies.json")) == content


def test_a_file_listed_twice_is_no_whole_copy(folder, shelf, tmp_path):
    """The second would replace the first."""
    copies.put(folder, shelf)
    listed = json.loads(b"".join(shelf.get("copies.json")))
    listed["copies"][0]["files"] *= 2
    shelf.put("copies.json", [json.dumps(listed).encode()])
    with pytest.raises(DamagedRunError, match="no copy there is whole"):
        copies.fetch(shelf, tmp_path / "back", report=lambda _line: None)


# --- What is refused ----------------------------------------------------------------------------


def test_a_place_in_the_run_is_refused(folder):
    """Each copy would hold the ones before it."""
    for place in (folder.path, folder.path / "copies"):
        with pytest.raises(StorageError, match="lies in the run folder itself"):
            copies.put(folder, Store.at(f"file://{place}"))


def test_a_folder_without_a_run_is_refused(tmp_path, shelf):
    """There is nothing to copy, and nothing is made at the address."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="no ledger there"):
        copies.put(RunFolder(tmp_path / "empty"), shelf)
    assert not shelf.local_path.exists()


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    """Return the function that runs the command line: to its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tune-softmax", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


def test_the_command_copies_both_ways(folder, s3, tmp_path, run):
    """Which way is told by which of the two is an address."""
    code, said, _ = run("copy", folder.path, s3.url)
    assert code == 0
    assert said.startswith(f"copied {folder.path} to {s3.url}: 4 files, 0.")
    code, said, _ = run("copy", s3.url, tmp_path / "back")
    assert code == 0
    assert "6 trials; go on with: tune-softmax resume" in said
    assert results.load(tmp_path / "back").count(State.COMPLETE) == 6


@pytest.mark.parametrize(
    ("arguments", "expected_code", "expected"),
    [
        (("run", "run2"), 2, "name a run folder and an address"),
        (("s3://a/b", "s3://c/d"), 2, "name a run folder and an address"),
        (("run", "ftp://host/x"), 4, "known are file, gs, s3"),
        (("s3://AKIAKEY:CAN/ARY@bucket/x", "run"), 4, "credentials and endpoints come from"),
    ],
)
def test_a_wrong_use_is_one_message(arguments, expected_code, expected, run):
    """On stderr, with the exit code of its kind and without a secret."""
    code, out, err = run("copy", *arguments)
    assert code == expected_code
    assert expected in " ".join(err.split())
    assert "CAN/ARY" not in out + err


def test_no_secret_is_left_anywhere(folder, s3, tmp_path, run):
    """Neither in the copy nor in what comes back nor in what is printed."""
    secret = s3_server.CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
    for arguments in ((folder.path, s3.url), (s3.url, tmp_path / "back")):
        _, out, err = run("copy", *arguments)
        assert secret.decode() not in out + err
    bucket = s3.root.partition("/")[0]
    found = s3_server.keys(bucket)
    assert len(found) == 5
    for key in found:
        body = s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        assert secret not in body
    assert not any(secret in content for content in contents(tmp_path / "back").values())
