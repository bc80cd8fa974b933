"""AdamW or Muon, with S4D's practice for the SSM: no weight decay, and a rate of its own.

While a student trains its mixers alone, all other parameters stay as they are.
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffussm_jax.config import Config, MixerName, OptimizerConfig
from diffussm_jax.parallel.mesh import LAYERS
from diffussm_jax.training.muon import scale_by_muon


def make_optimizer(config: Config, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """The optimizer of a run; `mesh` is what Muon's matrices are shared out over.

    SSM parameters get no weight decay and `ssm_lr_multiplier` times the learning rate, by AdamW.
    """
    optimizer = config.optimizer

    def adamw(multiplier: float, weight_decay: float) -> optax.GradientTransformation:
        rate = learning_rate(config, multiplier)
        return optax.adamw(rate, *optimizer.betas, weight_decay=weight_decay)

    groups = {
        "dense": adamw(1.0, optimizer.weight_decay),
        "ssm": adamw(optimizer.ssm_lr_multiplier, 0.0),
    }
    if optimizer.name == "muon":
        groups["matrix"] = optax.chain(
            scale_by_muon(mesh),
            optax.add_decayed_weights(optimizer.weight_decay),
            optax.scale_by_learning_rate(learning_rate(config)),
        )
    by_group = optax.multi_transform(groups, lambda params: label_parameters(optimizer, params))
    if optimizer.grad_clip is not None:
        by_group = optax.chain(optax.clip_by_global_norm(optimizer.grad_clip), by_group)
    if not trains_mixers(config):
        return by_group
    return _for_mixers(config, by_group)


def _for_mixers(
    config: Config, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer that moves the mixers alone, up to update `distill.all_after` if there is one.

    The others' moments are kept from the start where they are going to be trained.
    """
    if (start := config.distill.all_after) is None:
        others = optax.set_to_zero()
        return optax.multi_transform({"mixer": optimizer, "other": others}, label_mixers)
    others = optax.scale_by_schedule(lambda count: jnp.where(count < start, 0.0, 1.0))
    gate = optax.multi_transform({"mixer": optax.identity(), "other": others}, label_mixers)
    return optax.chain(optimizer, gate)


def trains_mixers(config: Config) -> bool:
    """Whether a run is of a student that trains its mixers alone, at least at its start."""
    return config.training.teacher is not None and config.distill.train == "mixers"


def without_frozen(config: Config, grads: dict) -> dict:
    """The gradients, with zeros for parameters that a run never trains."""
    if not trains_mixers(config) or config.distill.all_after is not None:
        return grads
    return jax.tree.map(
        lambda label, x: x if label == "mixer" else jnp.zeros_like(x), label_mixers(grads), grads
    )


def learning_rate(config: Config, multiplier: float = 1.0) -> optax.Schedule:
    """The rate of each update, counted from 0.

    It rises linearly from 0 over `warmup_steps`. Then it stays, or follows half a cosine to 0 at
    `training.num_steps`, or stays and falls linearly to 0 over the last `decay_steps`.
    """
    optimizer, num_steps, start = config.optimizer, config.training.num_steps, config.decay_start
    peak, warmup = optimizer.learning_rate * multiplier, optimizer.warmup_steps

    def rate(step: Any) -> Any:
        factor = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
        if start is not None and start < num_steps:
            left = jnp.clip((num_steps - step) / (num_steps - start), 0.0, 1.0)
            is_cosine = optimizer.schedule == "cosine"
            factor = factor * (jnp.sin(jnp.pi / 2 * left) ** 2 if is_cosine else left)
        return peak * factor

    return rate


def label_parameters(config: OptimizerConfig, params: dict) -> dict:
    """Label each parameter with its group.

    "ssm" are those inside a module called `ssm`; "matrix" are, under Muon, the kernels of the
    blocks; "dense" are all others: embeddings, the head with its modulation, biases, and depthwise
    kernels, which have one input a channel and are no matrices.
    """

    def label(path: tuple, array: Any) -> str:
        names = [getattr(key, "key", None) for key in path]
        if "ssm" in names:
            return "ssm"
        is_matrix = names[0] == LAYERS and names[-1] == "kernel" and array.shape[-2] > 1
        return "matrix" if is_matrix and config.name == "muon" else "dense"

    return jax.tree_util.tree_map_with_path(label, params)


def label_mixers(params: dict) -> dict:
    """Label the parameters of mixers "mixer", and all others "other"."""
    names = set(get_args(MixerName))

    def label(path: tuple, _: Any) -> str:
        is_mixer = not names.isdisjoint(getattr(key, "key", None) for key in path)
        return "mixer" if is_mixer else "other"

    return jax.tree_util.tree_map_with_path(label, params)
