"""AdamW, with S4D's practice for the SSM parameters: no weight decay, and a rate of their own."""

from typing import Any

import jax
import optax

from diffussm_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW; SSM parameters get no weight decay and `ssm_lr_multiplier` times the learning rate."""

    def adamw(multiplier: float, weight_decay: float) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(config, multiplier), *config.betas, weight_decay=weight_decay
        )

    groups = {"dense": adamw(1.0, config.weight_decay), "ssm": adamw(config.ssm_lr_multiplier, 0.0)}
    optimizer = optax.multi_transform(groups, label_parameters)
    if config.grad_clip is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), optimizer)


def learning_rate(config: OptimizerConfig, multiplier: float = 1.0) -> optax.Schedule:
    """A schedule that rises linearly from 0 over `warmup_steps` and then stays constant."""
    peak = config.learning_rate * multiplier
    if not config.warmup_steps:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, config.warmup_steps)


def label_parameters(params: dict) -> dict:
    """Label "ssm" each parameter inside a module called `ssm`, and "dense" the others."""

    def label(path: tuple, _: Any) -> str:
        return "ssm" if any(getattr(key, "key", None) == "ssm" for key in path) else "dense"

    return jax.tree_util.tree_map_with_path(label, params)
