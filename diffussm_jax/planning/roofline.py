"""The least time of a program on a card: what each fusion must read, write and multiply.

Every fusion reads its operands and writes its results. Of an operand of which it reads slices
alone, the slices count, and of a result that is updated in place, the updates. The cache can spare
the memory what it held when the fusion began, and what it holds when the fusion ends; the rest goes
through the memory. Starts of kernels and waiting are left out, so that a real run takes longer.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from diffussm_jax.planning.hlo import Operation, Program
from diffussm_jax.planning.kernel_calls import arrays, num_bytes
from diffussm_jax.planning.traffic import Computation, moved, moves_nothing

_PACKAGE = "/diffussm_jax/"
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?P<start>-start)?$"
)
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM_CONTRACTING = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_KERNEL_LABELS = re.compile(r"dim_labels=[^_]+_(?P<kernel>[^-]+)->")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a fusion, or another operation that is a kernel of its own, takes in one round.

    Attributes:
        source: the line of the model that it comes from, as "models/block.py:83", or "".
        rounds: how often it runs in one run of the program.
    """

    name: str
    source: str
    rounds: int
    num_bytes: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time of one run of a program.

    Attributes:
        uncached_seconds: the same if the cache spares the memory nothing.
        memory_share: of the time, in which memory is what the bound waits for.
        work: of all kernels, those that move the most bytes first.
    """

    seconds: float
    uncached_seconds: float
    memory_share: float
    work: tuple[Work, ...]

    @property
    def num_bytes(self) -> int:
        """What all rounds read and write."""
        return sum(work.rounds * work.num_bytes for work in self.work)

    @property
    def multiply_adds(self) -> int:
        """The products of all rounds."""
        return sum(work.rounds * work.multiply_adds for work in self.work)


def bound(
    program: Program, *, peak_flops: float, bandwidth: float, cache_bytes: int = 0
) -> Roofline:
    """The least time of a program at a peak of operations a second and of bytes a second."""
    work = sorted(kernels(program), key=lambda x: x.rounds * x.num_bytes, reverse=True)
    total = uncached = waiting = 0.0
    for x in work:
        products = x.rounds * 2 * x.multiply_adds / peak_flops
        memory = x.rounds * max(x.num_bytes - 2 * cache_bytes, 0) / bandwidth
        total += max(products, memory)
        uncached += max(products, x.rounds * x.num_bytes / bandwidth)
        waiting += memory if memory > products else 0.0
    return Roofline(total, uncached, waiting / total if total else 0.0, tuple(work))


def kernels(program: Program) -> Iterator[Work]:
    """The work of everything that a program starts, in the order of its text."""
    for name, rounds in program.rounds.items():
        computation = program.computations[name]
        for operation in computation.values():
            if moves_nothing(operation.opcode) or _COLLECTIVE.match(operation.opcode):
                continue  # what comes over links is not counted
            inside = program.computations[operation.fused] if operation.fused else None
            yield Work(
                name=operation.name,
                source=_source(program, operation, inside),
                rounds=rounds,
                num_bytes=moved(operation, computation, program),
                multiply_adds=_products(operation, computation, inside),
            )


def link_bytes(program: Program) -> collections.Counter[str]:
    """The bytes that each kind of collective exchanges over a card's links, loops multiplied.

    They are those of the complete array, of which a card has a part before or afterwards; an
    all-reduce, which scatters sums and gathers them, counts twice.
    """
    total = collections.Counter[str]()
    for name, rounds in program.rounds.items():
        computation = program.computations[name]
        for operation in computation.values():
            if not (match := _COLLECTIVE.match(operation.opcode)):
                continue
            taken = sum(num_bytes(computation[x].result) for x in operation.operands)
            given = num_bytes(operation.result)
            if match["start"] and match[1] != "all-reduce":  # it hands its operands on as well
                given -= taken
            times = 2 if match[1] == "all-reduce" else 1
            total[match[1]] += rounds * times * max(taken, given)
    return total


def _source(program: Program, operation: Operation, inside: Computation | None) -> str:
    """The innermost line of this package, of the operation or of what is fused in it."""
    for part in (operation, *reversed(list((inside or {}).values()))):
        for file, line in program.source(part):
            _, is_ours, path = file.rpartition(_PACKAGE)
            if is_ours:
                return f"{path}:{line}"
    return ""


def _products(operation: Operation, around: Computation, inside: Computation | None) -> int:
    """The multiply-adds of a kernel in one round."""
    if inside is None:
        return _multiply_adds(operation, around)
    return sum(_multiply_adds(x, inside) for x in inside.values())


def _multiply_adds(operation: Operation, around: Computation) -> int:
    """The multiply-adds of a matrix product or a convolution; 0 for anything else."""
    match = _CONTRACTING.search(operation.attributes)
    match = match or _GEMM_CONTRACTING.search(operation.attributes)
    if match:
        ((left, _),) = arrays(around[operation.operands[0]].result)
        contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", match[1]))
        return math.prod(arrays(operation.result)[0][0]) * contracted
    if match := _KERNEL_LABELS.search(operation.attributes):
        output, kernel = _output_and_kernel(operation, around)
        taps = math.prod(kernel) // kernel[match["kernel"].index("o")]
        return math.prod(output) * taps
    return 0


def _output_and_kernel(
    operation: Operation, around: Computation
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a convolution; cuDNN's gradients have the dimensions of the convolution."""
    result = arrays(operation.result)[0][0]
    left, right = (arrays(around[name].result)[0][0] for name in operation.operands[:2])
    if "__cudnn$convBackwardInput" in operation.attributes:
        return left, right
    if "__cudnn$convBackwardFilter" in operation.attributes:
        return right, result
    return result, right
