"""`copies.json`: which copies of a run a store holds, and the SHA-256 of each of their files.

It is the one file in a store that is ever replaced. It may come from a stranger, so that it is
read strictly, and names no place but below a copy's own folder.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from tune_softmax.errors import DamagedRunError

if TYPE_CHECKING:
    from tune_softmax.export.stores import Store

__all__ = ["CopiedFile", "Copy", "CopyList", "begun", "new_name", "read_list", "write_list"]

LIST_NAME = "copies.json"
MAX_LIST_BYTES = 1 << 24

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}")


def _below(name: str) -> str:
    """Accept a file's name only if it leads to a place below the folder that it is joined to."""
    parts = name.split("/")
    if not name or "\0" in name or {"", ".", ".."} & set(parts):
        raise ValueError("must be a relative path, without . and ..")
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class CopiedFile(_Strict):
    """One file of a copy.

    Attributes:
        name: Its path below the run folder, with slashes.
        size_bytes: How long it is.
        sha256: Of its content, in hexadecimal.
    """

    name: Annotated[str, AfterValidator(_below)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Copy(_Strict):
    """One whole copy of a run.

    Attributes:
        folder: Its folder below the store's address.
        at: The moment of which the ledger is.
        run: The name of the run folder.
        run_started: When the run began, by its ledger; it tells two runs of one name apart.
        files: All of them; the ledger is the first.
    """

    folder: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    at: AwareDatetime
    run: str
    run_started: str | None
    files: tuple[CopiedFile, ...]

    @property
    def size_bytes(self) -> int:
        """How long all files are together."""
        return sum(file.size_bytes for file in self.files)


class CopyList(_Strict):
    """What `copies.json` holds.

    Attributes:
        format: Of this file.
        copies: The newest first.
    """

    format: Literal[1] = 1
    copies: tuple[Copy, ...] = ()


def new_name(now: datetime) -> str:
    """Return a name for a new copy's folder, which no other has."""
    return f"{now.strftime(_TIME)}-{secrets.token_hex(4)}"


def begun(name: str) -> datetime | None:
    """Return when the copy in a folder was begun; None if the folder is none of a copy's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
    except ValueError:  # the 99th of a month
        return None


def read_list(store: Store) -> CopyList | None:
    """Return the list of copies; None where nobody has begun one.

    Raises:
        StorageError: The store cannot be read.
        DamagedRunError: There is a file of its name that is no such list.
    """
    for is_last in (False, False, True):
        try:
            content = store.read(LIST_NAME, MAX_LIST_BYTES)
        except FileNotFoundError:
            return None
        try:
            return CopyList.model_validate_json(content)
        except ValidationError as error:
            if is_last:  # before, it may have been replaced while it was read
                raise _not_ours(store, error) from error
    raise AssertionError("the last try returns or raises")


def _not_ours(store: Store, error: ValidationError) -> DamagedRunError:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return DamagedRunError(
        f"{store.url}/{LIST_NAME}: is no list of copies ({place or 'JSON'}: {first['msg']}); "
        "name another address"
    )


def write_list(store: Store, copies: CopyList) -> None:
    """Replace the list of copies.

    Raises:
        StorageError: The store cannot be written.
    """
    store.put(LIST_NAME, [copies.model_dump_json(indent=1).encode() + b"\n"])
