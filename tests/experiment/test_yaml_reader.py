"""YAML read strictly: what scalars mean, where keys stand, what is refused, what is written."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tune_softmax.errors import ExperimentError
from tune_softmax.experiment.yaml_reader import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    dump,
    printable,
    read,
    resolve,
    shown,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("NULL", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("+7", 7),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("9223372036854775807", 2**63 - 1),
        ("1e-3", 0.001),
        ("1e5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+3", -1500.0),
        ("1e999", math.inf),
        (".inf", math.inf),
        ("-.INF", -math.inf),
    ],
)
def test_a_plain_scalar_means_what_yaml_1_2_says(text, value):
    """Null, booleans, integers and floats are those of YAML 1.2's core schema."""
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("no", "yes", "on", "off", "nO", "tRUE", "none", "None", "nan", "inf"),
        *("12:30:00", "2024-01-01", "1_000", "0b1", "0o8", "-0x1", "1e", "e1", "\u0663"),
        *(".", "+", "-", "=", "<<"),
    ],
)
def test_what_yaml_1_1_would_make_a_value_stays_text(text):
    """Words, times, dates and digits of other scripts are text."""
    assert resolve(text) == text


def test_not_a_number_is_read_as_such():
    """`.nan` is a float, which the models refuse."""
    assert math.isnan(resolve(".nan"))


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "0x" + "f" * 50])
def test_an_integer_beyond_64_bits_is_refused(text):
    """No integer is larger than what a database and a tensor hold."""
    with pytest.raises(ValueError, match="must fit 64 bits"):
        resolve(text)


def test_quotes_and_blocks_are_text():
    """What is quoted or a block scalar is never resolved."""
    text = "a: '1'\nb: \"true\"\nc: |\n  2\nd: >-\n  null\n"
    assert read(text, "x").value == {"a": "1", "b": "true", "c": "2\n", "d": "null"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name:\tx\n", {"name": "x"}),
        ("name\t:\tx\t# why\n", {"name": "x"}),
        ("a: 1\t\nb: 2 \t \n\t\nc: 3\n", {"a": 1, "b": 2, "c": 3}),
        ("a:\t[1,\t2\t,\n\t3\t]\n", {"a": [1, 2, 3]}),
        ('{"a": 1,\n\t"b":\t{"c": 2}}', {"a": 1, "b": {"c": 2}}),
        ('{\n\t"a": 1\n\t}\n', {"a": 1}),
        ("a: b\tc \t d\n", {"a": "b\tc \t d"}),
        ("a: '\tb\t'\nc: \"\td\"\n", {"a": "\tb\t", "c": "\td"}),
        ("a:\n-\tb\n-\tc: 1\n", {"a": ["b", {"c": 1}]}),
        ("a: |\n  b\tc\n  \td\n", {"a": "b\tc\n\td\n"}),
        ("a: b\t\n  c\n", {"a": "b c"}),
        ("# \t\n\t# x\na: 1\n", {"a": 1}),
    ],
)
def test_tabs_part_tokens(text, value):
    """YAML 1.2, section 6.2: anywhere but in the indentation of a block, so JSON reads too."""
    document = read(text, "x")
    assert document.value == value
    assert not document.problems


@pytest.mark.parametrize("char", ["\x85", "\u2028", "\u2029"])
def test_what_was_a_line_break_in_yaml_1_1_is_an_ordinary_character(char):
    """YAML 1.2, section 5.4: a comment goes on after it, text keeps it, and it counts no line."""
    text = f"# one{char}a: 0\nb: x{char}y\n'c{char}': \"{char}\"\n{char}d: [1,{char}]\n"
    document = read(text + "d: 4\nd: 5\n", "x")
    expected = {"b": f"x{char}y", f"c{char}": char, f"{char}d": [1, char], "d": 4}
    assert document.value == expected
    assert [(problem.line, problem.path) for problem in document.problems] == [(6, ("d",))]
    assert document.line(("d",)) == 5


def test_every_key_and_item_knows_its_line():
    """Lines are counted from 1, and a missing key has its parent's."""
    document = read("# comment\na: 1\nb:\n  - x\n  -\n    c: 2\n", "x")
    assert document.value == {"a": 1, "b": ["x", {"c": 2}]}
    places = {(): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 1, "c"): 6}
    assert {path: document.line(path) for path in places} == places
    assert document.line(("b", 1, "missing", 3)) == document.line(("b", 1))


