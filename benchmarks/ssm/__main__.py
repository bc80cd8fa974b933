"""Measure the operator: python -m benchmarks.ssm [--torch] [--tpu v5e:2x2]

The program prints Markdown tables and writes ssm.json and ssm.png to --out.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
from pathlib import Path

import jax
import matplotlib

from benchmarks.ssm import host, tpu

LENGTHS = (256, 1024, 4096, 16384)


def main() -> None:
    """Read the flags, measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=30, help="seconds a median")
    parser.add_argument("--torch", action="store_true", help="PyTorch's S4D beside it")
    parser.add_argument("--tpu", help="a topology: its compiler's estimates instead")
    parser.add_argument("--out", type=Path, default=Path("runs/ssm"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    about = describe("the TPU compiler" if args.tpu else jax.default_backend())
    print(about, "\n")
    rows = tpu.report(args.tpu) if args.tpu else on_this_backend(args)
    path = args.out / ("tpu.json" if args.tpu else "ssm.json")
    table = {"about": about, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")
    print(f"\nwrote {path}" + ("" if args.tpu else f" and {path.with_suffix('.png')}"))


def describe(backend: str) -> str:
    """The date, the versions and the machine of a table."""
    today = datetime.date.today().isoformat()
    return f"{today}, jax {jax.__version__}, {backend}, {os.cpu_count()} CPU cores"


def on_this_backend(args: argparse.Namespace) -> list[host.Row]:
    """Print the table, line by line as it is measured, and plot it."""
    fields = [field.name for field in dataclasses.fields(host.Row)]
    print("| " + " | ".join(fields) + " |\n" + "|---" * len(fields) + "|")
    rows = []
    for length in args.lengths:
        shape = args.batch, length, args.width
        limits = args.repeats, args.budget
        for name in host.IMPLEMENTATIONS:
            rows.append(host.measure(name, shape, *limits))
            print(line(rows[-1]), flush=True)
        if args.torch:
            rows.append(host.measure_torch(shape, *limits))
            print(line(rows[-1]), flush=True)
    plot(rows, args.out / "ssm.png")
    summary(rows)
    return rows


def line(row: host.Row) -> str:
    """A row as a line of a Markdown table."""
    cells = (
        "-" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x)
        for x in dataclasses.astuple(row)
    )
    return "| " + " | ".join(cells) + " |"


def summary(rows: list[host.Row]) -> None:
    """Print the ratios of this run's times, and how they grow with the length."""
    times = {(row.implementation, row.l): row.both_ms for row in rows if row.both_ms}
    lengths = sorted({length for _, length in times})
    for other in ("fft", "torch"):
        ratios = [
            f"{times[other, x] / times['chunked', x]:.1f} at l = {x}"
            for x in lengths
            if (other, x) in times
        ]
        if ratios:
            print(f"\n{other} / chunked, forward + backward: " + ", ".join(ratios))
    long = [x for x in lengths if x >= 1024]
    if len(long) > 1:
        growth = times["chunked", long[-1]] / times["chunked", long[0]]
        power = math.log(growth) / math.log(long[-1] / long[0])
        print(f"\nchunked grows as l^{power:.2f} from {long[0]} to {long[-1]}")


def plot(rows: list[host.Row], path: Path) -> None:
    """Plot times and memory over the number of tokens, a line for each implementation."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, field, title in (
        (axes[0], "both_ms", "forward + backward, ms"),
        (axes[1], "memory", "memory, in sizes of u and y"),
    ):
        for name in dict.fromkeys(row.implementation for row in rows):
            points = [
                (row.l, getattr(row, field))
                for row in rows
                if row.implementation == name and getattr(row, field)
            ]
            if points:
                axis.plot(*zip(*points), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
