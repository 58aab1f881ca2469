"""The ledger: what is committed stays true, whoever dies, in a file and in a database alike."""

import math
import os
import signal
import zlib
from contextlib import closing

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_softmax.config import Config
from tune_softmax.errors import DamagedRunError, ResultsError, StorageError
from tune_softmax.metrics import EpochMetrics, FinalTest, Report, State
from tune_softmax.run import tables
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.postgresql import ServerLocation

CONFIG = Config(batch_size=64, num_epochs=5, learning_rate=0.1)


def metrics(loss, seconds=0.5):
    """Return an epoch whose validation loss is `loss`."""
    return EpochMetrics(2.0, 0.25, loss, 0.75, seconds)


def reports(numbers, epoch, state=State.RUNNING, loss=1.0, **more):
    """Return one epoch's report of every trial."""
    return [Report(number, epoch, metrics(loss), state, **more) for number in numbers]


@pytest.fixture(scope="session", params=["a file", "a database"])
def new_location(request, tmp_path_factory):
    """Return the function that chooses a place for a ledger; all tests run for both kinds."""
    if request.param == "a file":
        return lambda: tmp_path_factory.mktemp("run") / "run.db"
    url = request.getfixturevalue("postgresql").url
    return lambda: ServerLocation.choose(url, "test")


@pytest.fixture
def location(new_location):
    """Return where a ledger goes."""
    return new_location()


@pytest.fixture
def ledger(location):
    """Return a new ledger, open for writing."""
    with closing(Ledger.create(location, {"dataset_checksum": "abc"})) as ledger:
        yield ledger


# What is written


def test_what_is_written_is_read_back_by_another_ledger(ledger, location):
    """Identity, trials, epochs and events come back as they went in, each in order."""
    configs = {1: CONFIG, 0: Config(batch_size=8, num_epochs=1, learning_rate=1e-3, momentum=0.9)}
    assert ledger.hand_out(3, configs) == {0: 1, 1: 1}
    ledger.record(3, reports([1, 0], 1, loss=0.1 + 0.2, rung=1))
    ledger.event("started", places=2, words=["a", "b"])
    ledger.event("ended")
    with closing(Ledger.open(location)) as reader:
        assert reader.meta() == {"dataset_checksum": "abc", "schema_version": "2"}
        trials = reader.trials()
        assert [trial.number for trial in trials] == [0, 1]
        assert {trial.number: trial.config for trial in trials} == configs
        assert {(t.state, t.pack, t.attempts, t.rung, t.error) for t in trials} == {
            (State.RUNNING, 3, 1, 1, None)
        }
        assert reader.epochs() == [(n, 1, metrics(0.1 + 0.2)) for n in (0, 1)]
        events = reader.events()
        assert [event[1:] for event in events] == [
            ("started", {"places": 2, "words": ["a", "b"]}),
            ("ended", {}),
        ]
        assert all(at.endswith("+00:00") for at, _, _ in events)


def test_a_trial_handed_out_again_keeps_its_number_and_gets_another_attempt(ledger):
    """The second pack holds the trial; its first configuration stays."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.finish([0], State.WAITING)
    assert ledger.hand_out(1, {0: CONFIG, 2: CONFIG}) == {0: 2, 2: 1}
    assert [(t.number, t.pack, t.attempts, t.state) for t in ledger.trials()] == [
        (0, 1, 2, State.RUNNING),
        (1, 0, 1, State.RUNNING),
        (2, 1, 1, State.RUNNING),
    ]


def test_a_pack_that_lost_its_trials_is_not_heard(ledger):
    """A late report of an attempt that is over changes nothing, not even beside a valid one."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.hand_out(1, {0: CONFIG})
    ledger.record(0, reports([0], 1))
    assert ledger.epochs() == []
    ledger.record(0, reports([0, 1], 1, State.COMPLETE))
    assert [(n, epoch) for n, epoch, _ in ledger.epochs()] == [(1, 1)]
    assert [trial.state for trial in ledger.trials()] == [State.RUNNING, State.COMPLETE]


