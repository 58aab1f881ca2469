"""What is known of paths, on disk: whole, merged, and never believed where it is not ours."""

import dataclasses
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tune_softmax.errors import StorageError
from tune_softmax.oracle.cache import ForeignFileError, PathFile, PathPoint, frame


def point(weight_decay, **others):
    """Return a point, a function of its penalty."""
    made = PathPoint(
        weight_decay=weight_decay,
        train_loss=0.3,
        objective=0.4,
        validation_loss=0.5 + weight_decay,
        validation_accuracy=0.8,
        gradient_norm=1e-9,
        suboptimality_bound=1e-12,
        distance_bound=1e-6,
        validation_loss_bound=1e-6,
        num_iterations=7,
        seconds=0.25,
    )
    return dataclasses.replace(made, **others)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a file in a cache of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return PathFile("digits", "0123")


def test_a_file_is_in_the_users_cache(file, tmp_path):
    """Under the dataset's name and checksum."""
    assert file.path == tmp_path / ".cache/tune_softmax/oracle/digits-0123.json"


def test_nothing_is_known_at_first(file):
    """And reading makes nothing."""
    assert file.read() == []
    assert not file.path.parent.exists()


def test_points_come_back_as_they_were(file):
    """To the last bit, ascending, those of one penalty replaced; infinity is null in JSON."""
    third = point(1 / 3)
    unknown = point(0.1, validation_loss_bound=math.inf)
    file.add([third, unknown])
    file.add([point(1e-6, num_iterations=3)])
    file.add([point(1e-6)])
    assert file.read() == [point(1e-6), unknown, third]
    assert "Infinity" not in file.path.read_text()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(1e-300, 1e300), unique=True, max_size=5))
def test_any_penalties_are_kept(file, decays):
    """Whatever their size."""
    file.path.unlink(missing_ok=True)
    file.add(point(decay) for decay in decays)
    assert [one.weight_decay for one in file.read()] == sorted(decays)


def test_who_adds_at_once_waits(file):
    """Of many that add, none loses another's points."""
    decays = [10.0**-power for power in range(1, 13)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda decay: file.add([point(decay)]), decays))
    assert [one.weight_decay for one in file.read()] == sorted(decays)
    assert {path.suffix for path in file.path.parent.iterdir()} <= {".json", ".lock"}


def changed(content, **others):
    """Return a file's text with something else in its first point."""
    first, *rest = content["points"]
    return json.dumps({**content, "points": [{**first, **others}, *rest]})


FOREIGN = {
    "torn": lambda content: json.dumps(content)[:-20],
    "empty": lambda _content: "",
    "not UTF-8": lambda _content: b"\xff\xfe",
    "a list": lambda _content: "[]",
    "another dataset": lambda content: json.dumps({**content, "dataset": "mnist"}),
    "other images": lambda content: json.dumps({**content, "checksum": "4567"}),
    "another release": lambda content: json.dumps({**content, "format": 0}),
    "no points": lambda content: json.dumps({**content, "points": {}}),
    "a point that is none": lambda content: json.dumps({**content, "points": [1]}),
    "a column too many": lambda content: changed(content, more=1),
    "text": lambda content: changed(content, train_loss="0.3"),
    "true": lambda content: changed(content, num_iterations=True),
    "half a step": lambda content: changed(content, num_iterations=0.5),
    "null": lambda content: changed(content, train_loss=None),
    "NaN": lambda content: changed(content, train_loss=math.nan),
    "infinity": lambda content: changed(content, train_loss=math.inf),
    "below zero": lambda content: changed(content, train_loss=-1.0),
    "no penalty": lambda content: changed(content, weight_decay=0.0),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_ours_is_not_believed(file, name):
    """Reading says why in one line, and adding puts a sound file in its place."""
    file.add([point(1e-3)])
    made = FOREIGN[name](json.loads(file.path.read_text()))
    file.path.write_bytes(made if isinstance(made, bytes) else made.encode())
    with pytest.raises(ForeignFileError) as caught:
        file.read()
    assert "\n" not in str(caught.value)
    file.add([point(1e-2)])
    assert file.read() == [point(1e-2)]


def test_a_folder_in_its_place_is_foreign(file):
    """It cannot be read, and it is not ours to remove."""
    file.path.mkdir(parents=True)
    with pytest.raises(ForeignFileError, match="cannot be read"):
        file.read()
    with pytest.raises(StorageError, match="cannot be written"):
        file.add([point(1e-3)])


def test_a_cache_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    """It names the folder and what to do."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(
        StorageError, match=r"oracle: the oracle's cache cannot be written \(Not a"
    ):
        PathFile("digits", "0123").check_writable()


def test_no_home_is_one_message(monkeypatch):
    """There is nowhere to keep anything then."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError(os.getuid())))
    with pytest.raises(StorageError, match="needs a home folder"):
        PathFile("digits", "0123").read()


def test_a_frame_has_a_row_a_penalty():
    """Ascending, with the types of its columns, also where it is empty."""
    made = frame([point(1e-2), point(1e-3)])
    assert made["weight_decay"].tolist() == [1e-3, 1e-2]
    assert list(made.columns) == [field.name for field in dataclasses.fields(PathPoint)]
    kinds = made.dtypes.astype(str)
    assert kinds.pop("num_iterations") == "int64"
    assert set(kinds) == {"float64"}
    assert frame([]).dtypes.equals(made.dtypes)
