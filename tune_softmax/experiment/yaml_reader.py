"""Read YAML strictly into plain values with their lines, and write plain values as YAML.

Scalars are those of YAML 1.2's core schema: `1e-3` is a number, `no` and `12:30:00` are text,
`010` is 10. Duplicate keys, anchors, aliases, tags, a second document, deep nesting and long
files are refused. `experiment.py` says what the keys mean.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tune_softmax.errors import ExperimentError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Document",
    "KeyPath",
    "Problem",
    "dump",
    "printable",
    "read",
    "resolve",
    "shown",
]

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 20_000  # about two seconds of reading
_MAX_SHOWN = 60  # characters of a received value that a message repeats

KeyPath = tuple[str | int, ...]

_ODD_BREAKS = "\x85\u2028\u2029"  # line breaks of YAML 1.1, and not of 1.2
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INTEGERS = (
    (re.compile(r"[-+]?[0-9]+"), 10),
    (re.compile(r"0o[0-7]+"), 8),
    (re.compile(r"0x[0-9a-fA-F]+"), 16),
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


def resolve(text: str) -> float | str | None:
    """Return the value of a plain scalar by YAML 1.2's core schema.

    Args:
        text: The scalar as written, without quotes.

    Returns:
        None, a boolean, an integer, a float, or the text itself.

    Raises:
        ValueError: An integer does not fit 64 bits.
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text[0] in "tT"
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(text):
            number = int(text, base) if len(text) < _MAX_SHOWN else 1 << 63
            if not -(1 << 63) <= number < 1 << 63:
                raise ValueError("an integer must fit 64 bits")
            return number
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float(text.replace(".", ""))
    return float("nan") if _NAN.fullmatch(text) else text


def printable(text: str) -> str:
    """Return `text` with every control character replaced, fit for a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def shown(value: object) -> str:
    """Return how a message repeats a received value: short, and safe for a terminal."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case str() if len(value) > _MAX_SHOWN:
            return f"{value[:_MAX_SHOWN]!r}..."
    return repr(value)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document.

    Attributes:
        path: The keys that lead to it.
        text: The rule, the value received, what is allowed.
        line: Where, counted from 1.
    """

    path: KeyPath
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML text holds.

    Attributes:
        source: The file's name, for messages.
        value: The mapping at the top, made of dict, list, str, int, float, bool and None.
        lines: Key path to line, counted from 1.
        problems: Problems that left the rest readable.
        stand_ins: Paths of the values that a problem hides; what stands there means nothing.
    """

    source: str
    value: dict[str, object]
    lines: dict[KeyPath, int]
    problems: tuple[Problem, ...]
    stand_ins: frozenset[KeyPath]

    def line(self, path: KeyPath) -> int:
        """Return the line of `path`, or of the nearest key above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read(data: bytes | str, source: str) -> Document:
    """Read one YAML document, a mapping.

    Args:
        data: The whole text, UTF-8 where it is bytes; a byte order mark is left out.
        source: The file's name, for messages.

    Raises:
        ExperimentError: The text is no YAML, no single mapping, too long or too deep.
    """
    source = printable(source)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise ExperimentError(f"{source}: must hold at most {MAX_BYTES:,} bytes, got more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ExperimentError(
            f"{source}:{line}: must be UTF-8 text, got the byte 0x{data[error.start]:02x}"
        ) from error
    try:
        return _Reader(text, source).document()
    except ExperimentError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        why = ": ".join(part for part in (error.context, error.problem) if part)
        raise ExperimentError(f"{where}: not YAML: {printable(why)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ExperimentError(
            f"{source}:{line}: not YAML: the character U+{ord(text[error.position]):04X} "
            "is not allowed"
        ) from error
    except (ValueError, OverflowError) as error:  # PyYAML's own int and chr
        raise ExperimentError(
            f"{source}: not YAML: an escape such as \\U00110000 or a %YAML version is out of range"
        ) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's events, with tabs between tokens (YAML 1.2, section 6.2), which PyYAML refuses."""

    buffer: str
    pointer: int
    column: int

    def scan_to_next_token(self) -> None:
        """Pass over spaces, comments and line breaks, and over tabs that indent nothing."""
        super().scan_to_next_token()
        while self.peek() == "\t":
            length = 1
            while self.peek(length) in {" ", "\t"}:
                length += 1
            before = self.buffer[self.pointer - self.column : self.pointer]
            is_blank = self.peek(length) in {"\0", "\r", "\n", "#"}
            if not (self.flow_level or before.strip() or is_blank):
                raise yaml.scanner.ScannerError(
                    None, None, "a tab indents the line; use spaces", self.get_mark()
                )
            self.forward(length)
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: Any) -> list[str] | None:  # noqa: ANN401 - as PyYAML's
        """Return the white space inside or after a plain scalar, tabs too."""
        length = 0
        while self.peek(length) in {" ", "\t"}:
            length += 1
        space = self.prefix(length)
        if "\t" not in space:
            return super().scan_plain_spaces(indent, start_mark)
        self.forward(length)
        if self.peek() in {"\r", "\n"}:
            return super().scan_plain_spaces(indent, start_mark)
        return [space]