def test_a_finished_trial_is_not_heard_again(ledger):
    """An epoch after the final state is left out."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, State.PRUNED, rung=1))
    ledger.record(0, reports([0], 2, State.COMPLETE))
    (trial,) = ledger.trials()
    assert (trial.state, trial.rung, len(ledger.epochs())) == (State.PRUNED, 1, 1)


def test_an_epoch_reported_again_overwrites(ledger):
    """The second attempt's epochs replace the first's, and none is there twice."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, loss=9.0) + reports([0], 2, loss=8.0))
    ledger.hand_out(1, {0: CONFIG})
    ledger.record(1, reports([0], 1, loss=5.0))
    values = [(epoch, m.validation_loss) for _, epoch, m in ledger.epochs()]
    assert values == [(1, 5.0), (2, 8.0)]


def test_the_last_of_several_epochs_decides(ledger):
    """State, rung and error are those of a trial's last report."""
    ledger.hand_out(0, {0: CONFIG})
    last = reports([0], 2, State.FAIL, loss=math.inf, rung=2, error="diverged")
    ledger.record(0, reports([0], 1, rung=1) + last)
    (trial,) = ledger.trials()
    assert (trial.state, trial.rung, trial.error) == (State.FAIL, 2, "diverged")


@pytest.mark.parametrize("final", [State.COMPLETE, State.PRUNED, State.FAIL])
def test_finish_leaves_final_states_alone(ledger, final):
    """Only running and waiting trials take a state without an epoch."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    ledger.record(0, reports([0], 1, final))
    ledger.finish([0, 1, 7], State.WAITING)
    ledger.finish([0, 1], State.FAIL, "its worker died")
    assert [(t.state, t.error) for t in ledger.trials()] == [
        (final, None),
        (State.FAIL, "its worker died"),
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 5e-324, 1.7e308])
def test_every_number_survives(ledger, value):
    """Curves of a diverged trial come back as they were."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, reports([0], 1, loss=value))
    ((_, _, read),) = ledger.epochs()
    assert read.validation_loss == pytest.approx(value, rel=0, abs=0, nan_ok=True)
    assert read.is_finite == math.isfinite(value)


def test_nothing_reported_is_nothing_written(ledger):
    """A pack without reports is no error."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.record(0, [])
    assert ledger.epochs() == []


def test_a_final_test_is_written_with_the_epoch_that_brings_it(ledger, location):
    """A confusion matrix of any size comes back, and a trial without one has none."""
    tests = {
        0: FinalTest(0.1 + 0.2, 2 / 3, ((3, 0, 1), (0, 4, 0), (1, 1, 2))),
        2: FinalTest(math.nan, 0.0, ((0,),)),
    }
    ledger.hand_out(0, dict.fromkeys(range(3), CONFIG))
    ledger.record(0, reports([0, 1, 2], 1))
    last = [Report(n, 2, metrics(1.0), State.COMPLETE, test=tests.get(n)) for n in range(3)]
    ledger.record(0, last)
    with closing(Ledger.open(location)) as reader:
        read = reader.test_results()
        assert read[0] == tests[0]
        assert math.isnan(read[2].loss)
        assert (read.keys(), read[2].confusion) == (tests.keys(), ((0,),))


def test_a_test_of_an_attempt_that_is_over_is_not_written(ledger):
    """It would belong to no epoch of the trial."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.hand_out(1, {0: CONFIG})
    ledger.record(0, reports([0], 1, State.COMPLETE, test=FinalTest(1.0, 1.0, ((1,),))))
    assert (ledger.test_results(), ledger.epochs()) == ({}, [])


