"""Processes from images to noise, and back.

`create_process` and `create_sampler` make those of a config.
"""

import functools
from collections.abc import Callable

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import flow_samplers, samplers
from diffussm_jax.diffusion.flow import Flow
from diffussm_jax.diffusion.gaussian import make_gaussian
from diffussm_jax.diffusion.mean_flow import MeanFlow
from diffussm_jax.diffusion.process import Process
from diffussm_jax.shapes import Images


def create_process(config: DiffusionConfig) -> Process:
    """Make the process of a config."""
    match config.process:
        case "gaussian":
            return make_gaussian(config)
        case "flow":
            return Flow(config)
        case "mean_flow":
            return MeanFlow(config)


def create_sampler(config: DiffusionConfig, options: SampleConfig) -> Callable[..., Images]:
    """Make the sampler that `options` describe.

    Returns:
        sampler(denoiser, keys, y, shape=(h, w, c)) -> images [b h w c], one for each key; y, the
        labels, is None for an unconditional model.
    """
    num_steps = options.steps
    match config.process:
        case "gaussian":
            spacing = samplers.SPACINGS[options.sampler]
            gaussian = make_gaussian(config, num_steps=num_steps, spacing=spacing)
            step = samplers.make_step(options.sampler, eta=options.eta)
            return functools.partial(samplers.run_sampler, step, gaussian)
        case "flow" | "mean_flow":
            flow = create_process(config)
            assert isinstance(flow, Flow | MeanFlow)
            flow_step = flow_samplers.make_step(options.sampler, form=options.sde)
            run = flow_samplers.run_sampler
            return functools.partial(run, flow_step, flow, num_steps=num_steps)