class _Reader:
    """Builds the values from PyYAML's events, so that nothing is looked up, named or called."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        # YAML 1.2 takes these for ordinary characters, PyYAML for line breaks. Others that the
        # text does not hold stand for them while it is read.
        unused = (chr(code) for code in range(0x10FFFF, 0xFFFF, -1) if chr(code) not in text)
        self.stand_for = {ord(char): next(unused) for char in _ODD_BREAKS if char in text}
        self.originals = {ord(other): chr(code) for code, other in self.stand_for.items()}
        self.events: Any = _Loader(text.translate(self.stand_for))
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.stand_ins: set[KeyPath] = set()
        self.num_values = 0

    def document(self) -> Document:
        self.events.get_event()  # the stream begins
        if self.events.check_event(yaml.StreamEndEvent):
            raise ExperimentError(f"{self.source}: must be a mapping of keys, got an empty file")
        self.events.get_event()  # the document begins
        value = self.value(())
        self.events.get_event()  # the document ends
        if not self.events.check_event(yaml.StreamEndEvent):
            line = self.events.peek_event().start_mark.line + 1
            raise ExperimentError(f"{self.source}:{line}: must hold one document, got a second")
        if not isinstance(value, dict):
            where = f"{self.source}:{self.lines[()]}"
            raise ExperimentError(f"{where}: must be a mapping of keys, got {shown(value)}")
        return Document(
            self.source, value, self.lines, tuple(self.problems), frozenset(self.stand_ins)
        )

    def value(self, path: KeyPath) -> object:
        event = self.events.get_event()
        line = event.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise ExperimentError(
                f"{self.source}:{line}: must hold at most {MAX_VALUES:,} values, got more"
            )
        if isinstance(event, yaml.CollectionStartEvent) and len(path) >= MAX_DEPTH:
            raise ExperimentError(
                f"{self.source}:{line}: must be nested at most {MAX_DEPTH} levels deep, got more"
            )
        if isinstance(event, yaml.AliasEvent):
            self.hide(path, f"an alias (*{event.anchor}) is not allowed; write it again", line)
            return None
        if event.anchor is not None:
            self.refuse(path, f"an anchor (&{event.anchor}) is not allowed; leave it out", line)
        if event.tag is not None:
            self.hide(path, f"a tag ({event.tag}) is not allowed; leave it out", line)
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return list(self.items(path))
        return self.scalar(path, event, line)

    def scalar(self, path: KeyPath, event: yaml.ScalarEvent, line: int) -> object:
        if _SURROGATE.search(event.value):
            self.hide(path, f"text must be Unicode, got {shown(event.value)}", line)
            return ""
        text = event.value.translate(self.originals)
        if not event.implicit[0]:  # quoted, a block, or tagged
            return text
        try:
            return resolve(text)
        except ValueError as error:
            self.hide(path, f"{error}, got {shown(event.value)}", line)
            return 0

    def items(self, path: KeyPath) -> Iterator[object]:
        index = 0
        while not self.events.check_event(yaml.SequenceEndEvent):
            yield self.value((*path, index))
            index += 1
        self.events.get_event()

    def mapping(self, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            line = self.events.peek_event().start_mark.line + 1
            key = self.value((*path, -1))  # -1 is no path that a value has
            if not isinstance(key, str):
                self.refuse(path, f"a key must be text, got {shown(key)}", line)
                self.value((*path, -1))
                continue
            first = self.lines.setdefault((*path, key), line)
            if key in result:
                text = f"duplicate key, first on line {first}; delete one"
                self.refuse((*path, key), text, line)
                self.value((*path, key))
            else:
                result[key] = self.value((*path, key))
        self.events.get_event()
        return result

    def refuse(self, path: KeyPath, text: str, line: int) -> None:
        if -1 in path:  # inside a key, which is part of the mapping that holds it
            path = path[: path.index(-1)]
        self.problems.append(Problem(path, printable(text), line))

    def hide(self, path: KeyPath, text: str, line: int) -> None:
        self.refuse(path, text, line)
        self.stand_ins.add(path)


_LINE_BREAKS = frozenset(f"\n\r{_ODD_BREAKS}")


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes whatever `resolve` would not read back as text."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - as PyYAML's
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        try:
            plain = resolve(text) is text
        except ValueError:
            plain = False
        style = None if plain else "'"
        if _LINE_BREAKS & set(text):  # only double quotes keep them as they are
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump(value: object) -> str:
    """Return `value`, made of plain values, as YAML that `read` reads back equal."""
    # Lists and mappings of scalars stay on their line, as people write them.
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
    return text
