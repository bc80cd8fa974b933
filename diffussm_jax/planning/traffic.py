"""What the operations of a program for TPUs read and write in HBM, by its text.

XLA's own analysis of a program counts the body of a loop once, and a kernel not at all.
"""

import re
from collections.abc import Mapping

from diffussm_jax.planning.hlo import Operation, Program
from diffussm_jax.planning.kernel_calls import num_bytes

_IN_VMEM = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)\}")
_SOURCE = re.compile(r"^\(\(.*?\), ")  # the first item of the type of a slice-start
_SLICES = {"dynamic-slice", "slice", "gather"}
# What these name is counted where it is made or used; kernels say themselves what they move.
_MOVE_NOTHING = {
    *("bitcast", "call", "conditional", "constant", "custom-call"),
    *("get-tuple-element", "parameter", "tuple", "while"),
}

Computation = Mapping[str, Operation]


def hbm_bytes(text: str) -> int:
    """The bytes that the operations of `compiled.as_text()` read and write in HBM, kernels aside.

    An operation reads each of its operands once and writes its results once, of a slice that alone,
    and a loop counts as often as it runs. What stays in a core's own memory is not counted.
    """
    program = Program(text)
    return sum(
        rounds * _moved(operation, program.computations[name], program)
        for name, rounds in program.rounds.items()
        for operation in program.computations[name].values()
    )


def _in_hbm(types: str) -> int:
    return num_bytes(_IN_VMEM.sub("", types))


def _moved(operation: Operation, around: Computation, program: Program) -> int:
    """What one run of an operation reads and writes."""
    kind, result = operation.opcode, operation.result
    if kind in _MOVE_NOTHING or kind.endswith("-done"):
        return 0
    operands = [around[name].result for name in operation.operands if name in around]
    if operation.fused:
        reads = (min(_in_hbm(x), _taken_of(operation, i, program)) for i, x in enumerate(operands))
        return sum(reads) + min(_in_hbm(result), _written_by(operation, program))
    if kind == "dynamic-update-slice":
        return _in_hbm(operands[1]) + min(num_bytes(operands[1]), _in_hbm(result))
    if kind in _SLICES or kind == "slice-start":
        result = _SOURCE.sub("", result)
        return min(_in_hbm(operands[0]), num_bytes(result)) + _in_hbm(result)
    if kind.endswith("-start"):  # its results are what it reads and what it writes
        return _in_hbm(result)
    return sum(map(_in_hbm, operands)) + _in_hbm(result)


def _taken_of(fusion: Operation, index: int, program: Program) -> int:
    """The bytes of an operand: all, unless slices are all that a fusion takes of it."""
    inside = program.computations[fusion.fused or ""]
    (array,) = (
        x for x in inside.values() if x.opcode == "parameter" and x.operands == (str(index),)
    )
    return _taken(array, inside, program)


def _taken(array: Operation, inside: Computation, program: Program) -> int:
    taken = 0
    for user in (x for x in inside.values() if array.name in x.operands):
        index = user.operands.index(array.name)
        if user.opcode == "bitcast":
            taken += _taken(user, inside, program)
        elif user.fused:
            taken += _taken_of(user, index, program)
        elif user.opcode in _SLICES and index == 0:
            taken += num_bytes(user.result)
        elif user.opcode != "dynamic-update-slice" or index > 0:
            return num_bytes(array.result)
    return taken


def _written_by(fusion: Operation, program: Program) -> int:
    """The bytes of the results; of an array that a fusion updates in its place, of the update."""
    inside = program.computations[fusion.fused or ""]
    (root,) = (x for x in inside.values() if x.is_root)
    names = root.operands if root.opcode == "tuple" else (root.name,)
    return sum(_written(inside[name], inside, program) for name in names)


def _written(result: Operation, inside: Computation, program: Program) -> int:
    while result.opcode == "bitcast":
        result = inside[result.operands[0]]
    if result.fused:
        return _written_by(result, program)
    is_update = result.opcode == "dynamic-update-slice"
    return num_bytes(inside[result.operands[1]].result if is_update else result.result)
