"""DiffuSSM beside attention.

python -m benchmarks.throughput [--count] [--tpu v5e:4x4] [--lengths-tpu v5e:2x2]
    [--training-tpu v5e:4x4] [--gpu] [--students-gpu]

Times training and sampling of DiffuSSM and of DiT at equal tokens, at equal multiply-adds and with
patches, side by side in one run; then two layers of each as the tokens grow. Prints Markdown tables
and writes throughput.json and throughput.png to --out.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import matplotlib

from benchmarks.throughput import gpu, host, tpu
from benchmarks.throughput.subjects import (
    DIFFUSSM,
    SAME_FLOPS,
    extra_large,
    of_one_depth,
    of_side,
    on_gpu,
    on_host,
    students_on_gpu,
)
from benchmarks.throughput.tables import table
from diffussm_jax.planning.multiply_adds import multiply_adds

COUNTED_SIDES = (16, 32, 64, 128, 192, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--side", type=int, default=16, help="side of the latents")
    parser.add_argument("--depth", type=int, default=9)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of the sampler")
    parser.add_argument(
        "--dtype", default="float32" if jax.default_backend() == "cpu" else "bfloat16"
    )
    parser.add_argument("--state-size", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="*", default=[16, 32, 64, 128])
    parser.add_argument("--layers", type=int, default=2, help="layers as the tokens grow")
    parser.add_argument("--layer-width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=host.CLOCKS, default="wall", help="process: pinned to a busy core"
    )
    parser.add_argument(
        "--max-gib", type=float, default=4.5, help="a program that needs more is not run"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--count", action="store_true", help="count the multiply-adds of XL instead")
    modes.add_argument("--tpu", help="a topology: print the TPU compiler's estimates instead")
    modes.add_argument(
        "--lengths-tpu", help="a topology: print estimates of a block as the tokens grow instead"
    )
    modes.add_argument(
        "--training-tpu", help="a topology: print estimates of XL's training at --sides instead"
    )
    modes.add_argument(
        "--gpu",
        nargs="*",
        metavar="MODEL",
        choices=on_gpu(),
        help="time the published sizes and the operator on a GPU instead",
    )
    modes.add_argument(
        "--students-gpu",
        nargs="*",
        metavar="MODEL",
        choices=students_on_gpu(),
        help="time DiT-XL/2 and networks with its students' mixers on a GPU instead",
    )
    parser.add_argument("--budget", type=float, default=420, help="of a GPU, in seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.count:
        print(table(counts()))
    elif args.tpu or args.lengths_tpu or args.training_tpu:
        by_compiler(args)
    elif args.gpu is not None:
        models = on_gpu()
        chosen = {name: models[name] for name in args.gpu or models}
        gpu.report(chosen, args.out, budget_s=args.budget)
    elif args.students_gpu is not None:
        models = students_on_gpu()
        chosen = {name: models[name] for name in args.students_gpu or models}
        gpu.report(chosen, args.out, budget_s=args.budget, name="students_gpu", shapes=())
    else:
        on_this_backend(args)


def by_compiler(args: argparse.Namespace) -> None:
    """Print the TPU compiler's estimates."""
    store = args.out / "plans.json"
    if args.tpu:
        print(table(tpu.models(args.tpu, store)))
    if args.lengths_tpu:
        print(table(tpu.lengths(args.lengths_tpu, args.sides)))
    if args.training_tpu:
        print(table(tpu.training_steps(args.training_tpu, args.sides, store)))


def counts() -> list[dict[str, Any]]:
    """1e9 multiply-adds of an image's forward pass, the SSM operator's included, by model."""
    return [
        {"image": 8 * side, "latents": side**2}
        | {
            name: multiply_adds(of_side(config, side)).total / 1e9
            for name, config in extra_large().items()
            if name != SAME_FLOPS
        }
        for side in COUNTED_SIDES
    ]


def on_this_backend(args: argparse.Namespace) -> None:
    """Time the models, then layers as the tokens grow."""
    today = datetime.date.today().isoformat()
    peak = host.peak_flops(args.dtype, args.clock) / 1e9
    num_cores = len(os.sched_getaffinity(0))
    about = (
        f"{today}, jax {jax.__version__}, {jax.devices()[0].device_kind}, {num_cores} CPU cores, "
        f"{args.clock} time, MFU of {peak:.0f} GFLOP/s"
    )
    print(about, "\n")
    options = {
        "batch_size": args.batch,
        "steps": args.steps,
        "dtype": args.dtype,
        "state_size": args.state_size,
    }
    subjects = on_host(args.side, depth=args.depth, width=args.width, **options)
    limits = {"rounds": args.rounds, "max_gib": args.max_gib, "clock": args.clock}
    models = host.measure(subjects, **limits)
    print(table([dataclasses.asdict(row) for row in models]) + "\n")
    print(ratios(models) + "\n", flush=True)
    longer = []
    for side in args.sides:
        options |= {"batch_size": 1, "steps": 2}
        subjects = on_host(side, depth=2, width=args.layer_width, **options)
        longer += host.measure(of_one_depth(subjects, args.layers), **limits)
        print(table([dataclasses.asdict(row) for row in longer[-2:]]), flush=True)
    if longer:
        print("\n" + growth(longer))
        plot(longer, args.out / "throughput.png")
    results = {"about": about, "models": models, "lengths": longer}
    text = json.dumps(results, indent=1, default=dataclasses.asdict)
    (args.out / "throughput.json").write_text(text, encoding="utf-8")
    print(f"\nwrote {args.out / 'throughput.json'} and throughput.png")


def ratios(rows: list[host.Row]) -> str:
    """The speed of each model over DiffuSSM's in this run."""
    base = next(row for row in rows if row.model == DIFFUSSM)
    lines = []
    for row in rows:
        if row is base or not (row.training and base.training and row.sampling and base.sampling):
            continue
        training, sampling = row.training / base.training, row.sampling / base.sampling
        lines.append(
            f"{row.model}: {training:.2f} times DiffuSSM's training images/s, {sampling:.2f} times "
            "its sampling"
        )
    return "\n".join(lines)


def growth(rows: list[host.Row]) -> str:
    """The power of the tokens with which a step's time grows, from each length to the next."""
    lines = []
    for name in dict.fromkeys(row.model for row in rows):
        for kind in ("training", "sampling"):
            ran = [row for row in rows if row.model == name and getattr(row, kind)]
            for first, last in itertools.pairwise(ran):
                grown = getattr(first, kind) / getattr(last, kind)
                power = math.log(grown) / math.log(last.tokens / first.tokens)
                lines.append(
                    f"{name}, {kind}: {first.tokens} to {last.tokens} tokens as l^{power:.2f}"
                )
    return "\n".join(lines)


def plot(rows: list[host.Row], path: Path) -> None:
    """Draw time and memory of a training step over the tokens."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == name]
        ran = [row for row in of_model if row.training]
        axes[0].plot(
            [x.tokens for x in ran], [1 / x.training for x in ran if x.training], "o-", label=name
        )
        axes[1].plot(
            [x.tokens for x in of_model], [x.training_gib for x in of_model], "o-", label=name
        )
    axes[0].set(title="a training step of one image, s")
    axes[1].set(title="memory of it, GiB")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="tokens")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
