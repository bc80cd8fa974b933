"""How far are images from those of an export that something other draws, or draws otherwise?

python -m benchmarks.verification EXPORT RUN

EXPORT has images to verify it by, and RUN is the work directory that it is from. Each row has the
mean and the largest difference, in levels of 255 or in standard deviations of latents.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffussm_jax
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.sampling.verification import compare, read_evidence
from diffussm_jax.workdir.layout import CHECKPOINTS_FOLDER

CHANGES: dict[str, dict[str, Any]] = {
    "the same": {},
    "eight at a time": {"microbatch": None},
    "activations in bfloat16": {"dtype": "bfloat16"},
    "another seed": {"seed": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verification")
    parser.add_argument("export", type=Path)
    parser.add_argument("run", type=Path)
    arguments = parser.parse_args()
    for line in rows(arguments.export, arguments.run):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def rows(export: Path, run: Path) -> Iterator[str]:
    """One line for each change of how the images are drawn, and of what draws them."""
    is_latent = diffussm_jax.load(run, latents=True).config.data.space == "latents"
    exported = diffussm_jax.load(export, latents=is_latent)
    steps = read_evidence(export).sample.steps
    for name, changes in (CHANGES | {f"{steps + 1} steps": {"steps": steps + 1}}).items():
        yield row(export, name, exported, **changes)
    yield row(export, "raw weights", diffussm_jax.load(run, ema=False, latents=is_latent))
    saved = (path.name for path in (run / CHECKPOINTS_FOLDER).iterdir())
    for step in sorted(int(name) for name in saved if name.isdigit()):
        model = diffussm_jax.load(run, step=step, latents=is_latent)
        yield row(export, f"the EMA of step {step}", model)


def row(export: Path, name: str, model: TrainedModel, **changes: Any) -> str:
    evidence = read_evidence(export)
    sample = dataclasses.replace(evidence.sample, **changes)
    found = compare(export, model, dataclasses.replace(evidence, sample=sample))
    return f"{name:25} {found.mean:8.3g} {found.largest:8.3g} {found.unit}"


if __name__ == "__main__":
    main()
