"""Run folders as a careless or an evil stranger would send them, each a function of a seed."""

import hashlib
import json
import os
import shutil
import socket
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import report_runs
import run_folders

from tune_softmax.errors import TuneSoftmaxError
from tune_softmax.experiment import experiment as experiments
from tune_softmax.metrics import State
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger
from tune_softmax.run.tables import EPOCHS, EVENTS, META, SEALED, TRIALS

NUM_TRIALS = 6
PLANTED = "<script>planted()</script><img src=x onerror=planted()>"
TEXTS = [
    *(PLANTED, f'"{PLANTED}', f"'>{PLANTED}", "</textarea></style></title>" + PLANTED),
    *(
        "\x1b[2J\x1b]0;title\x07",
        "\0",
        "",
        " ",
        "\udcff",
        "\N{RIGHT-TO-LEFT OVERRIDE}",
        "x" * 70_000,
    ),
    *("{{ 7 * 7 }}", "{% for x in ().__class__.__base__.__subclasses__() %}", "$(touch planted)"),
    *("../../../victim/notes.txt", "/etc/passwd", "`touch planted`", "%s%n", "[bold]", "=1+1"),
]
VALUES = [
    *(None, True, -1, 0, 1, 3, 10**9, 2**63, 10**30, -(2**70), 0.5, 1e308, float("inf")),
    *(float("nan"), [], {}, [[]], {"a": {}}, [None] * 3),
]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT x AS key, x AS value, x AS number, x AS checksum FROM n"
)
YAMLS = [
    BOMB,
    "[" * 50_000,
    "a: " * 5000,
    "!!python/object/apply:os.system ['touch planted']",
    "!!python/name:os.system",
    "dataset: !!python/object/apply:subprocess.check_output [[touch, planted]]",
    "\0",
    "%YAML 9.9\n---\n",
    "--- a\n--- b\n",
    "&a [*a]",
    "? {a: b}\n: c\n",
    "<<: [{dataset: 1}]",
    "\ufeff" * 3,
]
# As pickle.dumps of an object whose __reduce__ gives os.system; written by hand, so that nobody
# here holds such an object.
PICKLE = b"cos\nsystem\n(S'touch planted'\ntR."


def write_base(path, checksum):
    """Write a finished search on `digits` with a winner and all files that a run may have."""
    folder = RunFolder(path)
    folder.create()
    text = run_folders.EXPERIMENT.replace("num_trials: 100", f"num_trials: {NUM_TRIALS}")
    folder.experiment.write_text(experiments.parse(text, "small.yaml").to_yaml())
    environment = report_runs.ENVIRONMENT | {"dataset_checksum": checksum}
    folder.environment.write_text(json.dumps(environment))
    folder.log.write_text("begun\n")
    meta = {
        "dataset_checksum": checksum,
        "experiment": folder.experiment.read_text(),
        "history": "[]",
    }
    with closing(Ledger.create(folder.ledger, meta)) as ledger:
        ledger.event("started", places=1, pack_size=2)
        run_folders.train(ledger, range(NUM_TRIALS - 1))
        run_folders.train(
            ledger, [NUM_TRIALS - 1], pack=1, state=State.FAIL, last=1, error="it failed"
        )
        ledger.event("test_opened", command="train", trial=1)
        ledger.event("ended", reason="finished", seconds=1.0)
    folder.best.path.mkdir()
    folder.best.evaluation.write_text(json.dumps(report_runs.evaluation()))
    configuration = {
        "trial": 0,
        "seed": 1,
        "hyperparameters": {},
        "class_names": report_runs.CLASSES,
        "image_shape": [8, 8],
    }
    folder.best.configuration.write_text(json.dumps(configuration))
    folder.best.weights.write_bytes(_weights())
    (path / "report.html").write_text("<p>an old report</p>")
    return path


def _weights():
    """Return a safetensors file of one layer of zeros: a length, a header in JSON, numbers."""
    shapes, data = {"1.weight": [10, 64], "1.bias": [10]}, b""
    header = {}
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        offsets = [len(data), len(data) + size]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += bytes(size)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def fuzz(run, victim, draw):
    """Change a run folder in one to three ways; return their names.

    Args:
        run: The folder, a copy of what `write_base` made.
        victim: A folder outside, to which links are planted.
        draw: A `random.Random`.
    """
    names = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        change = draw.choice(CHANGES)
        with suppress(
            OSError, sqlite3.Error, ValueError, TuneSoftmaxError
        ):  # an earlier change may be in its way
            names.append(f"{change.__name__[1:]} {change(run, victim, draw)}")
    return names


def _files(run, draw):
    """Return a file of the run, one of those that are always read more often."""
    known = [run / name for name in ("experiment.yaml", "environment.json", "run.db")]
    known += [run / "best" / name for name in ("configuration.json", "evaluation.json")]
    every = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return draw.choice(draw.choice([known, every]) or known)


