"""What the operations of a compiled program read and write in a chip's memory, by its text.

XLA's own analysis of a program counts the body of a loop once, and a kernel not at all.
"""

import functools
import re
from typing import NamedTuple

from diffussm_jax.planning.kernel_calls import num_bytes
from diffussm_jax.planning.hlo import inner_computations, parse

_OPERATION = re.compile(
    r"^ *(?:ROOT )?%(?P<name>\S+) = (?P<type>\(.*?\)|\S+) (?P<kind>[\w-]+)\((?P<operands>[^)]*)\)"
)
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r" calls=%([^,\s]+)")
_IN_VMEM = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)\}")
_SOURCE = re.compile(r"^\(\(.*?\), ")  # the first item of the type of a slice-start
_SLICES = {"dynamic-slice", "slice", "gather"}
# What these name is counted where it is made or used; kernels say themselves what they move.
_MOVE_NOTHING = {
    "bitcast",
    "call",
    "conditional",
    "constant",
    "custom-call",
    "get-tuple-element",
    "parameter",
    "tuple",
    "while",
}


class _Operation(NamedTuple):
    """A line of a program: `types` are those of its results, `operands` are names."""

    name: str
    types: str
    kind: str
    operands: list[str]
    line: str


def hbm_bytes(text: str) -> int:
    """The bytes that the operations of `compiled.as_text()` read and write in HBM, kernels aside.

    An operation reads each of its operands once and writes its results once, of a slice that alone,
    and a loop counts as often as it runs. What stays in a core's own memory is not counted.
    """
    computations, entry = parse(text)
    operations = {
        name: [operation for line in lines if (operation := _read(line))]
        for name, lines in computations.items()
    }
    fusions = _Fusions(operations)

    @functools.cache
    def count(computation: str) -> int:
        types = {x.name: x.types for x in operations[computation]}
        moved = 0
        for operation in operations[computation]:
            moved += _moved(
                operation, [types.get(name, "") for name in operation.operands], fusions
            )
            for inner, rounds in inner_computations(operation.line, computations):
                moved += rounds * count(inner)
        return moved

    return count(entry)


def _read(line: str) -> _Operation | None:
    if not (match := _OPERATION.match(line)):
        return None
    return _Operation(
        match["name"], match["type"], match["kind"], _NAME.findall(match["operands"]), line
    )


def _in_hbm(types: str) -> int:
    return num_bytes(_IN_VMEM.sub("", types))


def _moved(operation: _Operation, operands: list[str], fusions: "_Fusions") -> int:
    """What one run of an operation reads and writes; `operands` are their types."""
    kind, results = operation.kind, operation.types
    if kind in _MOVE_NOTHING or kind.endswith("-done"):
        return 0
    if kind == "fusion":
        reads = (min(_in_hbm(x), fusions.taken(operation, i)) for i, x in enumerate(operands))
        return sum(reads) + min(_in_hbm(results), fusions.written(operation))
    if kind == "dynamic-update-slice":
        return _in_hbm(operands[1]) + min(num_bytes(operands[1]), _in_hbm(results))
    if kind in _SLICES or kind == "slice-start":
        result = _SOURCE.sub("", results)
        return min(_in_hbm(operands[0]), num_bytes(result)) + _in_hbm(result)
    if kind.endswith("-start"):  # its results are what it reads and what it writes
        return _in_hbm(results)
    return sum(map(_in_hbm, operands)) + _in_hbm(results)


class _Fusions:
    """What fusions need of their operands, and change of their results."""

    def __init__(self, operations: dict[str, list[_Operation]]):
        self._operations = operations

    def taken(self, fusion: _Operation, index: int) -> int:
        """Bytes of an operand: all, unless slices are all that a fusion takes of it."""
        inside = self._inside(fusion)
        (array,) = (x for x in inside if x.line.find(f" parameter({index})") > 0)
        return self._taken(array, inside)

    def written(self, fusion: _Operation) -> int:
        """Bytes of the results, of an array that a fusion updates in its place the update alone."""
        inside = self._inside(fusion)
        root = inside[-1]
        names = root.operands if root.kind == "tuple" else [root.name]
        return sum(self._written(name, inside) for name in names)

    def _inside(self, fusion: _Operation) -> list[_Operation]:
        called = _CALLED.search(fusion.line)
        assert called, fusion.line
        return self._operations[called[1]]

    def _taken(self, array: _Operation, inside: list[_Operation]) -> int:
        taken = 0
        for user in (x for x in inside if array.name in x.operands):
            index = user.operands.index(array.name)
            if user.kind == "bitcast":
                taken += self._taken(user, inside)
            elif user.kind == "fusion":
                taken += self.taken(user, index)
            elif user.kind in _SLICES and index == 0:
                taken += num_bytes(user.types)
            elif user.kind != "dynamic-update-slice" or index > 0:
                return num_bytes(array.types)
        return taken

    def _written(self, name: str, inside: list[_Operation]) -> int:
        by_name = {x.name: x for x in inside}
        result = by_name[name]
        while result.kind == "bitcast":
            result = by_name[result.operands[0]]
        if result.kind == "fusion":
            return self.written(result)
        is_update = result.kind == "dynamic-update-slice"
        return num_bytes(by_name[result.operands[1]].types if is_update else result.types)
