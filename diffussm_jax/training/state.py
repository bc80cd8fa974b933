"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from diffussm_jax.config import Config
from diffussm_jax.models import create_model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step counts the updates made (int32 []); params and ema are nested dicts of float32 arrays of one structure."""

    step: Any
    params: dict
    ema: dict
    optimizer: optax.OptState


def abstract_model(config: Config) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and the shapes of its parameters, without allocating them."""
    model = jax.eval_shape(lambda: create_model(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def init_params(config: Config) -> dict:
    """Parameters at the start of a run; a function of the seed."""
    model = create_model(config, rngs=nnx.Rngs(config.seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def init_state(config: Config, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the EMA starts from the parameters."""
    params = init_params(config)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
    )


def abstract_state(
    config: Config,
    optimizer: optax.GradientTransformation,
    sharding: jax.sharding.Sharding,
) -> TrainState:
    """Shapes of the state, each placed by `sharding`: where a checkpoint is to be restored to."""
    shapes = jax.eval_shape(lambda: init_state(config, optimizer))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes
    )
