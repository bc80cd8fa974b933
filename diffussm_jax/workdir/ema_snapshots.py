"""Snapshots of a run's power-function averages, and averages of other widths made from them.

Source: Karras et al. 2024 ("EDM2", arXiv 2312.02696), section 3.

ema/step_<step>_<width>.safetensors   float32, named as in an export
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors, write_tensors
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.feed import to_host
from diffussm_jax.training.power_ema import coefficients

SNAPSHOTS_FOLDER = "ema"


class Snapshot(NamedTuple):
    """One average on disk, of relative width `width`."""

    step: int
    width: float
    path: Path


def save_snapshots(
    workdir: Path, averages: Sequence[dict], widths: Sequence[float], *, step: int
) -> None:
    """Write each average in float32. Every process must call it."""
    folder = workdir / SNAPSHOTS_FOLDER
    for average, width in zip(averages, widths, strict=True):
        tensors = {name: to_host(x) for name, x in flatten_dict(average, sep=".").items()}
        if is_first():
            folder.mkdir(exist_ok=True)
            write_tensors(folder / f"step_{step:07d}_{width:g}.safetensors", tensors)


def find_snapshots(workdir: Path) -> list[Snapshot]:
    """List the snapshots of a run by rising step."""
    snapshots = []
    for path in sorted((workdir / SNAPSHOTS_FOLDER).glob("step_*.safetensors")):
        if match := re.fullmatch(r"step_(\d+)_([\d.e-]+)", path.stem):
            snapshots.append(Snapshot(int(match[1]), float(match[2]), path))
    return snapshots


def reconstruct(workdir: Path, width: float, *, step: int) -> dict:
    """Approximate the average of any width at a step by a weighted sum of the snapshots up to it.

    Returns:
        nested parameters, float32 on the host.

    Raises:
        UserError: the run kept no snapshot at that step.
    """
    snapshots = [x for x in find_snapshots(workdir) if x.step <= step]
    if not any(x.step == step for x in snapshots):
        steps = sorted({x.step for x in snapshots})
        raise UserError(
            f"config.sample.ema_length needs snapshots up to step {step} in "
            f"{workdir / SNAPSHOTS_FOLDER}, which has those of steps {steps}: train with "
            "training.ema_lengths"
        )
    weights = coefficients(
        [x.step for x in snapshots], [x.width for x in snapshots], step=step, width=width
    )
    total: dict[str, np.ndarray] = {}
    for snapshot, weight in zip(snapshots, weights, strict=True):
        for name, tensor in read_tensors(snapshot.path).items():
            total[name] = total.get(name, 0.0) + np.float32(weight) * tensor
    return unflatten_dict(total, sep=".")
