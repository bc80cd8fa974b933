"""How good are few steps, and what does guidance cost?

python -m benchmarks.sampling runs/digits

In the demo's work directory (`make demo`), for each sampler and number of steps:
- agreement: share of images that a 3-nearest-neighbour classifier, fitted on the real digits, gives
  the class that was asked for;
- distance: Frechet distance of the pixels, in [-1, 1], from those of the real digits (Heusel et al.
  2017, eq. 6, without Inception);
- calls: calls of the model for an image, without those of guidance.
Then the time of a guided step over that of a plain call of the model at twice the batch, side by
side. Leaves a grid of each sampler and `sampling.json` in `sampling/` of the work directory.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

import diffussm_jax
from benchmarks.digits import measure
from diffussm_jax.config import SampleConfig
from diffussm_jax.evaluation.metrics import Moments, RunningMoments, frechet_distance
from diffussm_jax.files import write_json
from diffussm_jax.parallel.mesh import make_mesh, replicated
from diffussm_jax.sampling.images import save_grid
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.training.state import abstract_model

REFERENCE = {"sampler": "ddpm", "steps": 250}
OTHERS: list[dict[str, Any]] = [
    {"sampler": "ddim", "steps": 50},
    {"sampler": "ddim", "steps": 20},
    {"sampler": "dpm_solver++", "steps": 20},
    {"sampler": "dpm_solver++", "steps": 10},
    {"sampler": "heun", "steps": 10},
]


def moments(images: np.ndarray) -> Moments:
    """The moments of the pixels of uint8 images, scaled to [-1, 1]."""
    running = RunningMoments()
    running.add(images.reshape(len(images), -1) / 127.5 - 1)
    return running.result()


def real_moments() -> Moments:
    """The moments of the real digits."""
    return moments(np.round(load_digits().images * 255 / 16))


def quality(model: TrainedModel, options: SampleConfig, folder: Path) -> dict[str, Any]:
    """The figures of one sampler; also write a grid of its first images."""
    images, labels = model.generator.draw(model.params, options)
    assert labels is not None
    name = f"{options.sampler}_{options.steps}_cfg{options.cfg_scale:g}"
    save_grid(images[:200], folder / f"{name}.png", labels=labels[:200])
    return {
        "sampler": options.sampler,
        "steps": options.steps,
        "cfg_scale": options.cfg_scale,
        "agreement": measure(images, labels)["agreement"],
        "distance": frechet_distance(moments(images), real_moments()),
        "calls": 2 * options.steps - 1 if options.sampler == "heun" else options.steps,
    }


def guidance_cost(model: TrainedModel, *, batch: int, steps: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a guided DDIM step, and of a plain call at twice the batch.

    Args:
        batch: images of the guided step.
    """
    config, mesh = model.config, make_mesh(devices=jax.devices()[:1])
    options = SampleConfig(batch_size=batch, sampler="ddim", steps=steps, cfg_scale=1.5)
    graphdef, _ = abstract_model(config, mesh)
    guided = sampling_program(config, graphdef, mesh, options)

    @jax.jit
    def plain(params: dict, x: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = nnx.merge(graphdef, params)
        channels = x.shape[-1]

        def call(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            return denoise(x, jnp.full(len(x), t), labels)[..., :channels], None

        return jax.lax.scan(call, x, jnp.arange(steps))[0]

    params = jax.device_put(model.params, replicated(mesh))
    indices = jnp.arange(batch, dtype=jnp.int32)
    labels = indices % config.data.num_classes
    x = jax.random.normal(jax.random.key(0), (2 * batch, *config.grid))
    both = jnp.concatenate([labels, jnp.full_like(labels, config.data.num_classes)])
    runs: list[Callable] = [
        lambda: guided(params, None, 0, indices, labels),
        lambda: plain(params, x, both),
    ]
    times: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):  # the first compiles
        for run, times_of_run in zip(runs, times, strict=True):
            start = time.perf_counter()
            run().block_until_ready()
            if repeat:
                times_of_run.append(1e3 * (time.perf_counter() - start) / steps)
    step, call = (float(np.median(x)) for x in times)
    return {"batch": batch, "guided_step_ms": step, "plain_call_ms": call, "ratio": step / call}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--num", type=int, default=1000, help="images by each sampler")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 1.0])
    parser.add_argument("--repeats", type=int, default=20, help="repeats of each timing")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    flags = parser.parse_args()
    model, folder = diffussm_jax.load(flags.workdir), flags.workdir / "sampling"
    samplers = []
    print("sampler        steps  cfg  agreement  distance  calls")
    for scale in flags.scales:
        for chosen in [REFERENCE, *OTHERS]:
            options = SampleConfig(num=flags.num, batch_size=50, cfg_scale=scale, **chosen)
            row = quality(model, options, folder)
            samplers.append(row)
            print(
                f"{row['sampler']:13} {row['steps']:6} {scale:4.1f} {row['agreement']:9.1%} "
                f"{row['distance']:9.3f} {row['calls']:6}",
                flush=True,
            )
    costs = [
        guidance_cost(model, batch=batch, steps=10, repeats=flags.repeats)
        for batch in flags.batches
    ]
    for cost in costs:
        print(
            f"{cost['batch']} images: a guided step {cost['guided_step_ms']:.2f} ms, a plain call "
            f"at twice the batch {cost['plain_call_ms']:.2f} ms: {cost['ratio']:.3f}"
        )
    write_json(folder / "sampling.json", {"samplers": samplers, "guidance": costs})


if __name__ == "__main__":
    main()
