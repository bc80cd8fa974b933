"""The import direction: ops <- models; diffusion knows neither models nor data; only main reads flags."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffussm_jax"
# What each folder may import from the package, besides itself.
ALLOWED = {
    "ops": {"shapes"},
    "models": {"ops", "shapes", "config"},
    "diffusion": {"shapes", "config"},
    "data": {"config", "errors"},
    "parallel": {"config", "errors", "ops", "shapes"},
    "training": {
        "config",
        "config_parsing",
        "data",
        "diffusion",
        "errors",
        "evaluation",
        "export",
        "files",
        "generator",
        "images",
        "models",
        "ops",
        "parallel",
        "preemption",
        "pretrained",
        "shapes",
        "workdir",
    },
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_downwards_only(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in imports(path):
            if name.startswith("diffussm_jax."):
                room = name.split(".")[1]
                assert room == folder or room in ALLOWED[folder], f"{path.name} imports {name}"


def test_only_main_reads_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "main.py":
            assert not any("absl" in name or "ml_collections" in name for name in imports(path)), (
                path
            )


@pytest.mark.parametrize("folder", ["ops", "models"])
def test_operator_and_models_need_jax_and_flax_alone(folder):
    """They also run where none of the tools of training is installed."""
    for path in [*(PACKAGE / folder).rglob("*.py"), PACKAGE / "config.py"]:
        tops = {name.split(".")[0] for name in imports(path)}
        outside = tops - set(sys.stdlib_module_names) - {"diffussm_jax"}
        assert outside <= {"jax", "flax", "jaxtyping", "numpy"}, path


def test_files_fit_a_reader():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