def _bytes(run, _victim, draw):
    path = _files(run, draw)
    data = bytearray(path.read_bytes())
    how = draw.choice(["flip", "cut", "empty", "noise", "insert", "grow", "pickle"])
    if how == "flip":
        for _ in range(draw.choice([1, 10, 100])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "noise":
        data = bytearray(draw.randbytes(draw.choice([1, 100, 10_000])))
    elif how == "insert":
        place = draw.randrange(len(data))
        data[place:place] = draw.choice([b"\0", b"\xff\xfe", b"\n\n", b"\x1b[2J", b"9" * 5000])
    elif how == "pickle":
        data = bytearray(PICKLE)
    path.write_bytes(data)
    if how == "grow":
        os.truncate(path, draw.choice([1 << 20, 1 << 28]))  # a hole
    return f"{how} {path.name}"


def _kind(run, victim, draw):
    """Put something else in the place of a file or a folder."""
    names = ["experiment.yaml", "environment.json", "run.db", "log.txt", "run.lock", "writer.json"]
    names += [
        "best",
        "best/configuration.json",
        "best/evaluation.json",
        "best/weights.safetensors",
    ]
    names += ["confirm", "report.html", "optuna.db", "ledger.url", "best/confusion.png"]
    names += [
        f"run.db-{suffix}" for suffix in ("wal", "shm", "journal", "commits", "commits.part")
    ]
    path = run / draw.choice(names)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind = draw.choice(
        [
            "nothing",
            "folder",
            "pipe",
            "socket",
            "to a file",
            "to a folder",
            "loop",
            "zero",
            "dangling",
        ]
    )
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            # Its path may be longer than sockets allow.
            folder = os.open(path.parent, os.O_RDONLY)
            bound.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
    elif kind != "nothing":
        target = {
            "to a file": victim / draw.choice(["notes.txt", "run.db", "empty"]),
            "to a folder": victim / "folder",
            "loop": path,
            "zero": Path("/dev/zero"),
            "dangling": victim / "not yet",
        }[kind]
        path.symlink_to(target)
    return f"{kind} {path.name}"


def _yaml(run, _victim, draw):
    path = run / "experiment.yaml"
    if draw.random() < 0.5:
        text = draw.choice(YAMLS)
        path.write_text(text, encoding="utf-8")
        return ascii(text[:30])
    lines = path.read_text().splitlines()
    place = draw.randrange(len(lines))
    key = lines[place].partition(":")[0]
    lines[place] = f"{key}: {json.dumps(draw.choice([*TEXTS, *VALUES]))}"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return ascii(lines[place][:40])


def _json(run, _victim, draw):
    names = ["environment.json", "best/configuration.json", "best/evaluation.json", "writer.json"]
    path = run / draw.choice(names)
    value = draw.choice([*VALUES, *TEXTS, "deep"])
    if value == "deep":
        path.write_text('{"dataset_checksum": ' * 3000 + "[" * 100_000)
        return f"deep {path.name}"
    tree = json.loads(path.read_text()) if path.exists() else {}
    place = _replace(tree, value, draw)
    path.write_text(json.dumps(tree if place else value))
    return f"{path.name} {place} {value!a:.30}"


def _replace(tree, value, draw):
    """Replace a random node below a tree's root; return where it was."""
    node, path = tree, []
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        path.append(key)
        if draw.random() < 0.4 or not isinstance(node[key], dict | list) or not node[key]:
            node[key] = value
            return path
        node = node[key]
    return []


def _sealed(run, _victim, draw):
    """Change a row, with the checksums right, as who knows the format can."""
    with (
        closing(Ledger.open(run / "run.db", writable=True)) as ledger,
        ledger._transaction() as batch,
    ):
        table = draw.choice([TRIALS, TRIALS, EPOCHS, EVENTS, META, META])
        rows = [
            {name: value for name, value in row.items() if name != "checksum"}
            for row in batch._connection.execute(table.select()).mappings()
        ]
        row = draw.choice(rows)
        name = draw.choice([column.name for column in table.columns if column.name != "checksum"])
        if name == "config":
            config = json.loads(row["config"])
            config[draw.choice([*config, "more"])] = draw.choice([*VALUES, *TEXTS])
            row[name] = json.dumps(config)
        elif table is META and row["key"] == "experiment" and draw.random() < 0.5:
            row["value"] = draw.choice(YAMLS)
        elif table is EPOCHS:
            numbers = [v for v in VALUES if type(v) in {int, float} and abs(v) < 2**62]
            row[name] = draw.choice(
                [n for n in numbers if name not in {"number", "epoch"} or n == n // 1]
            )
        else:
            values = [v for v in VALUES if not isinstance(v, list | dict) and v is not None]
            values = [v for v in values if not isinstance(v, int) or abs(v) < 2**63]
            row[name] = draw.choice([*TEXTS, *TEXTS, *values, json.dumps(VALUES), "[" * 50_000])
        batch.put(table, [row])
    return f"{table.name} {name} {row[name]!a:.40}"


def _sql(run, _victim, draw):
    """Change the database, with the checksums left as they are."""
    table = draw.choice(SEALED).name
    columns = [column.name for column in draw.choice([TRIALS, EPOCHS, META]).columns]
    statement = draw.choice(
        [
            f"DELETE FROM {table}",  # noqa: S608 - our own names
            f"DROP TABLE {table}",
            f"UPDATE {table} SET checksum = NULL",  # noqa: S608 - our own names
            f"UPDATE {table} SET checksum = 'x'",  # noqa: S608 - our own names
            f"ALTER TABLE {table} ADD COLUMN more",
            f"ALTER TABLE {table} RENAME TO other",
            f"UPDATE trials SET {columns[0]} = zeroblob(1000000)",  # noqa: S608 - our own names
            "UPDATE events SET detail = CAST(x'ff1b5b324aff' AS TEXT)",
            "UPDATE seal SET totals = '[[[['",
            "UPDATE seal SET totals = '{}'",
            "UPDATE seal SET commits = 'x'",
            f"ALTER TABLE {table} RENAME TO other; CREATE VIEW {table} AS {ENDLESS}",
            "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM trials; END",
            "CREATE TABLE more (x DEFAULT (load_extension('planted')))",
            "PRAGMA user_version = 5",
            "PRAGMA journal_mode = WAL",
            "CREATE INDEX i ON trials (abs(number - 9223372036854775808))",
            "PRAGMA encoding = 'UTF-16'; VACUUM",
        ]
    )
    with closing(sqlite3.connect(run / "run.db")) as connection:
        connection.executescript(statement)
    return statement[:60]


def _names(run, _victim, draw):
    """Add files, among them modules that Python would import from the working folder."""
    for name in draw.sample(
        ["json.py", "numpy.py", "sitecustomize.py", "torch.py", "pandas.py", "conftest.py"], 3
    ):
        (run / name).write_text("open('planted', 'w').close()\nraise SystemError('planted')\n")
    name = draw.choice(["new\nline", "\udcff", "-dash", "x" * 255, PLANTED.replace("/", "|"), " "])
    (run / name).write_text("?")
    deep = run
    for _ in range(draw.choice([1, 200])):
        deep /= "deep"
    deep.mkdir(parents=True, exist_ok=True)
    return ascii(name[:20])


def _journal(run, victim, draw):
    """Plant a log or a journal that SQLite would replay, also one that names a file to delete."""
    suffix = draw.choice(["-wal", "-shm", "-journal", "-commits"])
    path = run / f"run.db{suffix}"
    data = draw.randbytes(draw.choice([0, 32, 5000]))
    if suffix == "-journal":
        name = str(victim / "notes.txt").encode()
        magic = bytes.fromhex("d9d505f920a163d7")
        header = magic + (0).to_bytes(4) + draw.randbytes(4) + (1).to_bytes(4)
        header += (512).to_bytes(4) + (4096).to_bytes(4)
        super_journal = (0x40000000 // 4096 + 1).to_bytes(4) + name
        super_journal += len(name).to_bytes(4) + sum(name).to_bytes(4) + magic
        data = header.ljust(512, b"\0") + super_journal
    path.write_bytes(data)
    return suffix


def _url(run, victim, draw):
    """Say that the ledger is in a database."""
    url = draw.choice(
        [
            "postgresql://ann@127.0.0.1:1/team?schema=run_x",
            f"postgresql:///team?host={victim}&schema=run_x",
            "postgresql://ann:secret@127.0.0.1:1/team?schema=run_x",
            f"sqlite:///{victim}/run.db",
            "file:///etc/passwd",
            "postgresql://127.0.0.1:1/team?schema=run_x&passfile=/etc/passwd",
            "postgresql://127.0.0.1:99999/team?schema=run_x",
            "\0",
        ]
    )
    (run / "ledger.url").write_text(url)
    return ascii(url)


CHANGES = [
    _bytes,
    _bytes,
    _kind,
    _kind,
    _yaml,
    _json,
    _sealed,
    _sealed,
    _sql,
    _names,
    _journal,
    _url,
]


def state_of(folder):
    """Return a digest of everything in a folder: kinds, links, names, contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        found.update(os.fsencode(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            found.update(b"link " + os.fsencode(path.readlink()))
        elif path.is_file():
            found.update(b"file " + path.read_bytes())
    return found.hexdigest()
