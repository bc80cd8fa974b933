"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.models import create_model
from diffussm_jax.parallel.s4d import shard_s4d


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step counts the updates made (int32 []); params and ema are nested dicts of float32 arrays of one structure."""

    step: Any
    params: dict
    ema: dict
    optimizer: optax.OptState


def abstract_model(
    config: Config, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and the shapes of its parameters, without allocating them.

    With a mesh its SSM layers run on each device's part of the batch.
    """
    apply_s4d = None
    if mesh is not None and mesh.size > 1:
        apply_s4d = shard_s4d(mesh, implementation=config.model.ssm_implementation)
    model = jax.eval_shape(
        lambda: create_model(config, rngs=nnx.Rngs(0), apply_s4d=apply_s4d)
    )
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
