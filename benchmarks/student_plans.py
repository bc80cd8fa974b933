"""What training DiT-XL/2's students costs beside the teacher, by the compilers of TPUs and GPUs.

python -m benchmarks.student_plans [--topologies v5e:4x4 v6e:4x4] [--pixels 256 512 1024]
.venv-gpu/bin/python -m benchmarks.student_plans --topologies h100:1

Each student is planned alone, and with the teacher's forward pass in its step. Larger images come
in smaller batches, of as many latents as at 256 x 256. Prints a Markdown table; each plan is kept
in --store by its config and its compiler, so that after a kill the same command goes on.
"""

import argparse
import functools
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from benchmarks.plan_store import digest, kept_plan
from benchmarks.throughput.subjects import (
    CARD_BATCH_SIZE,
    PIXELS_PER_LATENT,
    STUDENTS,
    TEACHER,
    dit_with_mixer,
    of_equal_tokens,
)
from benchmarks.throughput.tables import table
from configs import dit256
from diffussm_jax.config import Config, MixerName, to_json
from diffussm_jax.config.parsing import with_fields
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.planning.estimate import chip_and_mesh, estimate
from diffussm_jax.planning.gpus import is_gpus
from diffussm_jax.workdir import layout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v6e:4x4"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--mixers", nargs="+", default=STUDENTS)
    parser.add_argument("--store", type=Path, default=Path("runs/student_plans.json"))
    args = parser.parse_args()
    mixers = dict.fromkeys((TEACHER, *args.mixers))
    asked = list(itertools.product(args.topologies, args.pixels, mixers))
    for topology, pixels, mixer in asked:
        check(topology, pixels, mixer)
    sys.stdout.write(table([row(*one, args.store) for one in asked]) + "\n")


def check(topology: str, pixels: int, mixer: str) -> None:
    """Raise UserError if there is no such plan to make."""
    patch = PIXELS_PER_LATENT * dit256.get_config().model.patch_size
    if pixels < patch or pixels % patch:
        raise UserError(f"--pixels {pixels} must be a multiple of {patch}, the side of a patch")
    if mixer not in get_args(MixerName):
        names = ", ".join(name for name in get_args(MixerName) if name != TEACHER)
        raise UserError(f"--mixers {mixer} must be one of {names}")
    config = subject(mixer, topology, pixels)
    if config.training.batch_size < 1:
        raise UserError(f"--pixels {pixels} has more latents than a batch of 256 x 256")
    try:
        chip_and_mesh(config, topology)
    except UserError as error:
        raise UserError(f"--topologies {topology}, --pixels {pixels}: {error}") from error


def row(topology: str, pixels: int, mixer: str, store: Path) -> dict[str, Any]:
    """The plans of a network on one topology: alone and, if it is a student, with its teacher."""
    config, name = subject(mixer, topology, pixels), f"{mixer} {pixels}"
    alone = kept_plan(store, name, config, topology, lambda: estimate(config, topology).to_dict())
    columns = {
        "devices": topology,
        "image": pixels,
        "tokens": config.num_tokens,
        "batch": config.training.batch_size,
        "mixer": mixer,
        "multiply_adds_G": alone["multiply_adds"] / 1e9,
        **_cells(alone, ""),
    }
    if mixer == TEACHER:
        return columns
    make = functools.partial(_plan_with_teacher, config, topology, pixels)
    name += f", with its teacher (config {digest(subject(TEACHER, topology, pixels))}),"
    taught = kept_plan(store, name, config, topology, make)
    return columns | _cells(taught, "taught_")


def subject(mixer: str, topology: str, pixels: int) -> Config:
    """DiT-XL/2 with a mixer, as it trains on one topology, without a teacher."""
    batch_size = CARD_BATCH_SIZE if is_gpus(topology) else None
    return of_equal_tokens(dit_with_mixer(mixer, batch_size), pixels // PIXELS_PER_LATENT)


def _plan_with_teacher(config: Config, topology: str, pixels: int) -> dict[str, Any]:
    """A plan reads of a teacher nothing but its config."""
    teacher = subject(TEACHER, topology, pixels)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, layout.CONFIG_FILE).write_text(to_json(teacher), encoding="utf-8")
        return estimate(with_fields(config, {"training.teacher": folder}), topology).to_dict()


def _cells(plan: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Memory and time of a step; of GPUs the time is a bound from below."""
    gib, timed = plan["total_gib"], plan.get("bound") or plan
    if not plan["fits"]:
        return {f"{prefix}gib": plan["needed_gib"] or gib, f"{prefix}step_ms": "does not fit"}
    return {f"{prefix}gib": gib, f"{prefix}step_ms": timed["step_ms"]}


if __name__ == "__main__":
    try:
        main()
    except CommandEnd as end:
        sys.stderr.write(f"{end.last_line}\n")
        sys.exit(end.exit_code)
