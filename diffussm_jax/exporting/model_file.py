"""The model.py of an export: parts of `exporting.pytorch`, put into one file that needs PyTorch."""

import ast
import logging
import sys
import textwrap
from importlib import resources

from diffussm_jax.config import Config

logger = logging.getLogger(__name__)

PARTS = "diffussm_jax.exporting.pytorch"
# Options of the sample section that change images, and that model.py does not have.
LEFT_OUT = ("image_size", "wrap", "window_overlap", "autoguidance", "dtype")
_PARTS_OF_MIXERS = {
    "attention": ["attention"],
    "s4d": ["s4d", "s4d_mixer"],
    "delta_conv": ["convolutions", "delta_conv"],
    "convnext": ["convolutions", "convnext"],
    "dico": ["convolutions", "dico"],
}
_HEAD = '''\
"""Draw images from the model in this folder, with PyTorch alone: `python model.py --help`.

Or `from model import load, to_uint8` and `to_uint8(load().sample(classes=[0, 1], steps=50))`.
"""
'''


def model_file(config: Config) -> str:
    """The text of the model.py of a config's model; a warning names what it will not draw with."""
    for name in LEFT_OUT:
        value = getattr(config.sample, name)
        if value not in (None, config.data.image_size):
            logger.warning("model.py draws without sample.%s = %r", name, value)
    return assemble(parts_of(config))


def parts_of(config: Config) -> list[str]:
    """The names of the parts that draw from a config's model, each after those that it imports."""
    model = config.model
    if model.name == "diffussm":
        network = ["isotropic", "s4d", "diffussm"]
    else:
        mixers = [part for name in model.pattern for part in _PARTS_OF_MIXERS[name]]
        stack = ["isotropic", "dit"] if model.levels is None else ["levels"]
        network = ["dit_blocks", *dict.fromkeys(mixers), *stack]
    process = "gaussian" if config.diffusion.process == "gaussian" else "flow"
    return ["layers", "backbone", *network, "process", process, "files", "model", "command"]


def assemble(parts: list[str]) -> str:
    """One file of several parts, with their imports, but of one another, at its top."""
    names: dict[str, set[str]] = {}
    bodies = []
    for part in parts:
        text = resources.files(PARTS).joinpath(f"{part}.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top:
            _add_names(names, node)
        heading = textwrap.indent(ast.get_docstring(tree) or "", "# ", lambda line: True)
        body = "".join(text.splitlines(keepends=True)[top[-1].end_lineno :]).strip("\n")
        bodies.append(f"{heading}\n\n\n{body}".replace("# \n", "#\n"))
    return f"{_HEAD}\n{_imports(names)}\n\n" + "\n\n\n".join(bodies) + "\n"


def _add_names(names: dict[str, set[str]], node: ast.Import | ast.ImportFrom) -> None:
    """Note what an import statement imports, of each module; an empty name is the module itself."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            names.setdefault(alias.name, set()).add("")
    elif not (node.module or "").startswith(PARTS):
        imported = {ast.unparse(alias) for alias in node.names}
        names.setdefault(node.module or "", set()).update(imported)


def _imports(names: dict[str, set[str]]) -> str:
    """Import statements in isort's order: the standard library, then PyTorch."""
    ours: list[str] = []
    theirs: list[str] = []
    for module, imported in names.items():
        group = ours if module.split(".")[0] in sys.stdlib_module_names else theirs
        if "" in imported:
            group.append(f"import {module}")
        if imported - {""}:
            group.append(f"from {module} import {', '.join(sorted(imported - {''}))}")
    return "\n\n".join("\n".join(sorted(group, key=_isort_key)) for group in (ours, theirs))


def _isort_key(statement: str) -> tuple[bool, str]:
    return statement.startswith("from "), statement
