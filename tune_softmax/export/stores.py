"""Places where copies of runs are kept: an S3 bucket, a Google Cloud bucket, a folder.

What every one of them can do alike: put a file whole or not at all, read, list, delete. How
failures of theirs become one clear message. Credentials come from the environment alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tune_softmax import files
from tune_softmax.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyarrow import fs

__all__ = ["Store", "is_address"]

CHUNK_BYTES = 1 << 20
MAX_PREFIX_BYTES = 512  # S3's keys have at most 1,024 bytes, and a copy's files have long names
SCHEMES = "file, gs, s3"

# Three tries of a request each may wait so long for a connection, and for a silent server.
CONNECT_TIMEOUT_S = 3
SILENCE_TIMEOUT_S = 6
ATTEMPTS = 3

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

_DENIED = (
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|"
    r"EXPIRED_TOKEN|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED"
)
# What a store's library says, and what we make of it; the first that fits.
_REASONS = {
    r"NO_SUCH_BUCKET|bucket does not exist": "there is no such bucket; make it, or correct it",
    _DENIED: (
        "access denied; give credentials in the environment (for S3 AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) that may list, read, write and delete there"
    ),
    r"HTTP status 30[17]|PERMANENT_REDIRECT": (
        "the bucket is in another region; set AWS_REGION to it"
    ),
    r"OAuth2 access token": (
        "no credentials for Google Cloud; name their file in GOOGLE_APPLICATION_CREDENTIALS"
    ),
    r"NETWORK_CONNECTION|CURL error|curlCode": (
        "the store cannot be reached; check the network, and AWS_ENDPOINT_URL if S3 is not "
        "Amazon's"
    ),
    r"HTTP status 5\d\d|SLOW_DOWN|UNAVAILABLE|INTERNAL_FAILURE": "the store fails; try later",
}


def is_address(text: str) -> bool:
    """Say whether a word of the command line is a store's address, and not a local path."""
    return "://" in text


