"""How long the model.py of an export takes for an image, and how far its images are from JAX's.

python -m benchmarks.pytorch runs/digits/export

Needs PyTorch (`pip install torch==2.13.0`). Both draw the same images of the same noise by the
export's sampler. The seconds are those of all of the process's threads together, which other
processes on the machine change little.
"""

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffussm_jax
from diffussm_jax.diffusion.samplers import image_noise
from diffussm_jax.sampling.inputs import image_keys

SEED = 0


def load_module(folder: Path) -> Any:
    """The model.py of an export."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(draw: Callable[[], np.ndarray], repeats: int) -> tuple[np.ndarray, float]:
    """Images, and the least seconds of processor time for one of them, once it is compiled."""
    images, seconds = draw(), []
    for _ in range(repeats):
        start = time.process_time()
        images = draw()
        seconds.append(time.process_time() - start)
    return images, min(seconds) / len(images)


def main() -> None:
    """Print a line for JAX, and one for each form of model.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    module, ours = load_module(arguments.folder), diffussm_jax.load(arguments.folder)
    num, shape = arguments.num, ours.config.grid
    keys = image_keys(SEED, jnp.arange(num))
    draw_noise = jax.jit(lambda step: image_noise(keys, step, shape).transpose(0, 3, 1, 2))

    def noise(step: int) -> Any:
        return torch.tensor(np.array(draw_noise(step)))

    expected, seconds = timed(lambda: ours.sample(num=num, seed=SEED), arguments.repeats)
    print(f"jax          {seconds:.4f} s an image")
    for form in ("fft", "recurrence"):
        sample = functools.partial(module.load(s4d=form).sample, num=num, noise=noise)
        draw = functools.partial(lambda draw: module.to_uint8(draw()).numpy(), sample)
        images, seconds = timed(draw, arguments.repeats)
        levels = np.abs(images.astype(int) - expected).max()
        print(f"{form:12} {seconds:.4f} s an image, at most {levels} levels from JAX's")


if __name__ == "__main__":
    main()
