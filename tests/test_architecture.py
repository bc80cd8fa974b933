"""The ladder: each room imports only from rungs below its own, and files fit a reader."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffussm_jax"
LADDER = (
    "errors shapes",
    "files config ops",
    "models diffusion data parallel",
    "training autoencoder",
    "workdir",
    "sampling",
    "evaluation planning inspection editing exporting",
    "train sample evaluate refstats encode export verify replay inspect edit plan flops convert",
    "main",
)
RUNG = {room: rung for rung, rooms in enumerate(LADDER) for room in rooms.split()}
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
FUNCTIONS = {
    f"{path.relative_to(PACKAGE)}:{node.name}": node
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.FunctionDef)


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}.{node.names[0].name}"


@pytest.mark.parametrize("room", RUNG)
def test_a_room_imports_from_rungs_below_its_own_alone(room):
    paths = [path for path in TREES if path.relative_to(PACKAGE).parts[0] in (room, f"{room}.py")]
    assert paths
    for path in paths:
        for name in imports(TREES[path]):
            if name.startswith("diffussm_jax."):
                other = name.split(".")[1]
                assert other == room or RUNG[other] < RUNG[room], f"{path} imports {name}"


def test_every_room_is_on_the_ladder():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in TREES}
    assert rooms - {"__init__"} == set(RUNG)


def test_the_root_is_a_hall_of_few_doors():
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, diffussm_jax; "
        "print([x for x in sys.modules if x.startswith(('jax', 'diffussm_jax.'))])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]", output.stderr


def test_text_is_utf8_whatever_the_locale():
    """Class names and comments have letters that are not English."""
    for folder in (PACKAGE, *(PACKAGE.parent / name for name in ("benchmarks", "launch"))):
        for path in folder.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                named = {keyword.arg for keyword in call.keywords}
                assert not is_of_text(call) or "encoding" in named, f"{path}:{call.lineno}"


def is_of_text(call):
    """Whether a call reads or writes text: a Path's methods, or a process with `text`."""
    name = getattr(call.func, "attr", None)
    mode = getattr(call.args[0], "value", None) if call.args else "r"
    is_open = name == "open" and mode in ("r", "w", "a")
    is_process = any(keyword.arg == "text" for keyword in call.keywords)
    return name in ("read_text", "write_text") or is_open or is_process


def test_only_main_reads_flags():
    for path, tree in TREES.items():
        if path.name != "main.py":
            assert not {name.split(".")[0] for name in imports(tree)} & {"absl", "ml_collections"}


@pytest.mark.parametrize("room", ["ops", "models", "config"])
def test_operator_and_models_need_jax_and_flax_alone(room):
    """They also run where none of the tools of training is installed."""
    for path in (PACKAGE / room).rglob("*.py"):
        tops = {name.split(".")[0] for name in imports(TREES[path])}
        outside = tops - set(sys.stdlib_module_names) - {"diffussm_jax"}
        assert outside <= {"jax", "flax", "jaxtyping", "numpy"}, path


def test_files_and_functions_fit_a_reader():
    for path in TREES:
        assert len(path.read_text().splitlines()) <= 300, path
    for name, node in FUNCTIONS.items():
        assert length(node) <= 60, name
        assert depth(node) <= 4, name
    assert statistics.median(map(length, FUNCTIONS.values())) <= 8


def length(function):
    """Lines from `def` to the last one, the docstring left out."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def depth(node):
    """Blocks inside each other; an `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest
