"""What the operations of a compiled program read and write in memory, by its text.

XLA's own analysis of a program counts the body of a loop once, and a kernel of Pallas not at all.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from diffussm_jax.planning.hlo import Operation, Program
from diffussm_jax.planning.kernel_calls import num_bytes

_IN_VMEM = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(\d+\)\}")
_SOURCE = re.compile(r"^\(\(.*?\), ")  # the first item of the type of a slice-start
# What moves no data itself: names, views, and operations whose parts count on their own.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand has the new values
_VIEWS = {"bitcast", "reshape"}

Computation = Mapping[str, Operation]


def hbm_bytes(text: str) -> int:
    """The bytes that the operations of a program for TPUs read and write in HBM, kernels aside.

    An operation reads each of its operands once and writes its results once, of a slice that alone,
    and a loop counts as often as it runs. What stays in a core's own memory is not counted.
    """
    program = Program(text)
    return sum(
        rounds * moved(operation, program.computations[name], program, size=_in_hbm)
        for name, rounds in program.rounds.items()
        for operation in program.computations[name].values()
        if operation.opcode != "custom-call"  # a kernel, which says itself what it moves
    )


def _in_hbm(types: str) -> int:
    return num_bytes(_IN_VMEM.sub("", types))


def moves_nothing(opcode: str) -> bool:
    """Whether an operation leaves the memory alone, or was counted where it started."""
    return opcode in _FREE or opcode.endswith("-done")


def moved(
    operation: Operation,
    around: Computation,
    program: Program,
    *,
    size: Callable[[str], int] = num_bytes,
) -> int:
    """The bytes that one run of an operation reads and writes.

    Args:
        around: the computation that the operation is part of.
        size: the bytes in memory of what has a type.
    """
    kind, result = operation.opcode, operation.result
    if moves_nothing(kind):
        return 0
    operands = [around[name].result for name in operation.operands if name in around]
    if operation.fused:
        reads = (min(size(x), _taken_of(operation, i, program)) for i, x in enumerate(operands))
        return sum(reads) + min(size(result), _written_by(operation, program))
    if kind in _UPDATES:
        update = operands[_UPDATES[kind]]
        return size(update) + min(num_bytes(update), size(result))
    if kind in _SLICES or kind == "slice-start":
        result = _SOURCE.sub("", result)
        return min(size(operands[0]), num_bytes(result)) + size(result)
    if kind.endswith("-start"):  # its results are what it reads and what it writes
        return size(result)
    if kind == "custom-call":  # after its result comes what it needs to work in
        result = result.split(", ")[0]
    return sum(map(size, operands)) + size(result)


def _taken_of(fusion: Operation, index: int, program: Program) -> int:
    """The bytes of an operand: all, unless slices are all that a fusion takes of it."""
    inside = program.computations[fusion.fused or ""]
    (array,) = (
        x for x in inside.values() if x.opcode == "parameter" and x.operands == (str(index),)
    )
    in_place = {x.name for x in _results(inside) if x.opcode in _UPDATES}
    return _taken(array, fusion.fused or "", program, in_place)


def _taken(array: Operation, computation: str, program: Program, in_place: set[str]) -> int:
    """What the users of a fusion's parameter, or of a view of it, take of it."""
    taken = 0
    for user, place in program.users(computation)[array.name]:
        if user.opcode in _VIEWS:
            taken += _taken(user, computation, program, in_place)
        elif user.fused:
            taken += _taken_of(user, place, program)
        elif user.opcode in _SLICES and place == 0:
            taken += num_bytes(user.result)
        elif place > 0 or user.name not in in_place:
            return num_bytes(array.result)
    return taken


def _written_by(fusion: Operation, program: Program) -> int:
    """The bytes of the results; of an array that a fusion updates in its place, of the update."""
    inside = program.computations[fusion.fused or ""]
    written = 0
    for result in _results(inside):
        if result.fused:
            written += _written_by(result, program)
        elif result.opcode in _UPDATES:
            written += num_bytes(inside[result.operands[_UPDATES[result.opcode]]].result)
        else:
            written += num_bytes(result.result)
    return written


def _results(inside: Computation) -> Iterator[Operation]:
    """What a fusion writes, without the views of it."""
    (root,) = (x for x in inside.values() if x.is_root)
    for x in [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        while x.opcode in _VIEWS:
            x = inside[x.operands[0]]
        yield x
