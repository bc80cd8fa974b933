"""The text of a model.py; what it computes is compared in tests/parity."""

import ast
import builtins
import dis
import sys
import types

import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.export import export
from diffussm_jax.exporting.model_file import model_file
from diffussm_jax.workdir.weights import load_export
from tests.conftest import merge

FLOW = {"process": "flow", "variance": "none"}
CONFIGS = {
    "diffussm": {},
    "dit": {"model": {"name": "dit"}},
    "mean_flow": {
        "diffusion": {"process": "mean_flow", "variance": "none", "prediction": "v"},
        "sample": {"sampler": "euler"},
    },
    "every_mixer": {
        "model": {
            "name": "dit",
            "depth": 5,
            "mixers": ("attention", "s4d", "delta_conv", "convnext", "dico"),
        },
        "diffusion": FLOW,
        "sample": {"sampler": "heun"},
    },
    "levels": {"model": {"name": "dit", "mixer": "dico", "levels": (1, 1, 1)}},
}


@pytest.fixture(params=CONFIGS)
def text(request):
    return model_file(from_dict(CONFIGS[request.param]))


def test_it_needs_pytorch_alone(text):
    nodes = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Import | ast.ImportFrom)]
    names = [x.module if isinstance(x, ast.ImportFrom) else x.names[0].name for x in nodes]
    assert {x.split(".")[0] for x in names} - sys.stdlib_module_names == {"torch"}


def test_every_name_is_defined_once(text):
    defined = [name for node in ast.parse(text).body for name in names_of(node)]
    assert len(defined) == len(set(defined))
    known = {*defined, *dir(builtins), "__file__", "__name__"}
    for code in codes(compile(text, "model.py", "exec")):
        read = {x.argval for x in dis.get_instructions(code) if x.opname == "LOAD_GLOBAL"}
        assert read <= known, code.co_name


def names_of(node):
    """What a statement at the top of a module defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [x.id for x in targets if isinstance(x, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def test_it_holds_what_its_model_needs(text):
    assert ("class S4D(" in text) == ("class Block(" in text or "class S4DMixer(" in text)
    assert ("class Gaussian" in text) != ("class Flow" in text)


def test_it_lies_beside_an_export_until_the_next_one(trained, tiny_config, tmp_path):
    folder = tmp_path / "weights"
    values = tiny_config | {"export": {"folder": str(folder), "format": "torch"}}
    export(from_dict(values), trained)
    assert (folder / "model.py").read_text() == model_file(load_export(folder).config)
    export(merge(values, {"export": {"format": "jax"}}), trained)
    assert load_export(folder).step == 6
    assert not (folder / "model.py").exists()


def test_options_that_it_leaves_out_are_named(caplog):
    sample = {"wrap": "x", "steps": 20, "cfg_scale": 2.0}
    with caplog.at_level("INFO", "diffussm_jax"):
        model_file(from_dict({"sample": sample}))
    assert caplog.messages == ["model.py draws without sample.wrap = 'x'"]