@dataclass(frozen=True)
class Store:
    """One place at an address; names below it are relative, with slashes.

    Attributes:
        scheme: `file`, `gs` or `s3`.
        root: An absolute path, or BUCKET/PREFIX.
    """

    scheme: str
    root: str

    @classmethod
    def at(cls, url: str) -> Store:
        """Read an address; nothing is looked up there yet.

        Args:
            url: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH.

        Raises:
            StorageError: Not such an address, or one with credentials in it, which the message
                does not repeat.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or not re.fullmatch(r"[a-z0-9+]+", scheme):
            raise StorageError("a store's address begins with file://, gs:// or s3://")
        if scheme not in SCHEMES.split(", "):
            raise StorageError(f"{scheme}://: no such kind of store; known are {SCHEMES}")
        if scheme == "file":
            return cls(scheme, _local_path(rest))
        # A secret may hold slashes, so that an @ or a colon anywhere is suspect.
        if re.search(r"[@:?#]", rest):
            raise StorageError(
                f"{scheme}://...: an address is {scheme}://BUCKET/PREFIX, without @, :, ? and #; "
                "credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, "
                "AWS_ENDPOINT_URL, ...)"
            )
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise StorageError(f"{scheme}://...: no bucket has that name; write {scheme}://BUCKET")
        prefix = prefix.rstrip("/")
        if prefix and ({"", ".", ".."} & set(prefix.split("/")) or not _is_key(prefix)):
            raise StorageError(
                f"{scheme}://{bucket}/...: the path must be of printable UTF-8, at most "
                f"{MAX_PREFIX_BYTES} bytes long, without //, /./ and /../"
            )
        return cls(scheme, f"{bucket}/{prefix}".rstrip("/"))

    @property
    def url(self) -> str:
        """The address, as messages show it and `at` reads it."""
        root = self.root.replace("%", "%25") if self.scheme == "file" else self.root
        return f"{self.scheme}://{root}"

    @property
    def local_path(self) -> Path | None:
        """The folder that this is, where it is one."""
        return Path(self.root) if self.scheme == "file" else None

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file; readers find it whole or not at all.

        Args:
            name: Below the root; one of that name is replaced.
            chunks: Its bytes in order.

        Raises:
            StorageError: It cannot be written.
        """
        with self._explaining():
            if self.local_path is not None:
                path = self.local_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomically(path, chunks)
                return
            with self._filesystem.open_output_stream(f"{self.root}/{name}") as stream:
                for chunk in chunks:
                    stream.write(chunk)

    def get(self, name: str) -> Iterator[bytes]:
        """Read a file in chunks.

        Raises:
            FileNotFoundError: There is none of that name.
            StorageError: It cannot be read.
        """
        with (
            self._explaining(),
            self._filesystem.open_input_stream(f"{self.root}/{name}") as stream,
        ):
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read the beginning of a file that may be replaced at this moment.

        A store tells a file's length first, so that of one that has become longer by then only a
        part is read; of one that has become shorter all.

        Args:
            name: Below the root.
            max_bytes: How much to read at most.

        Raises:
            FileNotFoundError: There is none of that name.
            StorageError: It cannot be read.
        """
        with (
            self._explaining(),
            self._filesystem.open_input_file(f"{self.root}/{name}") as file,
        ):
            content: bytes = file.read_at(min(file.size(), max_bytes), 0)
            return content

    def folders(self) -> list[str]:
        """Return the names of the folders just below the root that have a file in them, sorted.

        Raises:
            StorageError: They cannot be listed.
        """
        from pyarrow import fs

        with self._explaining():
            # All of it, because Google Cloud tells nothing of folders that nobody has made.
            selector = fs.FileSelector(self.root, allow_not_found=True, recursive=True)
            entries = self._filesystem.get_file_info(selector)
        names = (
            entry.path[len(self.root) :].strip("/")
            for entry in entries
            if entry.type == fs.FileType.File
        )
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    def delete_folder(self, name: str) -> None:
        """Delete a folder below the root and all in it, if it is there.

        Raises:
            StorageError: It cannot be deleted.
        """
        with self._explaining(), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self.root}/{name}")

    @cached_property
    def _filesystem(self) -> fs.FileSystem:
        from pyarrow import fs

        if self.scheme == "file":
            return fs.LocalFileSystem()
        if self.scheme == "gs":
            # Google's library makes no promise about one request, so all of its tries are bounded.
            limit = timedelta(seconds=ATTEMPTS * CONNECT_TIMEOUT_S)
            return fs.GcsFileSystem(retry_time_limit=limit)
        scheme, endpoint = _endpoint()
        return fs.S3FileSystem(
            scheme=scheme,
            endpoint_override=endpoint,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=SILENCE_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            allow_delayed_open=True,  # one request for a small file instead of three
        )

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{self.url}: {_explained(error)}") from error


def _is_key(prefix: str) -> bool:
    """Say whether a store takes a path, with the names of files below it."""
    try:
        return prefix.isprintable() and len(prefix.encode("utf-8")) <= MAX_PREFIX_BYTES
    except UnicodeEncodeError:
        return False


def _local_path(rest: str) -> str:
    path = unquote(rest, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        raise StorageError(f"file://{rest}: write file:// and an absolute path: file:///PATH")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise StorageError(f"file://{rest}: the path must be UTF-8; name another") from error
    return os.path.normpath(path)


def _endpoint() -> tuple[str, str | None]:
    """Return the protocol and the host that the environment names for S3, Amazon's by default.

    Amazon's library would read AWS_ENDPOINT_URL, had pyarrow not named a host to it by then.
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "https", None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or "@" in url:
        raise StorageError("AWS_ENDPOINT_URL: write http://HOST:PORT or https://HOST, no more")
    return parts.scheme, parts.netloc + parts.path.rstrip("/")


def _explained(error: OSError) -> str:
    """Return what is wrong and what to do, in our words and at most one line of the library's."""
    text = str(error)
    for pattern, meaning in _REASONS.items():
        if re.search(pattern, text):
            return f"{meaning} ({_detail(text)})"
    return _detail(text)


def _detail(text: str) -> str:
    """Return the heart of a library's message."""
    found = re.search(r"AWS Error .*? operation: (?:curlCode: \d+, )?([^;(]*)", text)
    if found and found[1].strip() not in {"", "No response body."}:
        return found[1].strip().rstrip(".")
    found = re.search(r"AWS Error (.*? operation)", text) or re.search(
        r"CURL error[^=]*=([^=]*?) error_info", text
    )
    return (found[1] if found else text.splitlines()[0])[:200]
