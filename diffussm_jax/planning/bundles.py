"""The cycles of a Pallas kernel, read from what libtpu writes down while it compiles the kernel.

A core issues a bundle of instructions a cycle. libtpu's text names the bundles of each region of a
kernel, and says how often a region runs: a loop has bounds, the one over the grid among them, and a
region that `pl.when` made has a condition. It is the text of the last pass that still has an empty
bundle for each cycle in which a core waits for a result. What bundles do not know is memory; the
text also has the blocks of each array, of which the grid's first and last steps wait for one.
"""

import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from diffussm_jax.planning.kernel_calls import num_bytes

# The two passes whose text is read: the kernel's conditions in full, and its bundles.
ORIGINAL, SCHEDULED = "original", "post-bundle-packing-post-ra"
# Blocks come in one round of the loop over the grid, are computed on in the next, and leave in the
# third: the loop has these rounds more than the grid has steps.
_ROUNDS_WITHOUT_STEP = 2

_LOOP = re.compile(r"^ *loop: start=(?P<start>-?\d+), step=(?P<step>\d+), limit=(?P<limit>-?\d+)$")
_REGION = re.compile(r"^ *\$region(?P<number>\d+).*?(?: // (?P<kind>\w+))?$")
_RANGE = re.compile(r"^ *// region range: \[(?P<start>\d+), (?P<stop>\d+)\)$")
_JUMP = re.compile(r" = sbr\.rel \(.*\) target bundleno = (?P<target>\d+) ")

_GRID = re.compile(r"^iteration_bounds: \((?P<bounds>[\d, ]+)\)$", re.MULTILINE)
_ROUND = "iteration index, stage = 0 "
_GRID_INDEX = re.compile(r"iteration index, stage = 1(?: iter bound = (?P<axis>\d+))? $")
_SCALAR = re.compile(
    r"^ *(?P<name>%[ps]\d+) = (?P<operation>[\w.]+) (?P<operands>[^/]*?)"
    r"(?: /\* (?P<comment>.*)\*/)?$"
)
_BRANCH = re.compile(r" = sbr\.rel \((?P<negated>!?)(?P<condition>%p\d+)\) target")
_BLOCK = re.compile(
    r" = inlined_call_operand.* window allocation .*The window shape is (?P<type>\S+), while"
)
# Where a block is kept, and whether two are: one of the step that runs, and one on its way.
_WINDOW = re.compile(
    r" tag = '\w+ window allocation .*The window shape is (?P<type>\S+), while the full shape is "
    r"(?P<whole>\S+)\. .* This allocation (?P<stays>is single buffered)?"
)
_OPERATIONS: dict[str, Callable[..., int]] = {
    "scmp.eq.s32.totalorder": operator.eq,
    "scmp.ne.s32.totalorder": operator.ne,
    "scmp.lt.s32.totalorder": operator.lt,
    "scmp.le.s32.totalorder": operator.le,
    "scmp.gt.s32.totalorder": operator.gt,
    "scmp.ge.s32.totalorder": operator.ge,
    "pand": lambda a, b: a and b,
    "pnand": lambda a, b: not (a and b),
    "por": lambda a, b: a or b,
    "pneg": operator.not_,
}


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """What a call of a kernel costs a core.

    Attributes:
        cycles: the bundles that it issues.
        hbm_bytes: what the kernel reads and writes in HBM: a block of each array in each step of
            the grid, or one block where it stays.
        block_bytes: one block of each array that the kernel's grid cuts. Nothing is computed while
            the first blocks arrive and the last ones leave, and what stays for the whole grid, as
            weights and their gradients do, is one block.
    """

    cycles: int
    hbm_bytes: int
    block_bytes: int


def kernel_cost(original: str, scheduled: str) -> KernelCost:
    """Read the cost of a kernel from libtpu's text of the two passes.

    Raises:
        ValueError: the text is not as expected, or does not tell how often a loop runs.
    """
    grid = _Grid(original)
    spans = list(_spans(scheduled, grid))
    if not spans:
        raise ValueError("libtpu's text of the kernel has no bundles")
    if any(span.start > span.stop for span in spans):
        raise ValueError("libtpu's text has jumps in another order than is known")
    if grid.loop_header and f"$region{grid.loop_header}: " not in scheduled:
        raise ValueError("libtpu's text has no loop over the grid")
    times = np.ones(max(span.stop for span in spans))
    for span in spans:
        times[span.start : span.stop] *= span.times
    blocks = sum(num_bytes(match["type"]) for match in _BLOCK.finditer(original))
    moved = sum(
        num_bytes(match["type"]) * (1 if _stays(match) else grid.num_steps)
        for match in _WINDOW.finditer(original)
    )
    return KernelCost(round(times.sum()), moved, blocks)


