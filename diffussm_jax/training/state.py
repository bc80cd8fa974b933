"""The state that a run carries from step to step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from diffussm_jax.config import Config, StackImplementation
from diffussm_jax.models import attention_of, closed_scans, create_model
from diffussm_jax.models.stack import fuse as fuse_on_device
from diffussm_jax.ops.s4d import Implementation
from diffussm_jax.ops.stack_tpu.choose import StackTiling
from diffussm_jax.parallel.attention import shard_attention
from diffussm_jax.parallel.depthwise import shard_convolve
from diffussm_jax.parallel.mesh import BATCH_AXES, gather_layer, state_shardings
from diffussm_jax.parallel.s4d import shard_circular_s4d, shard_s4d
from diffussm_jax.parallel.stack import shard_stack
from diffussm_jax.shapes import Closed
from diffussm_jax.training.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and updates; the leaves are arrays, shapes or shardings.

    Attributes:
        step: number of steps made, int32 [].
        params: parameters, nested dicts of float32 arrays.
        ema: their exponential moving average, of the same structure.
        optimizer: state of the optimizer.
        skipped: number of dropped updates, int32 [2]: in all, and in a row up to now.
        averages: power-function averages, one for each of `training.ema_lengths`.
    """

    step: Any
    params: dict
    ema: dict
    optimizer: optax.OptState
    skipped: Any
    averages: Any = ()


def abstract_model(
    config: Config,
    mesh: Mesh | None = None,
    *,
    implementation: Implementation | None = None,
    stack: StackImplementation | StackTiling | None = None,
    closed: Closed = (False, False),
) -> tuple[nnx.GraphDef, dict]:
    """The model's structure and the shapes of its parameters, without allocating them.

    Args:
        mesh: SSMs, attention and convolutions run on each device's part of the batch and of the
            sequence.
        implementation: of the SSM on that mesh; by default the config's.
        stack: the implementation of the stack of blocks; by default the config's.
        closed: axes along which an image has no edge for SSMs and convolutions, on a mesh. Where
            that closes an SSM the stack is a loop.
    """
    apply_s4d = gather = attend = convolve = None
    scans = closed_scans(config.model, closed)
    # The kernels of the stack know no closed sequence.
    stack = "xla" if any(scans) else stack or config.model.stack_implementation
    fuse: Any = functools.partial(fuse_on_device, config.model, stack)
    if mesh is not None:
        fuse = shard_stack(mesh, fuse)
        attend = shard_attention(mesh, implementation=attention_of(config))
        convolve = shard_convolve(mesh, closed=closed)
    if mesh is not None and mesh.shape["fsdp"] > 1:
        gather = functools.partial(gather_layer, mesh)
    if mesh is not None and (mesh.size > 1 or implementation is not None or any(scans)):
        shard: Any = shard_s4d
        if any(scans):
            shard = functools.partial(shard_circular_s4d, closed=scans)
        apply_s4d = shard(
            mesh,
            batch_axis=BATCH_AXES,
            sequence_axis="sequence" if mesh.shape["sequence"] > 1 else None,
            implementation=implementation or config.model.ssm_implementation,
        )
    model = jax.eval_shape(
        lambda: create_model(
            config,
            rngs=nnx.Rngs(0),
            apply_s4d=apply_s4d,
            attend=attend,
            convolve=convolve,
            gather=gather,
            fuse=fuse,
        )
    )
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def stack_in_training(config: Config) -> StackImplementation | None:
    """The config's implementation of the stack of blocks, if it can be trained with.

    The loss of a mean flow takes a derivative in forward mode, which the kernels do not have, and
    they do not show the streams that a teacher's are compared with.
    """
    shows_streams = config.training.teacher is not None and config.distill.features > 0
    if config.diffusion.process == "mean_flow" or shows_streams:
        return "xla"
    return config.model.stack_implementation


def init_params(config: Config) -> dict:
    """The parameters at the start of a run, a function of the seed."""
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
        skipped=jnp.zeros(2, jnp.int32),
        averages=tuple(jax.tree.map(jnp.copy, params) for _ in config.training.ema_lengths),
    )


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """The shape, type and sharding of each array of the state, to restore a checkpoint to."""
    shapes = jax.eval_shape(lambda: init_state(config, make_optimizer(config)))
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
        shapes,
        state_shardings(mesh, shapes),
    )
