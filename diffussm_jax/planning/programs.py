"""The train step and the sampler as they would run on chips that may be absent.

Each is jitted and comes with abstract arguments, so that it can be lowered and compiled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from diffussm_jax.config import Config, StackImplementation
from diffussm_jax.config.drawn import as_called
from diffussm_jax.models.stack import refusal
from diffussm_jax.ops.pallas_tpu import tiling_for
from diffussm_jax.ops.s4d import Implementation
from diffussm_jax.ops.stack_tpu.choose import StackTiling, stack_tiling_for
from diffussm_jax.parallel.mesh import (
    batch_shardings,
    replicated,
    split_over_batch,
    state_shardings,
)
from diffussm_jax.sampling.program import closed_for_model, images_per_call, sampling_program
from diffussm_jax.training.state import (
    TrainState,
    abstract_model,
    abstract_state,
    stack_in_training,
)
from diffussm_jax.training.step import compile_train_step
from diffussm_jax.workdir.teacher import read_teacher_config


class TrainProgram(NamedTuple):
    """The jitted step that training runs, and its abstract arguments; `teacher` may be None."""

    step: Any
    state: TrainState
    batch: dict[str, Any]
    teacher: dict | None


def train_step(config: Config, mesh: Mesh) -> TrainProgram:
    """The train step of a config on a mesh.

    Raises:
        UserError: the config of its teacher cannot be read, or does not fit.
    """
    graphdef, _ = _network(config, config, mesh)
    state, structure, teacher = abstract_state(config, mesh), None, None
    if config.training.teacher is not None and config.distill.is_compared:
        structure, shapes = _network(config, read_teacher_config(config), mesh)
        teacher = jax.tree.map(
            lambda x, place: _array(x.shape, x.dtype, place), shapes, state_shardings(mesh, shapes)
        )
    step = compile_train_step(config, graphdef, state, mesh, structure)
    return TrainProgram(step, state, _batch(config, mesh), teacher)


def _network(run: Config, config: Config, mesh: Mesh) -> tuple[nnx.GraphDef, dict]:
    """The network of a config, as it would be chosen for these chips in the step of a run."""
    return abstract_model(
        config,
        mesh,
        implementation=operator_on(config, mesh),
        stack=stack_on(config, mesh, stack_in_training(config)),
    )


def sampler(config: Config, mesh: Mesh) -> tuple[Any, tuple]:
    """The jitted sampler of `config.sample`, and its abstract arguments.

    Decoding and autoguidance are left out.
    """
    config = as_called(config.sample, config)
    num = images_per_call(config.sample, mesh)
    operator = operator_on(config, mesh)
    stack = stack_on(config, mesh, config.model.stack_implementation)
    closed = closed_for_model(config.sample)
    graphdef, _ = abstract_model(config, mesh, implementation=operator, stack=stack, closed=closed)
    params = abstract_state(config, mesh).ema
    indices = _array((num,), jnp.int32, split_over_batch(mesh))
    labels = indices if config.data.num_classes else None
    seed = _array((), jnp.int32, replicated(mesh))
    run = sampling_program(config, graphdef, mesh, config.sample)
    return run, (params, None, seed, indices, labels)


def operator_on(config: Config, mesh: Mesh) -> Implementation | None:
    """The operator's implementation on these chips, chosen at each call by its shapes.

    The default of this machine's backend may be another. None is that default.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return None
    tiling = tiling_for(device.device_kind) if device.platform == "tpu" else None
    name = config.model.ssm_implementation
    return Implementation(name, backend=device.platform, tiling=tiling)


def stack_on(
    config: Config, mesh: Mesh, name: StackImplementation | None
) -> StackImplementation | StackTiling | None:
    """What `name` means for the stack of blocks on a mesh; without TPUs nothing is the loop."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu" or name == "xla":
        return name or "xla"
    tiling = stack_tiling_for(device.device_kind)
    if name is None and stack_refusal(config, mesh):
        return "xla"
    return tiling


def describe_stack(config: Config, mesh: Mesh) -> str:
    """The implementation of the stack that training takes, and why where it is the loop."""
    name, reason = stack_in_training(config), stack_refusal(config, mesh)
    if name == "xla" and config.model.stack_implementation is None:
        reason = f"config.diffusion.process is {config.diffusion.process}"
    if name == "pallas_tpu" or not reason:
        return name or "pallas_tpu"
    return f"xla ({reason})"


def stack_refusal(config: Config, mesh: Mesh) -> str | None:
    """The reason why these chips would not run the blocks as a fused stack, or None."""
    if config.model.name != "diffussm":
        return f"config.model.name is {config.model.name}"
    if mesh.devices.flat[0].platform != "tpu":
        return "the fused blocks are for TPUs"
    tiling = stack_tiling_for(mesh.devices.flat[0].device_kind)
    num_groups = config.num_tokens // mesh.shape["sequence"] // config.model.m
    return refusal(config.model, num_groups, tiling)


def _batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shape = config.training.batch_size, *config.grid
    batch = {"label": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    if config.data.space == "pixels":
        batch["image"] = jax.ShapeDtypeStruct(shape, jnp.uint8)
    else:
        batch |= {x: jax.ShapeDtypeStruct(shape, jnp.float16) for x in ("mean", "std")}
    places = batch_shardings(mesh, batch)
    return {name: _array(x.shape, x.dtype, places[name]) for name, x in batch.items()}


def _array(shape: tuple[int, ...], dtype: Any, place: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
