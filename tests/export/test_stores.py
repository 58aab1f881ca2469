"""Stores: addresses, a real S3 server, a folder, and what they say when something is wrong."""

import re
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import s3_server

from tune_softmax.errors import StorageError
from tune_softmax.export.stores import CHUNK_BYTES, Store, _explained, is_address


@pytest.fixture
def s3(monkeypatch):
    """Return a store in a bucket of its own on a real S3 server."""
    s3_server.use(monkeypatch, s3_server.server_url())
    return Store.at(f"s3://{s3_server.new_bucket()}/some/prefix")


@pytest.fixture
def folder(tmp_path):
    """Return a store in a folder whose name needs quoting."""
    return Store.at(f"file://{tmp_path}/a%20b")


@pytest.fixture(params=["s3", "folder"])
def store(request):
    """Return each kind of store in turn."""
    return request.getfixturevalue(request.param)


@contextmanager
def failing(monkeypatch, answer):
    """Put a proxy between us and the S3 server; yield it and a store."""
    with s3_server.Proxy().running() as proxy:
        proxy.answer = answer
        s3_server.use(monkeypatch, proxy.url)
        yield proxy, Store.at(f"s3://{s3_server.new_bucket()}/x")


# --- What a store does --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 3 * CHUNK_BYTES, 12 * CHUNK_BYTES + 1])
def test_what_was_put_is_got(store, size):
    """A file of any size comes back byte for byte, also one sent in several parts."""
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    chunks = [content[i : i + CHUNK_BYTES] for i in range(0, size, CHUNK_BYTES)]
    store.put("deep/name with blanks", chunks)
    assert b"".join(store.get("deep/name with blanks")) == content


def test_a_file_is_replaced(store):
    """The latest content of a name is what is read."""
    store.put("pointer", [b"first, and longer"])
    store.put("pointer", [b"second"])
    assert b"".join(store.get("pointer")) == b"second"


def test_a_reader_of_a_folder_keeps_the_file_that_it_opened(folder):
    """The new one takes its place at once, and does not write into it."""
    folder.put("pointer", [b"first"])
    with (folder.local_path / "pointer").open("rb") as reader:
        folder.put("pointer", [b"second"])
        assert reader.read() == b"first"


@pytest.mark.parametrize("max_bytes", [0, 3, 5, 100])
def test_the_beginning_of_a_file_is_read(store, max_bytes):
    """At most as much as asked for."""
    store.put("name", [b"hello"])
    assert store.read("name", max_bytes) == b"hello"[:max_bytes]


def test_a_missing_file_is_not_found(store):
    """It is told apart from a store that fails."""
    with pytest.raises(FileNotFoundError):
        list(store.get("nothing"))


def test_folders_are_listed_and_deleted(store):
    """Only the folders just below the address count, and deleting one leaves the others."""
    assert store.folders() == []
    for name in ("one/a", "one/b/c", "two/a", "file"):
        store.put(name, [b"x"])
    assert sorted(store.folders()) == ["one", "two"]
    store.delete_folder("one")
    store.delete_folder("one")
    assert store.folders() == ["two"]
    assert list(store.get("two/a")) == [b"x"]


def test_objects_lie_where_the_address_says(s3):
    """Amazon's own client finds them under the prefix."""
    s3.put("run/file", [b"x"])
    bucket, _, prefix = s3.root.partition("/")
    assert s3_server.keys(bucket) == [f"{prefix}/run/file"]


def test_a_small_file_costs_one_request(monkeypatch):
    """Not the three of an upload in parts."""
    with failing(monkeypatch, lambda _method, _path: None) as (proxy, store):
        store.put("name", [b"x"])
        assert [method for method, *_ in proxy.requests] == ["PUT"]


def test_an_upload_to_a_folder_that_breaks_off_leaves_nothing(folder):
    """Neither half of a file under its name nor a draft beside it."""
    folder.put("name", [b"whole"])

    def chunks():
        yield b"half"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        folder.put("name", chunks())
    assert [path.name for path in folder.local_path.iterdir()] == ["name"]
    assert list(folder.get("name")) == [b"whole"]


# --- Addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("runs/fashion", "begins with file://, gs:// or s3://"),
        ("ftp://host/path", "ftp://: no such kind of store; known are file, gs, s3"),
        ("S3://bucket", "begins with file://, gs:// or s3://"),
        ("s3://", "no bucket has that name"),
        ("s3://UPPER/x", "no bucket has that name"),
        ("file://relative/x", "file://relative/x: write file:// and an absolute path"),
        ("file://", "write file:// and an absolute path"),
        ("file:///a%00b", "an absolute path"),
    ],
)
def test_a_wrong_address_is_refused(url, expected):
    """The message says what an address is."""
    with pytest.raises(StorageError) as raised:
        Store.at(url)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    "path",
    ["a//b", "/a", "./a", "a/../b", "..", "a\nb", "a\x1b[2J", "\udcff", "x" * 513],
    ids=ascii,
)
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_path_that_a_store_does_not_take_is_refused(scheme, path):
    """By us, in one message, and not by the library's own exceptions."""
    with pytest.raises(StorageError, match=f"{scheme}://bucket/.*: the path must be of printable"):
        Store.at(f"{scheme}://bucket/{path}")


