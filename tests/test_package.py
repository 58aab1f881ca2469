"""The package as a whole: public names, the one way that imports point, and what loads when."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tune_softmax"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("__")
)

# From low to high: a folder imports only from itself and from those before it. Imports for the
# type checker count too, because a type from above is knowledge of what is above.
FOLDERS = [
    "",
    "data",
    "experiment",
    "stats",
    "engine",
    "oracle",
    "run",
    "scheduler",
    "cluster",
    "export",
    "studies",
    "bench",
    "report",
    "commands",
]
# Neighbours that do not know each other, whatever their order says.
STRANGERS = [{"data", "experiment"}, {"data", "stats"}, {"experiment", "stats"}, {"engine", "run"}]
MAX_ENTRIES = 20  # what a newcomer can take in at a glance
MAX_FLOORS = 10
FAST_START = "cluster.fast_start"
# The bench of packs is part of the engine's promise: it runs where only torch is.
BENCH_OF_PACKS = {
    f"bench.{name}" for name in ("forms", "conditions", "alone", "floor", "packed", "race")
}
LIGHT = ["errors", "files", "config", "metrics", "data.seeding", "run.environment"]
# Scripts that search as other projects do, with these projects' libraries; nothing imports them.
PEERS = {module for module in MODULES if module.startswith("bench.peers.")}


def path_of(module):
    """Return a module's file."""
    return PACKAGE / f"{module.replace('.', '/')}.py"


def syntax(module):
    """Return a module's syntax tree."""
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def is_for_types(node):
    """Say whether a statement is `if TYPE_CHECKING`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree, *, with_types=True):
    """Return the dotted names that a tree imports anywhere, inside functions too."""
    names = set()
    left = [tree]
    while left:
        node = left.pop()
        if is_for_types(node) and not with_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        left += ast.iter_child_nodes(node)
    return names


def own_imports(module, *, with_types=True):
    """Return which of our modules a module imports."""
    names = {
        name.removeprefix("tune_softmax.")
        for name in imported(syntax(module), with_types=with_types)
        if name.startswith("tune_softmax.")
    }
    return {known for known in MODULES for name in names if f"{name}.".startswith(f"{known}.")}


def others_imports(module, *, with_types=True):
    """Return which other packages a module imports."""
    names = imported(syntax(module), with_types=with_types)
    return {name.split(".")[0] for name in names} - {"tune_softmax", "__future__"}


def loaded_by(code, *arguments):
    """Run code in a fresh process and return which top-level packages it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


RUN_COMMAND = """
import sys
from tune_softmax.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def folder_of(module):
    """Return the top-level folder that a module is in; "" for one at the root."""
    return module.split(".")[0] if "." in module else ""


def is_way_in(module):
    """Say whether a module of the root is on top of all folders."""
    return module == "cli"


def floors(graph):
    """Return how many nodes follow one another at most in a graph without circles.

    Raises:
        graphlib.CycleError: It has one.
    """
    height = {}
    for node in graphlib.TopologicalSorter(graph).static_order():
        height[node] = 1 + max((height[below] for below in graph.get(node, ())), default=0)
    return max(height.values())


def test_the_package_is_small_at_first_sight():
    """`ls` shows no more than a newcomer can take in, and every folder has its place."""
    shown = [path for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")]
    assert len(shown) <= MAX_ENTRIES
    assert {folder_of(module) for module in MODULES} == {*FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_one_way(folder):
    """A folder imports only from folders before it in the list, and not from strangers."""
    allowed = set(FOLDERS[: FOLDERS.index(folder) + 1])
    allowed -= {other for pair in STRANGERS if folder in pair for other in pair - {folder}}
    for module in MODULES:
        if folder_of(module) == folder and not is_way_in(module):
            assert {folder_of(name) for name in own_imports(module)} <= allowed, module


def test_no_import_runs_in_a_circle():
    """Modules import each other in no circle, and stand on few floors in each folder."""
    graph = {module: own_imports(module) - {module} for module in MODULES}
    floors(graph)  # raises where there is a circle
    for folder in FOLDERS:
        inside = {module for module in MODULES if folder_of(module) == folder}
        assert floors({module: graph[module] & inside for module in inside}) <= MAX_FLOORS


def test_few_folders_stand_on_each_other():
    """From the lowest folder to the highest there are few floors."""
    graph = {
        folder: {
            below
            for module in MODULES
            if folder_of(module) == folder and not is_way_in(module)
            for below in map(folder_of, own_imports(module))
        }
        - {folder}
        for folder in FOLDERS
    }
    assert floors(graph) <= MAX_FLOORS


def test_the_two_ways_to_train_do_not_know_each_other():
    """What packs must agree with is not what they are made of; a test joins them."""
    assert "engine.pack" not in own_imports("engine.reference")
    assert "engine.reference" not in own_imports("engine.pack")


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("ray", ("cluster.", "bench.probes")),
        (
            "optuna",
            (
                *("scheduler.study", "scheduler.sampler_view", "export.optuna_"),
                "report.figures.hyperparameters",
            ),
        ),
    ],
)
def test_a_library_is_named_where_it_belongs(library, places):
    """Ray and Optuna each have their rooms, and no other but the bench's peers names them."""
    naming = {module for module in MODULES if library in others_imports(module)} - PEERS
    assert naming
    assert {module for module in naming if not module.startswith(places)} == set()