def test_problems_leave_the_rest_readable():
    """Duplicates, anchors, aliases, tags and odd keys are reported, and reading goes on."""
    document = read("a: &x 1\na: 2\nb: *x\nc: !!str 3\n4: 5\nd: 6\n? [e]\n: 7\n", "x.yaml")
    assert document.value == {"a": 1, "b": None, "c": "3", "d": 6}
    assert [(problem.line, problem.path, problem.text) for problem in document.problems] == [
        (1, ("a",), "an anchor (&x) is not allowed; leave it out"),
        (2, ("a",), "duplicate key, first on line 1; delete one"),
        (3, ("b",), "an alias (*x) is not allowed; write it again"),
        (4, ("c",), "a tag (tag:yaml.org,2002:str) is not allowed; leave it out"),
        (5, (), "a key must be text, got 4"),
        (7, (), "a key must be text, got a list"),
    ]
    assert document.stand_ins == {("b",), ("c",)}


def test_an_alias_bomb_does_not_grow():
    """Ten levels of tenfold aliases are refused as they are read, not expanded."""
    lines = ["a0: &a0 x"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    document = read("\n".join(lines), "x")
    assert len(document.problems) == 11 + 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c\n", "x.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a:\n\t- 1\n", "x.yaml:2:1: not YAML: a tab indents the line; use spaces"),
        ("a: 1\n \tb: 2\n", "x.yaml:2:2: not YAML: a tab indents the line; use spaces"),
        ('a: "\\UFFFFFFFF"\n', "x.yaml: not YAML: an escape such as "),
        ('a: "\\U00110000"\n', "x.yaml: not YAML: an escape such as "),
        ("%YAML 9" + "9" * 5000 + ".1\n---\na: 1\n", "x.yaml: not YAML: an escape such as "),
        ("a: \x1b[31m\n", "x.yaml:1: not YAML: the character U+001B is not allowed"),
        ("a: \ud800\n", "x.yaml:1: must be UTF-8 text, got the byte 0xed"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: must hold one document, got a second"),
        ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "must be nested at most 32 levels deep"),
        ("[" * (MAX_BYTES - 1), "must be nested at most 32 levels deep"),
        ("a: [" + "1," * MAX_VALUES + "]", "x.yaml:1: must hold at most 20,000 values, got more"),
        ("#" * (MAX_BYTES + 1), "x.yaml: must hold at most 1,000,000 bytes, got more"),
        ("3", "x.yaml:1: must be a mapping of keys, got 3"),
    ],
)
def test_what_cannot_be_read_is_refused(text, expected):
    """Text that is no single, small, flat enough mapping raises one ExperimentError."""
    with pytest.raises(ExperimentError) as caught:
        read(text, "x.yaml")
    assert expected in str(caught.value)


def test_lone_surrogates_are_refused():
    """An escape can write what no encoding holds."""
    document = read('a: "\\ud800"\n', "x")
    assert [problem.text for problem in document.problems] == [
        "text must be Unicode, got '\\ud800'"
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        ([], "an empty list"),
        ({"a": 1}, "a mapping"),
        (0.1, "0.1"),
        ("a\n\x1b[31m\u202e", r"'a\n\x1b[31m\u202e'"),
        ("x" * 61, f"{'x' * 60!r}..."),
    ],
)
def test_values_are_shown_short_and_printable(value, text):
    """A message repeats a value without its control characters, and not all of a long one."""
    assert shown(value) == text


def test_control_characters_are_replaced():
    """A file name cannot move a terminal's cursor."""
    assert printable("a\x1b[2Jb\n.yaml") == "a\ufffd[2Jb\ufffd.yaml"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e3", "0o7", "no", "null", "", "~", "12:30", ".nan", "-", "<<", "9" * 30]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "1e3", "no", "x y"]), PLAIN))
@example({"a": "\x85"})
@example({"a": " \u2028x\n"})
def test_what_is_written_reads_back_equal(value):
    """Plain values survive `dump` and `read` with their types."""
    document = read(dump(value), "x")
    assert document.value == value
    assert repr(document.value) == repr(value)
    assert not document.problems


def test_shared_values_are_written_twice():
    """One list in two places is written without an anchor, which `read` would refuse."""
    shared = ["x"]
    assert dump({"a": shared, "b": shared}) == "a: [x]\nb: [x]\n"


@pytest.mark.parametrize("text", ["1e3", "0o7", "null", "9" * 30, "no", ""])
def test_text_that_looks_like_a_value_is_quoted(text):
    """Text stays text, whichever version of YAML reads it."""
    assert f"a: '{text}'" in dump({"a": text})


@settings(max_examples=150, deadline=None)
@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(data):
    """No text raises anything but ExperimentError."""
    try:
        document = read(data, "x")
    except ExperimentError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(problem.text.isprintable() for problem in document.problems)