def _stays(window: re.Match) -> bool:
    """Whether every step of the grid sees the same block of an array."""
    return bool(window["stays"]) or window["type"] == window["whole"]


class _Span(NamedTuple):
    """Bundles that run `times` as often as those around them."""

    start: int
    stop: int
    times: float


def _spans(scheduled: str, grid: "_Grid") -> Iterator[_Span]:
    """Yield all bundles, those of each loop, and those of each region with a condition.

    The ends of a loop and of such a region are those of jumps: what is named as a region may begin
    earlier, since instructions move up.
    """
    rounds: list[int] = []  # of the loops that the line is in
    num_bodies = stop = 0
    number = kind = ""
    skipped: tuple[int, int] | None = None
    for line in scheduled.splitlines():
        if match := _LOOP.match(line):
            rounds.append(len(range(int(match["start"]), int(match["limit"]), int(match["step"]))))
        elif match := _REGION.match(line):
            number, kind = match["number"], match["kind"]
            num_bodies += kind == "loop_body"
            if num_bodies > len(rounds):
                raise ValueError(f"libtpu's text has a loop without bounds: region {number}")
            if kind == "loop_header" and number == grid.loop_header:
                rounds[-1] -= _ROUNDS_WITHOUT_STEP
            elif kind == "pred_region" and skipped:
                yield _Span(*skipped, grid.share(number))
        elif match := _RANGE.match(line):
            start, stop = int(match["start"]), int(match["stop"])
            if number == "0":
                yield _Span(start, stop, 1)
        elif match := _JUMP.search(line):
            target = int(match["target"])
            skipped = (stop, target) if kind == "pred_check_branch" else None
            if kind == "loop_header_branch":
                num_bodies -= 1
                yield _Span(target, stop, rounds.pop())


class _Scalar(NamedTuple):
    """A scalar or condition; `axis` is that of the grid whose index it is."""

    operation: str
    operands: list[str]
    axis: int | None


class _Grid:
    """What the kernel as it was given says of its grid, and of what depends on the indices.

    Attributes:
        loop_header: the number of a region of the loop over the grid, "" if there is no such loop.
        num_steps: of the grid.
    """

    def __init__(self, original: str):
        grid = _GRID.search(original)
        bounds = grid["bounds"].split(",") if grid else []
        self.loop_header = ""
        self._points = list(itertools.product(*(range(int(n)) for n in bounds)))
        self.num_steps = len(self._points)
        self._scalars: dict[str, _Scalar] = {}
        self._branches: dict[str, re.Match] = {}
        branch, number = None, ""
        for line in original.splitlines():
            if match := _SCALAR.match(line):
                comment = match["comment"] or ""
                index = _GRID_INDEX.match(comment)
                axis = int(index["axis"] or 0) if index else None
                operands = match["operands"].split(", ")
                self._scalars[match["name"]] = _Scalar(match["operation"], operands, axis)
                self.loop_header = number if comment == _ROUND else self.loop_header
            elif match := _BRANCH.search(line):
                branch = match
            elif match := _REGION.match(line):
                number = match["number"]
                if match["kind"] == "pred_region" and branch:
                    self._branches[number] = branch

    def share(self, region: str) -> float:
        """The share of the grid's steps that run a region; 1 where more than the indices decide."""
        if region not in self._branches:
            return 1.0
        branch = self._branches[region]
        jumps = [self._value(branch["condition"], point) for point in self._points]
        if not jumps or None in jumps:
            return 1.0
        share = sum(map(bool, jumps)) / len(jumps)
        return share if branch["negated"] else 1 - share

    def _value(self, name: str, point: tuple[int, ...]) -> int | None:
        """The value of a scalar at a point of the grid, None where it is not known."""
        if not name.startswith("%"):
            return int(name) if name.lstrip("-").isdecimal() else None
        scalar = self._scalars.get(name)
        if scalar is None or (scalar.axis is None and scalar.operation not in _OPERATIONS):
            return None
        if scalar.axis is not None:
            return point[scalar.axis]
        values = [self._value(operand, point) for operand in scalar.operands]
        return None if None in values else _OPERATIONS[scalar.operation](*values)