def test_undocumented_ray_is_in_one_folder():
    """What Ray does not document is named in `cluster/fast_start` alone."""
    undocumented = re.compile(r"ray\._|_raylet|sys\.modules\[|_system_config")
    naming = {
        module
        for module in MODULES
        if undocumented.search(path_of(module).read_text(encoding="utf-8"))
    }
    assert {module for module in naming if not module.startswith(f"{FAST_START}.")} == set()


ENGINE = sorted({module for module in MODULES if folder_of(module) == "engine"} | BENCH_OF_PACKS)


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_needs_torch_alone(module):
    """It runs where only torch is; types may come from elsewhere, for they do not run."""
    # The race stops trials by the search's own rule, which the test below loads with torch alone.
    more = {"scheduler.asha"} if module == "bench.race" else set()
    assert own_imports(module, with_types=False) <= {*ENGINE, *LIGHT, *more}
    allowed = {"torch", "triton", "numpy", *sys.stdlib_module_names}  # torch brings triton along
    assert others_imports(module, with_types=False) <= allowed


@pytest.mark.parametrize("module", LIGHT)
def test_what_the_engine_stands_on_needs_nothing(module):
    """The lowest modules import the standard library alone."""
    assert others_imports(module) <= sys.stdlib_module_names


def test_the_engine_loads_torch_alone():
    """In a fresh process the bench, the highest of the engine, brings in no other library."""
    heavy = {"ray", "optuna", "pandas", "pydantic", "sqlalchemy", "rich", "sklearn", "yaml"}
    assert not loaded_by("import tune_softmax.bench.__main__, tune_softmax.bench.race") & heavy


def test_our_kernels_need_no_torch():
    """A worker trains softmax regression without importing torch, which takes it seconds."""
    code = """
import numpy as np
from tune_softmax.engine.arrays import ArrayData, ArrayImages
from tune_softmax.config import Config
from tune_softmax.engine.pack import Pack
from tune_softmax.cluster import worker
images = ArrayImages(np.zeros((8, 4), np.uint8), np.arange(8) % 2)
data = ArrayData(images, images, (2, 2), 2, 255)
pack = Pack({0: Config(batch_size=4, num_epochs=1, learning_rate=0.1)}, data, seed=0)
assert pack.train_epoch()[0].is_finite
pack.weights(0)
"""
    assert "torch" not in loaded_by(code)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["search", "--help"],
        ["bench", "packed", "--help"],
        ["bench", "search", "--help"],
        ["bench", "scaling", "--help"],
        ["validate", "experiments/mlp.yaml"],
    ],
    ids=" ".join,
)
def test_quick_commands_load_nothing_heavy(arguments):
    """Help and the check of an experiment file start without torch, Ray and the like."""
    heavy = {"torch", "ray", "optuna", "pandas", "sqlalchemy", "sklearn", "matplotlib"}
    assert not loaded_by(RUN_COMMAND, *arguments) & heavy


def test_results_load_neither_torch_nor_ray():
    """Dataframes are read where neither is wanted."""
    assert not loaded_by(
        "import tune_softmax.run.results, tune_softmax.commands.result_tables"
    ) & {"torch", "ray"}


PUBLIC = """
import tune_softmax
from tune_softmax import errors
for name in tune_softmax.__all__:
    assert name in dir(tune_softmax), name
assert {name for name in errors.__all__ if name.endswith("Error")} <= set(tune_softmax.__all__)
assert sorted(tune_softmax.__all__) == tune_softmax.__all__
"""


def test_importing_the_package_loads_nothing_heavy():
    """`dir()` knows all names before any is imported, and the errors need no import."""
    heavy = {"torch", "ray", "optuna", "pandas", "numpy", "pydantic", "sqlalchemy", "typer"}
    assert not loaded_by(PUBLIC) & heavy


