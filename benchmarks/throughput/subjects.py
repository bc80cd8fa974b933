"""What is compared: DiffuSSM, and DiT at equal tokens, at equal multiply-adds, and with patches of 2."""

import dataclasses

from configs import dit256, imagenet256
from diffussm_jax.config import Config, from_dict
from diffussm_jax.planning.multiply_adds import multiply_adds

DIFFUSSM, SAME_TOKENS, SAME_FLOPS, PATCHES = (
    "DiffuSSM",
    "DiT/1, equal tokens",
    "DiT/1, equal FLOPs",
    "DiT/2",
)
HEAD_WIDTH = 64  # DiT-S, B and L


def on_host(
    side: int, *, depth: int, width: int, batch_size: int, steps: int, dtype: str, state_size: int
) -> dict[str, Config]:
    """All four, small, on latents of `side` x `side`; as in the papers DiT has a layer less."""
    data = {"space": "latents", "image_size": 8 * side, "channels": 3}
    model = {"depth": depth, "width": width, "dtype": dtype, "state_size": state_size}
    sample = {"num": batch_size, "batch_size": batch_size, "sampler": "ddim", "steps": steps}
    training = {"batch_size": batch_size}
    base = from_dict({"model": model, "data": data, "training": training, "sample": sample})
    dit = changed(base, name="dit", depth=depth - 1, num_heads=max(1, width // HEAD_WIDTH))
    return _four(base, dit)


def of_one_depth(subjects: dict[str, Config], depth: int) -> dict[str, Config]:
    """DiffuSSM and DiT at equal tokens alone, with equally many layers: how a layer grows with the tokens."""
    return {name: changed(subjects[name], depth=depth) for name in (DIFFUSSM, SAME_TOKENS)}


def extra_large() -> dict[str, Config]:
    """The published sizes at 256 x 256, each with the recomputation that fits 16 GiB chips at batch 256 on 16 of them."""
    base = from_dict(imagenet256.get_config().to_dict())
    dit = from_dict(dit256.get_config("XL/1").to_dict())
    found = _four(base, dit)
    for name in (SAME_TOKENS, SAME_FLOPS):  # "dots" would keep the scores of each layer
        found[name] = changed(found[name], remat="full")
    return found


def of_side(config: Config, side: int) -> Config:
    """The same model on latents of `side` x `side`."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=8 * side))


def changed(config: Config, **model) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def _four(base: Config, dit: Config) -> dict[str, Config]:
    return {
        DIFFUSSM: base,
        SAME_TOKENS: dit,
        SAME_FLOPS: changed(dit, depth=_depth_of_equal_work(dit, base)),
        PATCHES: changed(dit, patch_size=2),
    }


def _depth_of_equal_work(config: Config, other: Config) -> int:
    """Layers with which `config` takes as many multiply-adds as `other`, to the nearest."""
    one, two, wanted = (
        multiply_adds(c).without_ssm
        for c in (changed(config, depth=1), changed(config, depth=2), other)
    )
    return max(1, round(1 + (wanted - one) / (two - one)))