def test_meta_is_changed_together_with_the_event_that_says_so(ledger, location):
    """New keys come in, old ones are replaced, and others stay."""
    ledger.set_meta({"experiment": "name: a\n"}, "extended", trials=[4, 8])
    ledger.set_meta({"experiment": "name: b\n", "more": ""}, "extended", trials=[8, 9])
    with closing(Ledger.open(location)) as reader:
        assert reader.meta() == {
            "dataset_checksum": "abc",
            "schema_version": "2",
            "experiment": "name: b\n",
            "more": "",
        }
        assert [event[1:] for event in reader.events()] == [
            ("extended", {"trials": [4, 8]}),
            ("extended", {"trials": [8, 9]}),
        ]


@pytest.mark.parametrize("text", ["a\0b", "\udcff in a path", "\N{SNOWMAN}\n\ttab", ""])
def test_any_text_of_an_error_is_kept_readable(ledger, location, text):
    """What a database's text cannot hold is written out, and does not break the search."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.finish([0], State.FAIL, text)
    with closing(Ledger.open(location)) as reader:
        (trial,) = reader.trials()
        assert trial.error == text.replace("\0", "\\0").replace("\udcff", "\\udcff")


@pytest.mark.slow
def test_more_rows_than_a_statement_takes_are_written(ledger):
    """A cluster may hand out, and a stop cut off, tens of thousands of trials at once."""
    num_trials = 40_000  # SQLite takes 32,766 parameters, PostgreSQL 65,535
    ledger.hand_out(0, dict.fromkeys(range(num_trials), CONFIG))
    ledger.finish(range(num_trials), State.WAITING)
    trials = ledger.trials()
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert {trial.state for trial in trials} == {State.WAITING}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("hand_out"), st.sets(st.integers(0, 4), min_size=1)),
        st.tuples(
            st.just("record"),
            st.sets(st.integers(0, 4), min_size=1),
            st.sampled_from([State.RUNNING, State.COMPLETE, State.PRUNED, State.FAIL]),
            st.booleans(),
        ),
        st.tuples(
            st.just("finish"),
            st.sets(st.integers(0, 4)),
            st.sampled_from([State.WAITING, State.FAIL]),
        ),
    ),
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(operations=OPERATIONS)
def test_any_sequence_leaves_the_ledger_as_a_plain_model_has_it(new_location, operations):
    """Each number once, epochs without a gap, attempts counted, final states kept."""
    state, attempts, pack_of, trained = {}, {}, {}, {}
    with closing(Ledger.create(new_location(), {})) as ledger:
        for pack, (kind, numbers, *rest) in enumerate(operations):
            if kind == "hand_out":
                left = {n for n in numbers if not state.get(n, State.WAITING).is_final}
                if not left:
                    continue
                for n in left:
                    state[n], pack_of[n] = State.RUNNING, pack
                    attempts[n] = attempts.get(n, 0) + 1
                handed = ledger.hand_out(pack, dict.fromkeys(left, CONFIG))
                assert handed == {n: attempts[n] for n in left}
            elif kind == "record":
                new_state, is_stale = rest
                for n in numbers & pack_of.keys():
                    epoch = trained.get(n, 0) + 1
                    ledger.record(-1 if is_stale else pack_of[n], reports([n], epoch, new_state))
                    if not is_stale and state[n] is State.RUNNING:
                        state[n], trained[n] = new_state, epoch
            else:
                ledger.finish(numbers, rest[0])
                known = {n for n in numbers if n in state and not state[n].is_final}
                state |= dict.fromkeys(known, rest[0])
        assert {t.number: t.state for t in ledger.trials()} == state
        assert {t.number: t.attempts for t in ledger.trials()} == attempts
        assert [(n, epoch) for n, epoch, _ in ledger.epochs()] == [
            (n, epoch) for n in sorted(trained) for epoch in range(1, trained[n] + 1)
        ]


# Who else is there, and who dies


def die(*_):
    """Be gone at once, as after a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_until_killed(location, where, when):
    """Write epochs of 200 trials, and die at the given place of the given one."""
    ledger = Ledger.create(location, {})
    ledger.hand_out(0, dict.fromkeys(range(200), CONFIG))

    def dying(_connection, _cursor, statement, *_):
        if statement.startswith("INSERT INTO epochs"):
            die()

    for epoch in range(1, when + 1):
        if epoch == when and where == "before the commit":
            sa.event.listen(ledger._storage.engine, "commit", die)
        if epoch == when and where == "within the transaction":
            sa.event.listen(ledger._storage.engine, "after_cursor_execute", dying)
        ledger.record(0, reports(range(200), epoch))
    die()


