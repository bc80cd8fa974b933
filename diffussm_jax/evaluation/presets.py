"""The presets of `evaluate.preset`: ways to sample for a score, as fields of `sample`."""

import dataclasses
from typing import Any

from diffussm_jax.config import Config, SampleConfig, from_dict
from diffussm_jax.config.parsing import ConfigError

# DiT's guided table: scale 1.5 on three of the four latent channels, as its released code does.
_DIT_GUIDED = {
    "num": 50_000,
    "sampler": "ddpm",
    "steps": 250,
    "cfg_scale": 1.5,
    "cfg_channels": 3,
    "labels": "random",
    "ema": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    # FID-50K as the paper and ADM report it: 250 ancestral steps, labels drawn at random.
    "paper": {
        "num": 50_000,
        "sampler": "ddpm",
        "steps": 250,
        "cfg_scale": 1.0,
        "labels": "random",
        "ema": True,
    },
    "dit_guided": _DIT_GUIDED,
    # The rows "DiffuSSM-XL-G", as well as they are known: the paper's first version names them
    # G-1.5, and nothing says which channels are guided, so these are those of DiT's code, whose
    # recipe the paper follows.
    "paper_guided": _DIT_GUIDED,
    # For comparing checkpoints, at a fiftieth of the work; not for publishing. Flows take the
    # samplers below.
    "fast": {
        "num": 10_000,
        "sampler": "dpm_solver++",
        "steps": 25,
        "cfg_scale": 1.0,
        "labels": "random",
        "ema": True,
    },
}
# 25 calls for an image of a flow, and one of a mean flow.
_FAST_SAMPLERS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "flow": {"sampler": "heun", "steps": 13},
    "mean_flow": {"sampler": "euler", "steps": 1},
}


def sample_options(config: Config) -> SampleConfig:
    """The config's `sample` section with the fields of `evaluate.preset` replaced.

    Raises:
        UserError: the fields do not fit the model.
    """
    values, preset = dataclasses.asdict(config), config.evaluate.preset
    if preset is not None:
        process = config.diffusion.process
        if preset != "fast" and process != "gaussian":
            raise ConfigError(
                f"config.evaluate.preset = {preset!r} samples DDPM's process, and this run's is "
                f"{process!r}: leave the preset out, or take 'fast'"
            )
        values["sample"] |= PRESETS[preset]
        if preset == "fast":
            values["sample"] |= _FAST_SAMPLERS[process]
    return from_dict(values).sample
