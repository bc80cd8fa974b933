"""The defaults, which are the paper's, as a ConfigDict; the other files here override them."""

import dataclasses

import ml_collections

from diffussm_jax.config import Config


def get_config() -> ml_collections.ConfigDict:
    # `diffussm_jax.config` checks types: some fields take a number or a pair.
    return ml_collections.ConfigDict(dataclasses.asdict(Config()), type_safe=False)
