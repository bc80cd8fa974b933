"""The package never runs code out of a file: no pickle, object arrays, eval or exec."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "diffussm_jax"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}


def offences(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in MODULES:
                yield node.module
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", True)
                if keyword.arg == "allow_pickle" and value is not False:
                    yield "allow_pickle"
                if keyword.arg == "weights_only" and value is not True:
                    yield "weights_only"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_file_of_the_package_runs_what_it_reads(path):
    assert not list(offences(path.read_text()))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "eval('1')",
        "exec(code)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_the_test_sees_them(code):
    assert list(offences(code))
