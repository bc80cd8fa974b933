"""A compiled program's text: its computations, its loops and their rounds, its collectives."""

import collections
import re

from diffussm_jax.planning.kernel_calls import num_bytes

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>\S+) \(.*\{$")
_WHILE = re.compile(r" while\(.*condition=%(?P<condition>[^,\s]+), body=%(?P<body>[^,\s]+)")
_CALL = re.compile(r" (?:call|conditional)\(.*(?:to_apply|computations)=\{?(?P<names>[^}\s]+)")
_COLLECTIVE = re.compile(
    r" = (?P<results>.*?) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*channel_id=(?P<channel>\d+)"
)
_FUSION = re.compile(r" calls=%(?P<name>[^,\s]+)")
_BOUND = re.compile(r" constant\((\d+)\)")


def collectives(text: str) -> collections.Counter[str]:
    """The bytes that each kind of collective leaves on a chip in one run, loops multiplied."""
    computations, entry = parse(text)
    rounds = collections.Counter({entry: 1})
    sizes: dict[str, tuple[str, int]] = {}  # by channel, which the parts of one collective share
    for name in reversed(computations):  # callers come after what they call
        for line in computations[name]:
            inner = inner_computations(line, computations)
            if match := _FUSION.search(line):
                inner = [*inner, (match["name"], 1)]
            for called, times in inner:
                rounds[called] = max(rounds[called], rounds[name] * times)
            if match := _COLLECTIVE.search(line):
                size = rounds[name] * num_bytes(match["results"])
                _, known = sizes.get(match["channel"], ("", 0))
                sizes[match["channel"]] = match["kind"], max(size, known)
    total = collections.Counter[str]()
    for kind, size in sizes.values():
        total[kind] += size
    return total


def parse(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the program's entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match["name"], [])
            entry = match["name"] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return computations, entry


def inner_computations(line: str, computations: dict[str, list[str]]) -> list[tuple[str, int]]:
    """The computations that a line runs, and how often; all branches of a condition count."""
    if match := _WHILE.search(line):
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
