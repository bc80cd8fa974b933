"""The model.py of an export: parts of `exporting.pytorch`, put into one file that needs PyTorch."""

import ast
from importlib import resources

from diffussm_jax.config import Config

PARTS = "diffussm_jax.exporting.pytorch"

_HEAD = '''\
"""Draw images from the model beside this file, with PyTorch alone.

Written by diffussm_jax, from its {parts}.
"""
'''


def model_file(config: Config) -> str:
    """The text of the model.py of a config's model."""
    return assemble(parts_of(config))


def parts_of(config: Config) -> list[str]:
    """The names of the parts that draw from a config's model, each after those that it imports."""
    return ["files"]


def assemble(parts: list[str]) -> str:
    """One file of several parts, with their imports, but of one another, at its top."""
    imports: set[str] = set()
    bodies = []
    for part in parts:
        text = resources.files(PARTS).joinpath(f"{part}.py").read_text(encoding="utf-8")
        top = [node for node in ast.parse(text).body if _is_top(node)]
        imports |= {ast.unparse(node) for node in top[1:] if not _is_of_parts(node)}
        last = top[-1].end_lineno or 0
        bodies.append("".join(text.splitlines(keepends=True)[last:]).strip("\n"))
    plain, by_name = (
        sorted(x for x in imports if x.startswith(kind)) for kind in ("import ", "from ")
    )
    head = _HEAD.format(parts=", ".join(parts))
    return "\n".join([head, *plain, *by_name]) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def _is_top(node: ast.stmt) -> bool:
    """Whether a statement is a module's docstring or an import."""
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)


def _is_of_parts(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PARTS)