@pytest.mark.parametrize("name", ["a b", "a%b", "a%2Fb", "é", "a?b#c", "-dash", "x" * 200])
def test_a_folder_of_any_name_keeps_what_is_put_there(tmp_path, name):
    """Its address leads to it, whichever characters it has."""
    store = Store("file", str(tmp_path / name))
    store.put("copy/file", [b"x"])
    again = Store.at(store.url)
    assert again == store
    assert again.read("copy/file", 10) == b"x"
    assert again.folders() == ["copy"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("url", ["file:///tmp/%ff", "file:///tmp/\udcff"])
def test_a_folder_whose_name_is_not_utf8_is_refused(url):
    """The library that reads and writes there takes none."""
    with pytest.raises(StorageError, match="the path must be UTF-8"):
        Store.at(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:CANARY@bucket/x",
        "s3://AKIAKEY:CAN/ARY@bucket/x",
        "s3://CANARY@bucket",
        "gs://user:CANARY@bucket/x",
        "s3://bucket/x?access_key=CANARY&secret_key=CANARY",
        "s3://bucket:CANARY/x",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(url):
    """They would get into logs and records; the environment is their place."""
    with pytest.raises(StorageError) as raised:
        Store.at(url)
    assert "credentials" in str(raised.value)
    assert not re.search("CAN|ARY|AKIA", str(raised.value))


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("url", ["http://user:CANARY@host", "ftp://host", "host:9000", "http://"])
def test_a_wrong_endpoint_is_refused_and_not_repeated(monkeypatch, variable, url):
    """The variable is named, its content is not."""
    s3_server.use(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv(variable, url)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL: write http") as raised:
        Store.at("s3://bucket/x").put("name", [b"x"])
    assert "CANARY" not in str(raised.value)


def test_an_address_shows_as_it_was_given():
    """Apart from a slash at its end."""
    for url in ("s3://bucket/a/b", "gs://bucket", "file:///a/b"):
        assert Store.at(f"{url}/").url == url
        assert is_address(url)
    assert not is_address("runs/a:b")


# --- What goes wrong ----------------------------------------------------------------------------


def trouble(store):
    """Return what a store says when it is written to, read and listed."""
    said = []
    for act in (
        lambda: store.put("name", [b"x"]),
        lambda: list(store.get("name")),
        store.folders,
    ):
        with pytest.raises(StorageError) as raised:
            act()
        said.append(str(raised.value))
    return said


def test_a_missing_bucket_is_named(monkeypatch):
    """Writing says that there is none; a reader finds nothing."""
    s3_server.use(monkeypatch, s3_server.server_url())
    store = Store.at("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: there is no such bucket"):
        store.put("name", [b"x"])
    with pytest.raises(FileNotFoundError):
        list(store.get("name"))


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_names_the_variables(monkeypatch, status):
    """The message says where credentials come from, and holds none."""
    with failing(monkeypatch, lambda _method, _path: status) as (_, store):
        for said in trouble(store):
            assert said.startswith(f"{store.url}: access denied; give credentials in the env")
            assert "AWS_SECRET_ACCESS_KEY" in said
            assert s3_server.CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in said


RECORDED = (
    "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of Could not "
    "create a OAuth2 access token to authenticate the request. The underlying error message was: "
    "PerformWork() - CURL error [6]=Could not resolve hostname error_info={reason=, domain=, "
    "metadata={gcloud-cpp.retry.function=ReadObject}})"
)


def test_google_without_credentials_names_the_variable():
    """What pyarrow 26 says where there are none and no network, which takes it nine seconds."""
    assert _explained(OSError(RECORDED)) == (
        "no credentials for Google Cloud; name their file in GOOGLE_APPLICATION_CREDENTIALS "
        "(Could not resolve hostname)"
    )


def test_a_bucket_elsewhere_asks_for_its_region(monkeypatch):
    """Amazon answers with a redirection."""
    with failing(monkeypatch, lambda _method, _path: 301) as (_, store):
        assert all("set AWS_REGION" in said for said in trouble(store))


def test_a_refused_connection_says_so_at_once(monkeypatch):
    """Nobody listens at the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        s3_server.use(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StorageError, match="s3://bucket/x: the store cannot be reached; che"):
            list(Store.at("s3://bucket/x").get("name"))
        assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_connection_into_the_void_is_given_up(monkeypatch):
    """A host that answers no packet costs about ten seconds, three tries of three."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        held = [socket.socket() for _ in range(3)]  # more than its queue takes
        for one in held:
            one.settimeout(0)
            one.connect_ex(full.getsockname())
        s3_server.use(monkeypatch, f"http://127.0.0.1:{full.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached"):
            Store.at("s3://bucket/x").put("name", [b"x"])
        assert 3 < time.monotonic() - began < 15
        for one in held:
            one.close()


def test_every_third_request_may_fail(monkeypatch):
    """A request that a server fails with 500 is made again."""
    lock, count = threading.Lock(), iter(range(1, 1000))

    def every_third(method, _path):
        with lock:
            return 500 if method == "PUT" and next(count) % 3 == 0 else None

    with failing(monkeypatch, every_third) as (proxy, store):
        for number in range(6):
            store.put(f"file-{number}", [bytes([number])])
        for number in range(6):
            assert list(store.get(f"file-{number}")) == [bytes([number])]
        statuses = [status for method, _, status in proxy.requests if method == "PUT"]
        assert statuses.count(500) >= 2
        assert statuses.count(200) == 6


def test_a_server_that_always_fails_is_given_up(monkeypatch):
    """After three tries."""
    with failing(monkeypatch, lambda _method, _path: 503) as (proxy, store):
        with pytest.raises(StorageError, match="the store fails; try later"):
            store.put("name", [b"x"])
        assert 2 <= len(proxy.requests) <= 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file stands in its place."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=f"file://{tmp_path}/file/x: .*Not a directory"):
        Store.at(f"file://{tmp_path}/file/x").put("name", [b"x"])
