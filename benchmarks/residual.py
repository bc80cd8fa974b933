"""What does a bfloat16 residual stream cost in exactness?

python -m benchmarks.residual RUN          at the weights of a trained run, on its held-out images
python -m benchmarks.residual [--gain 1]   at weights of a trained model's scale, on noise

Each row compares a precision with float32: the relative L2 errors of the model's output and of the
gradient of its squared error, over all parameters. RUN is a work directory or an export of a model
of pixels, best of a deep one, as `configs/digits.py --config.model.depth=29` trains one. Without it
the kernels that start at zero are Xavier-uniform instead, so that every block adds to the stream.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from configs import imagenet256
from diffussm_jax.config import Config, from_dict
from diffussm_jax.data.sources import open_images
from diffussm_jax.diffusion.gaussian import make_gaussian
from diffussm_jax.models import create_model
from diffussm_jax.shapes import Grid
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir.weights import load_weights

# dtype, residual_dtype
PRECISIONS = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32"))
TIMESTEPS = (50, 300, 700, 950)  # of 1000
Batch = tuple[Array, Array, Array | None, Array]  # x_t, t, y, the noise to predict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residual")
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--width", type=int, default=384, help="of 29 blocks; XL's is 1152")
    parser.add_argument("--gain", type=float, default=1.0, help="of the kernels that were zero")
    parser.add_argument("--images", type=int, default=4, help="of a batch")
    arguments = parser.parse_args()
    if arguments.run is not None:
        weights = load_weights(arguments.run)
        config, params = weights.config, weights.params
        batch = held_out(config, arguments.images)
    else:
        values = imagenet256.get_config()
        values.model.width = arguments.width
        config = from_dict(values.to_dict())
        params = like_trained(config, arguments.gain)
        batch = noise(config, arguments.images)
    for line in compare(config, params, batch):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def like_trained(config: Config, gain: float) -> dict:
    """Initial parameters in which the kernels that are zero are Xavier-uniform times `gain`."""
    model = jax.jit(lambda: nnx.state(create_model(config, rngs=nnx.Rngs(0))))()
    params = flatten_dict(nnx.to_pure_dict(model))
    rng = np.random.default_rng(0)
    for name, x in params.items():
        if name[-1] == "kernel" and not x.any():
            limit = gain * np.sqrt(6 / sum(x.shape[-2:]))
            params[name] = jnp.asarray(rng.uniform(-limit, limit, x.shape), jnp.float32)
    return unflatten_dict(params)


def noise(config: Config, num: int) -> Batch:
    """Pure noise, of which each image is at another step."""
    eps = jnp.asarray(np.random.default_rng(1).normal(size=(num, *config.grid)), jnp.float32)
    t = jnp.resize(jnp.asarray(TIMESTEPS), (num,))
    y = jnp.arange(num) if config.data.num_classes else None
    return eps, t, y, eps


def held_out(config: Config, num: int) -> Batch:
    """Held-out images with noise, of which each is at another step."""
    source = open_images(config, config.data.eval_split or config.data.split)
    examples = [source.example(i, mirrored=False) for i in range(num)]
    x0 = jnp.stack([x["image"] for x in examples]).astype(jnp.float32) / 127.5 - 1
    y = jnp.stack([x["label"] for x in examples]) if config.data.num_classes else None
    t = jnp.resize(jnp.asarray(TIMESTEPS), (num,)) * config.diffusion.num_steps // 1000
    eps = jnp.asarray(np.random.default_rng(1).normal(size=x0.shape), jnp.float32)
    return make_gaussian(config.diffusion).x_t(x0, t, eps), t, y, eps


def compare(config: Config, params: dict, batch: Batch) -> Iterator[str]:
    """Yield a table of the errors of each precision, as its rows are computed."""
    yield f"{config.model.depth} blocks of width {config.model.width}, {config.num_tokens} tokens"
    exact, growth = run(config, params, batch, *PRECISIONS[-1])
    yield f"the stream's RMS grows {growth:.1f} times from the first block to the last"
    yield f"{'activations':14}{'residual':14}{'output':>10}{'gradient':>10}"
    for dtype, residual in PRECISIONS[:-1]:
        results, _ = run(config, params, batch, dtype, residual)
        errors = (relative(ours, theirs) for ours, theirs in zip(results, exact))
        yield f"{dtype:14}{residual:14}" + "".join(f"{x:10.2e}" for x in errors)


def run(
    config: Config, params: dict, batch: Batch, dtype: Any, residual: Any
) -> tuple[tuple[Any, Any], float]:
    """The output and the gradient in one precision, and the growth of the residual stream."""
    model = dataclasses.replace(config.model, dtype=dtype, residual_dtype=residual, remat="full")
    graphdef, _ = abstract_model(dataclasses.replace(config, model=model))
    x_t, t, y, eps = batch

    def loss(params: dict) -> tuple[Array, tuple[Array, Array]]:
        streams: list[Array] = []
        network = nnx.merge(graphdef, params)
        blocks = network.run_blocks

        def noted(x: Array, c: Array, grid: Grid, prepared: None) -> Array:
            streams.extend((x, blocks(x, c, grid, prepared)))
            return streams[-1]

        network.run_blocks = noted
        output = network(x_t, t, y)
        first, last = (jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean()) for x in streams)
        prediction = output[..., : eps.shape[-1]]
        return jnp.square(prediction - eps).mean(), (output, last / first)

    gradient, (output, growth) = jax.jit(jax.grad(loss, has_aux=True))(params)
    return (output, gradient), float(growth)


def relative(ours: Any, theirs: Any) -> float:
    """The relative L2 error over all arrays of a tree."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(y)]) for y in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