def test_every_public_name_can_be_had():
    """Each name of `__all__` is what its documentation says; others are refused as usual."""
    loaded_by(f"""{PUBLIC}
for name in tune_softmax.__all__:
    assert getattr(tune_softmax, name) is not None, name
    assert name == "__version__" or callable(getattr(tune_softmax, name)), name
from importlib.metadata import version
assert tune_softmax.__version__ == version("tune-softmax")
assert not hasattr(tune_softmax, "no_such_name")
""")


@pytest.mark.parametrize(
    "before",
    ["", "import tune_softmax.oracle.path", "import tune_softmax; tune_softmax.oracle"],
    ids=["nothing before", "the folder before", "the verb before"],
)
def test_oracle_is_a_verb_and_a_folder(before):
    """`tune_softmax.oracle(...)` works whatever was imported before, and so does the folder."""
    loaded_by(f"""{before}
import tune_softmax
from tune_softmax import ExperimentError
from tune_softmax.experiment import experiment as experiments
several = experiments.load("experiments/mlp.yaml")
for _ in range(2):
    try:
        tune_softmax.oracle(several)
    except ExperimentError as error:
        assert "hidden" in str(error), error
    else:
        raise AssertionError
    import tune_softmax.oracle.path
    from tune_softmax.oracle.solver import Solver
assert tune_softmax.oracle.path.oracle is not tune_softmax.oracle
""")


@pytest.mark.slow
def test_nothing_happens_on_import(tmp_path):
    """Importing every module makes no folder and no file, and sets up no logging."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    code = """
import importlib, logging, sys
for name in sys.argv[1:]:
    importlib.import_module(f"tune_softmax.{name}")
assert not logging.getLogger().handlers
assert not logging.getLogger("tune_softmax").handlers
"""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "RAY_"))},
        "HOME": str(home),
        "MPLCONFIGDIR": str(elsewhere),  # where matplotlib keeps its list of fonts
    }
    command = [sys.executable, "-c", code, *sorted({*MODULES} - PEERS)]
    subprocess.run(command, check=True, cwd=home, env=environment)
    assert list(home.iterdir()) == []


def public_names(module):
    """Return the functions, classes and type aliases that a module defines without underscore.

    Constants in capitals serve their own module; `__all__` may list one that serves others.
    """
    names = set()
    for node in syntax(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and not name.isupper()}


def listed_names(module):
    """Return a module's `__all__` as it is written."""
    for node in syntax(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_sorted(module):
    """`__all__` lists constants, then classes, then functions, each sorted, none twice."""
    listed = listed_names(module)
    assert listed
    assert len(set(listed)) == len(listed)
    assert listed == sorted(listed, key=lambda name: (not name.isupper(), name[0].islower(), name))


# A logger is a module's own; an experiment's parts are public from the module that reads them.
NOT_LISTED = {"logger"}
LISTED_FROM_ELSEWHERE = {
    "experiment.experiment": {
        *("Choice", "Domain", "IntRange", "LogUniform", "Space", "Uniform", "Value"),
        *("Asha", "DatasetName", "DatasetOptions", "ModelOptions", "Resources", "Search"),
        "RemedyOptions",
    },
    "cluster.fast_start.lean_tune": {"tune"},
}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "cli"])
def test_public_names_are_exact(module):
    """`__all__` holds every public name that the module defines, and no other.

    Not so `cli`, whose commands are public through its `app`.
    """
    listed = {name for name in listed_names(module) if not name.isupper()}
    listed -= LISTED_FROM_ELSEWHERE.get(module, set())
    assert listed == public_names(module) - NOT_LISTED


@pytest.mark.parametrize("module", MODULES)
def test_listed_names_exist(module):
    """`from module import *` would find every name of `__all__`."""
    tree = syntax(module)
    bound = {name.rpartition(".")[2] for name in imported(tree)}
    for node in tree.body:
        bound |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        bound |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    assert set(listed_names(module)) <= bound


def test_there_is_no_module_without_a_duty():
    """A helper lives with its only user, or in a module with a duty."""
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(MODULES)


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_a_module_says_its_duty_first(module):
    """Every module opens with a docstring whose first line is a whole sentence."""
    docstring = ast.get_docstring(syntax(module))
    assert docstring is not None
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_the_installed_version_is_the_projects():
    """The environment holds this version, not an older install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version("tune-softmax") == project["version"]
