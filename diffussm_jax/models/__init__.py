"""Backbones. `create_model` is the one place that turns a config into a module."""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from diffussm_jax.config import AttentionImplementation, Config, ModelConfig
from diffussm_jax.models import stack
from diffussm_jax.models.backbone import Backbone
from diffussm_jax.models.diffussm import DiffuSSM
from diffussm_jax.models.dit import DiT
from diffussm_jax.models.isotropic import Fuse
from diffussm_jax.models.levels import UShaped
from diffussm_jax.models.mixers import Functions
from diffussm_jax.ops import depthwise
from diffussm_jax.ops.attention import Attend, attention
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.ops.s4d import Operator, s4d
from diffussm_jax.shapes import Closed


def create_model(
    config: Config,
    *,
    rngs: nnx.Rngs,
    apply_s4d: Operator | None = None,
    attend: Attend | None = None,
    convolve: Convolve | None = None,
    gather: Callable[[nnx.Module], nnx.Module] | None = None,
    fuse: Fuse | None = None,
) -> Backbone:
    """Make the denoiser of a config; on a mesh the functions come from `parallel/`."""
    channels = config.grid[2]
    learned = config.diffusion.variance == "learned_range"
    options: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": 2 * channels if learned else channels,
        "conditions": config.conditions,
        "num_classes": config.data.num_classes,
        "gather": gather,
        "rngs": rngs,
    }
    if apply_s4d is None:
        apply_s4d = functools.partial(s4d, implementation=config.model.ssm_implementation)
    match config.model.name:
        case "diffussm":
            if fuse is None:
                fuse = functools.partial(
                    stack.fuse, config.model, config.model.stack_implementation
                )
            return DiffuSSM(config.model, apply_s4d=apply_s4d, fuse=fuse, **options)
        case "dit":
            if attend is None:
                attend = functools.partial(attention, implementation=attention_of(config))
            functions = Functions(attend, apply_s4d, convolve or depthwise.convolve)
            backbone = DiT if config.model.levels is None else UShaped
            return backbone(config.model, functions=functions, **options)


def closed_scans(config: ModelConfig, closed: Closed) -> tuple[bool, ...]:
    """Whether each order of scanning is a closed sequence in an image that is closed along axes.

    Row after row a scan goes on from the last row to the first, and so closes y; the ends of a row
    meet those of its neighbours, whether x is closed or not. Column after column it closes x.
    """
    along_y, along_x = closed
    if config.name == "diffussm":
        return (along_y,)
    return {"rows": (along_y,), "columns": (along_x,), "both": closed}[config.scan_orders]


def attention_of(config: Config) -> AttentionImplementation | None:
    """The config's implementation of attention.

    The loss of a mean flow takes a derivative in forward mode, which flash kernels do not have.
    """
    if config.diffusion.process == "mean_flow":
        return "xla"
    return config.model.attention_implementation