@pytest.mark.parametrize(
    ("where", "kept"),
    [("within the transaction", 2), ("before the commit", 2), ("after the commit", 3)],
)
def test_a_killed_writer_leaves_whole_epochs(location, in_child, where, kept):
    """Whenever the process is killed, an epoch of the pack is there whole or not at all."""
    assert in_child(write_until_killed, location, where, 3) == -signal.SIGKILL
    with closing(Ledger.open(location)) as reader:
        epochs = [(n, epoch) for n, epoch, _ in reader.epochs()]
        assert epochs == [(n, epoch) for n in range(200) for epoch in range(1, kept + 1)]
        assert {trial.state for trial in reader.trials()} == {State.RUNNING}


def test_a_killed_writers_ledger_is_taken_over(location, in_child):
    """The next writer goes on with what was committed."""
    assert in_child(write_until_killed, location, "after the commit", 1) == -signal.SIGKILL
    with closing(Ledger.open(location, writable=True)) as ledger:
        assert ledger.hand_out(1, {0: CONFIG, 200: CONFIG}) == {0: 2, 200: 1}
    with closing(Ledger.open(location)) as reader:
        assert (len(reader.trials()), len(reader.epochs())) == (201, 200)


def test_another_process_reads_while_this_one_writes(ledger, location, in_child):
    """A reader sees what is committed, even in the middle of a transaction."""
    ledger.hand_out(0, {0: CONFIG})

    def read():
        with closing(Ledger.open(location)) as reader:
            assert (len(reader.trials()), len(reader.epochs())) == (1, 0)

    with ledger._storage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trials")
        assert in_child(read) == 0
        connection.rollback()


def test_a_snapshot_is_of_one_moment(ledger, location):
    """What is written meanwhile is seen after it, by the same reader."""
    ledger.hand_out(0, {0: CONFIG})
    with closing(Ledger.open(location)) as reader:
        with reader.snapshot():
            (trial,) = reader.trials()
            ledger.record(0, reports([0], 1, State.COMPLETE))
            ledger.event("ended")
            assert (trial.state, reader.epochs(), reader.events()) == (State.RUNNING, [], [])
        assert reader.trials()[0].state is State.COMPLETE
        assert (len(reader.epochs()), len(reader.events())) == (1, 1)


def test_contents_are_all_that_there_is(ledger, location):
    """They are what each reading alone says, and a sound ledger has no fault."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    test = FinalTest(1.0, 0.5, ((1, 1), (0, 2)))
    ledger.record(0, reports([0, 1], 1) + reports([1], 2, State.COMPLETE, test=test))
    ledger.event("started")
    with closing(Ledger.open(location)) as reader:
        found = reader.contents()
        assert found.faults == []
        assert (found.meta, found.trials) == (reader.meta(), reader.trials())
        assert (found.epochs, found.tests) == (reader.epochs(), reader.test_results())
        assert found.events == reader.events()
        assert found.tests == {1: test}


def test_a_reader_may_not_write(ledger, location):
    """Only a ledger that was opened for writing takes anything."""
    with (
        closing(Ledger.open(location)) as reader,
        pytest.raises(StorageError, match=r"readonly|read-only"),
    ):
        reader.event("ended")
    assert ledger.events() == []


# What is refused


def test_a_ledger_is_not_made_where_one_is(ledger, location):
    """The first run's ledger stays as it is."""
    ledger.hand_out(0, {0: CONFIG})
    ledger.close()
    with pytest.raises(ResultsError, match="there is a run already; resume it or choose another"):
        Ledger.create(location, {})
    with closing(Ledger.open(location)) as reader:
        assert len(reader.trials()) == 1


