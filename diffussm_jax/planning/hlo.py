"""A compiled program's text: its operations, its loops and their rounds, its collectives."""

import collections
import dataclasses
import re
from collections.abc import Iterator

from diffussm_jax.planning.kernel_calls import num_bytes

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>\S+) \(.*\{$")
_WHILE = re.compile(r" while\(.*condition=%(?P<condition>[^,\s]+), body=%(?P<body>[^,\s]+)")
_CALL = re.compile(r" (?:call|conditional)\(.*(?:to_apply|computations)=\{?(?P<names>[^}\s]+)")
_COLLECTIVE = re.compile(
    r" = (?P<results>.*?) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*channel_id=(?P<channel>\d+)"
)
# What a Pallas call says of itself for profilers, the one thing that breaks an operation's line.
_METADATA = re.compile(r"kernel_metadata=\{\n.*\n\}")
_FUSION = re.compile(r" calls=%(?P<name>[^,\s]+)")
# What runs beside the program, as the collectives of a TPU7x do on its SparseCores.
_STARTED = re.compile(r" call-start\(.* to_apply=%(?P<name>[^,\s]+)")
_IS_ON_SPARSE_CORE = '}, execution_thread="sparsecore"'
_BOUND = re.compile(r" constant\((\d+)\)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(
    r"^\s+(?P<root>ROOT )?%(?P<name>\S+) = (?P<result>\(.*?\)|\S+) (?P<opcode>[a-z][a-z0-9-]*)"
    r"\((?P<operands>.*?)\)(?P<attributes>(?:, .*)?)$"
)
_OPERAND = re.compile(r"%([^\s,)]+)")
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")
_SOURCE = re.compile(r'source_file="([^"]+)" source_line=(\d+)')
_FILE_NAME = re.compile(r'^(\d+) "(.*)"$')
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)")
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a program.

    Attributes:
        result: the type, with a layout; that of several results is in parentheses.
        operands: the names of other operations, or what a constant or a parameter has there.
        attributes: the rest of the line.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    @property
    def fused(self) -> str | None:
        """The name of the computation that a fusion runs, or None."""
        match = _FUSION.search(self.attributes)
        return match["name"] if match and self.opcode == "fusion" else None


Users = dict[str, list[tuple[Operation, int]]]


class Program:
    """A compiled program.

    Attributes:
        computations: the operations of each, by their names, in their order.
        rounds: how often each computation runs that is not part of a fusion.
    """

    def __init__(self, text: str):
        lines, entry = parse(text)
        self.computations = {
            name: {x.name: x for x in map(_read, inside) if x} for name, inside in lines.items()
        }
        self.rounds = collections.Counter({entry: 1})
        for name in reversed(lines):  # callers come after what they call
            for line in lines[name] if self.rounds[name] else ():
                for inner, times in inner_computations(line, lines):
                    self.rounds[inner] += self.rounds[name] * times
        self._frames = _frames(text)
        self._users: dict[str, Users] = {}

    def users(self, computation: str) -> Users:
        """The users of each operation of a computation, and where they have it as an operand."""
        if computation not in self._users:
            inside = self.computations[computation]
            users: Users = {name: [] for name in inside}
            for operation in inside.values():
                for place, name in enumerate(operation.operands):
                    if name in users:
                        users[name].append((operation, place))
            self._users[computation] = users
        return self._users[computation]

    def source(self, operation: Operation) -> Iterator[tuple[str, int]]:
        """The files and lines that an operation comes from, the innermost call first."""
        if match := _SOURCE.search(operation.attributes):
            yield match[1], int(match[2])
        match = _FRAME_ID.search(operation.attributes)
        frame = int(match[1]) if match else 0
        while frame in self._frames:
            place, frame = self._frames[frame]
            yield place


def _read(line: str) -> Operation | None:
    if not (match := _OPERATION.match(line)):
        return None
    operands = _OPERAND.findall(match["operands"]) or [match["operands"]]
    return Operation(
        match["name"],
        match["opcode"],
        match["result"],
        tuple(operands),
        match["attributes"],
        is_root=bool(match["root"]),
    )


def _frames(text: str) -> dict[int, tuple[tuple[str, int], int]]:
    """The file and line of each frame of the program's stack traces, and its caller's frame."""
    files: dict[str, str] = {}
    places: dict[str, tuple[str, int]] = {}
    frames: dict[int, tuple[tuple[str, int], int]] = {}
    table = ""
    for line in text[: text.find("\n%")].splitlines():  # the tables come before the computations
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table == "FileNames" and (match := _FILE_NAME.match(line)):
            files[match[1]] = match[2]
        elif table == "FileLocations" and (match := _LOCATION.match(line)):
            places[match[1]] = files[match[2]], int(match[3])
        elif table == "StackFrames" and (match := _FRAME.match(line)):
            frames[int(match[1])] = places[match[2]], int(match[3] or 0)
    # XLA writes the number after the caller's: the outermost frame has itself as its parent.
    shift = 1 if any(parent >= frame for frame, (_, parent) in frames.items()) else 0
    return {frame: (place, parent - shift) for frame, (place, parent) in frames.items()}


def collectives(text: str) -> collections.Counter[str]:
    """The bytes that each kind of collective leaves on a chip in one run, loops multiplied."""
    computations, entry = parse(text)
    rounds = collections.Counter({entry: 1})
    # By channel, which the parts of one collective share; a SparseCore's have one each, or none.
    sizes: dict[str, tuple[str, int]] = {}
    for name in reversed(computations):  # callers come after what they call
        for line in computations[name]:
            inner = inner_computations(line, computations)
            if match := _FUSION.search(line) or _STARTED.search(line):
                inner = [*inner, (match["name"], 1)]
            for called, times in inner:
                rounds[called] = max(rounds[called], rounds[name] * times)
            if match := _COLLECTIVE.search(line):
                size = rounds[name] * num_bytes(match["results"])
                is_alone = _IS_ON_SPARSE_CORE in computations[name]
                key = name if is_alone else match["channel"]
                sizes[key] = match["kind"], max(size, sizes.get(key, ("", 0))[1])
    total = collections.Counter[str]()
    for kind, size in sizes.values():
        total[kind] += size
    return total


def parse(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the program's entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in _METADATA.sub("kernel_metadata={}", text).splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match["name"], [])
            entry = match["name"] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return computations, entry


def inner_computations(line: str, computations: dict[str, list[str]]) -> list[tuple[str, int]]:
    """The computations that a line runs, and how often; all branches of a condition count."""
    if match := _WHILE.search(line):
        if known := _TRIP_COUNT.search(line):
            return [(match["body"], int(known[1]))]
        bounds = [
            int(bound)
            for text in computations[match["condition"]]
            for bound in _BOUND.findall(text)
        ]
        if len(bounds) != 1:
            raise ValueError(f"the number of rounds is not in the loop: {line.strip()}")
        return [(match["body"], bounds[0])]
    if match := _CALL.search(line):
        return [(name.strip(" %"), 1) for name in match["names"].split(",")]
    return []