def test_what_was_never_made_is_not_opened(location):
    """The message says that there is no ledger, and none is made."""
    for writable in (False, True):
        with pytest.raises(ResultsError, match="no ledger there") as caught:
            Ledger.open(location, writable=writable)
        assert caught.value.exit_code == 2


# SQL that harms a sound ledger of three trials with two epochs each, and the reason given.
HARMS = [
    ("UPDATE trials SET attempts = 2 WHERE number = 1", "trials, number 1: is not what was wr"),
    ("UPDATE trials SET checksum = 0 WHERE number = 1", "trials, number 1: is not what was wr"),
    ("UPDATE trials SET state = 'DONE'", "trials, number 0: .*'DONE' is not a valid State"),
    ("UPDATE trials SET config = '{'", "trials, number 0: cannot be read"),
    ("UPDATE trials SET config = '[]'", "trials, number 0: cannot be read"),
    ("UPDATE trials SET config = '{\"lr\": 1}'", "unexpected keyword argument 'lr'"),
    (
        "UPDATE epochs SET train_loss = 2.0000000000000004",
        r"epochs, number 0, epoch 1: is not .*5 ",
    ),
    (
        "UPDATE epochs SET train_loss = NULL WHERE epoch = 2 AND number = 1",
        "number 1, epoch 2: is",
    ),
    ("UPDATE epochs SET epoch = 3 WHERE epoch = 2", "epochs, number 0, epoch 3: is not what was"),
    ("DELETE FROM epochs WHERE number = 2 AND epoch = 2", "epochs: has 5 rows where 6 were wri"),
    ("DELETE FROM epochs", "epochs: has 0 rows where 6 were written"),
    ("DELETE FROM events WHERE id = 2", "events: has 1 rows where 2 were written"),
    ("UPDATE events SET detail = 'x' WHERE id = 1", "events, id 1: cannot be read"),
    ("UPDATE events SET detail = '[1]' WHERE id = 1", "events, id 1: cannot be read"),
    ("UPDATE tests SET confusion = '[[1]]'", "tests, number 2: is not what was written"),
    ("UPDATE meta SET value = 'd' WHERE key = 'dataset_checksum'", "meta, key dataset_checksum: "),
    ("UPDATE meta SET value = '3' WHERE key = 'schema_version'", "meta, key schema_version: is"),
    ("DELETE FROM meta", "names no schema version"),
    ("UPDATE seal SET commits = 1", "table seal: must hold one sound row"),
    ("DELETE FROM seal", "table seal: must hold one sound row, got 0"),
    ("DROP TABLE tests", "no such table: tests"),
    ("DROP TABLE epochs", "no such table: epochs"),
    ("DROP TABLE events", "no such table: events"),
    ("DROP TABLE meta", "no such table: meta"),
    ("ALTER TABLE epochs DROP COLUMN train_loss", "no such column"),
]


@pytest.mark.parametrize(("harm", "reason"), HARMS)
def test_a_harmed_ledger_says_what_is_wrong(tmp_path, harm, reason):
    """Whatever is altered, gone or contradictory is a damaged run, in one line, for every use."""
    location = tmp_path / "run.db"
    ledger = Ledger.create(location, {"dataset_checksum": "abc"})
    ledger.hand_out(0, dict.fromkeys(range(3), CONFIG))
    ledger.record(0, reports(range(3), 1))
    test = FinalTest(1.0, 0.5, ((1, 1), (0, 2)))
    ledger.record(0, reports([0, 1], 2) + reports([2], 2, State.COMPLETE, test=test))
    ledger.event("started")
    ledger.event("ended")
    with ledger._storage.engine.begin() as connection:
        connection.exec_driver_sql(harm)
    ledger.close()
    for use in (read_whole, begin_to_write):
        with pytest.raises(DamagedRunError, match=reason) as caught:
            use(location)
        assert caught.value.exit_code == 5
        assert str(caught.value).startswith(str(location))
        assert "\n" not in str(caught.value)


def test_a_row_that_came_back_from_an_earlier_time_is_damage(ledger, location):
    """A row that fits its own checksum, but not the others, is found by the seal."""
    ledger.hand_out(0, {0: CONFIG, 1: CONFIG})
    with ledger._storage.engine.begin() as connection:
        before = connection.exec_driver_sql("SELECT * FROM trials WHERE number = 1").one()
    ledger.hand_out(1, {1: CONFIG})
    with ledger._storage.engine.begin() as connection:
        where = tables.TRIALS.c.number == 1
        connection.execute(tables.TRIALS.update().where(where).values(before._mapping))
    with pytest.raises(DamagedRunError, match="table trials: has older rows than those"):
        ledger.trials()
    ledger.close()
    with pytest.raises(DamagedRunError, match="table trials: has older rows than those"):
        Ledger.open(location, writable=True)


def test_a_writer_does_not_seal_what_was_altered_behind_its_back(ledger):
    """A row that is read to be written again is held against its checksum."""
    ledger.hand_out(0, {0: CONFIG})
    with ledger._storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET attempts = 7")
    for write in (
        lambda: ledger.hand_out(1, {0: CONFIG}),
        lambda: ledger.record(0, reports([0], 1)),
        lambda: ledger.move(1, [0]),
        lambda: ledger.finish([0], State.FAIL, "lost"),
    ):
        with pytest.raises(DamagedRunError, match="trials, number 0: is not what was written"):
            write()
    assert ledger.epochs() == []


def test_contents_name_every_fault_at_once(ledger):
    """What is wrong in several tables is listed whole, and what is sound is still read."""
    ledger.hand_out(0, dict.fromkeys(range(4), CONFIG))
    ledger.record(0, reports(range(4), 1))
    with ledger._storage.engine.begin() as connection:
        for harm in (
            "UPDATE trials SET attempts = 9 WHERE number IN (1, 3)",
            "DELETE FROM epochs WHERE number = 2",
        ):
            connection.exec_driver_sql(harm)
    found = ledger.contents()
    assert found.faults == [
        "table trials, number 1: is not what was written, its checksum differs",
        "table trials, number 3: is not what was written, its checksum differs",
        "table epochs: has 3 rows where 4 were written",
    ]
    assert (len(found.trials), len(found.epochs)) == (4, 3)
    with pytest.raises(
        DamagedRunError, match=r"number 1: .*\(and 1 more, see `tune-softmax check"
    ):
        ledger.trials()


@pytest.mark.parametrize("version", ["3", "0", "x"])
def test_another_schema_asks_for_the_version_that_wrote_it(ledger, location, version):
    """A ledger of another version is no damage, and is left alone."""
    row = {"value": version, "checksum": zlib.crc32(f'["schema_version","{version}"]'.encode())}
    meta = tables.META
    with ledger._storage.engine.begin() as connection:
        connection.execute(meta.update().where(meta.c.key == "schema_version").values(row))
    ledger.close()
    for writable in (False, True):
        with pytest.raises(
            ResultsError, match=f"version {version}, this .* reads version 2 alone; use the"
        ) as caught:
            Ledger.open(location, writable=writable)
        assert caught.value.exit_code == 2


def test_a_ledger_of_the_first_schema_is_refused(ledger, location):
    """It had no checksums; that says which schema it is, and is no damage."""
    with ledger._storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE meta DROP COLUMN checksum")
        connection.exec_driver_sql("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    ledger.close()
    with pytest.raises(ResultsError, match=r"has schema version 1, .* search again$") as caught:
        Ledger.open(location)
    assert caught.value.exit_code == 2


def read_whole(location):
    """Read everything in a ledger."""
    with closing(Ledger.open(location)) as reader:
        meta, tests = reader.meta(), reader.test_results()
        return meta, reader.trials(), reader.epochs(), tests, reader.events()


def begin_to_write(location):
    """Open a ledger as a resume does."""
    Ledger.open(location, writable=True).close()
