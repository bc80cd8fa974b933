"""The models to compare.

DiffuSSM, and DiT at equal tokens, at equal multiply-adds and with patches of 2; and DiT-XL/2 with
the mixers of its students.
"""

import dataclasses
import functools
from typing import Any

from configs import distill_dit256, dit256, imagenet256
from diffussm_jax.config import Config, from_dict
from diffussm_jax.planning.multiply_adds import multiply_adds

DIFFUSSM, SAME_TOKENS, SAME_FLOPS, PATCHES = (
    "DiffuSSM",
    "DiT/1, equal tokens",
    "DiT/1, equal FLOPs",
    "DiT/2",
)
HEAD_WIDTH = 64  # of an attention head in DiT-S, B and L
CARD_BATCH_SIZE = 32  # of DiT-XL/2 and its students at 256 x 256 on one card
PIXELS_PER_LATENT = 8  # along a side
TEACHER = "attention"  # the mixer of the students' teacher
STUDENTS = ("s4d", "delta_conv", "convnext")
ONE_CALL: dict[str, Any] = {"sampler": "ddim", "steps": 5, "cfg_scale": 1.0}  # timed as one of five


def on_host(
    side: int, *, depth: int, width: int, batch_size: int, steps: int, dtype: str, state_size: int
) -> dict[str, Config]:
    """All four, small, on latents of `side` x `side`; as in the papers, DiT has one layer fewer."""
    data = {"space": "latents", "image_size": PIXELS_PER_LATENT * side, "channels": 3}
    model = {"depth": depth, "width": width, "dtype": dtype, "state_size": state_size}
    sample = {"num": batch_size, "batch_size": batch_size, "sampler": "ddim", "steps": steps}
    training = {"batch_size": batch_size}
    base = from_dict({"model": model, "data": data, "training": training, "sample": sample})
    dit = changed(base, name="dit", depth=depth - 1, num_heads=max(1, width // HEAD_WIDTH))
    return _four(base, dit)


def of_one_depth(subjects: dict[str, Config], depth: int) -> dict[str, Config]:
    """DiffuSSM and DiT at equal tokens, with equally many layers, to see how one layer grows."""
    return {name: changed(subjects[name], depth=depth) for name in (DIFFUSSM, SAME_TOKENS)}


def extra_large() -> dict[str, Config]:
    """The published sizes at 256 x 256."""
    base = from_dict(imagenet256.get_config().to_dict())
    return _four(base, from_dict(dit256.get_config("XL/1").to_dict()))


def on_gpu() -> dict[str, Config]:
    """Published sizes at 256 x 256 with what fits well on 80 GB, the most telling first.

    As configs ship them; "dots" would keep the scores of DiT-XL/1 that a flash kernel never writes.
    Sampling is a few steps without guidance, to time one call.
    """
    configs = {
        "DiffuSSM-XL": (imagenet256.get_config(), 32),
        "DiT-XL/2": (dit256.get_config("XL/2"), 64),
        "DiffuSSM-S": (imagenet256.get_config("S"), 128),
        "DiT-XL/1": (dit256.get_config("XL/1"), 32),
    }
    for config, batch_size in configs.values():
        config.training.batch_size = config.sample.num = config.sample.batch_size = batch_size
        config.sample.update(ONE_CALL)
    models = {name: from_dict(config.to_dict()) for name, (config, _) in configs.items()}
    xl, small = models["DiffuSSM-XL"], models["DiffuSSM-S"]
    without_flash = functools.partial(changed, attention_implementation="xla")
    return models | {
        "DiT-XL/2, attention by XLA": without_flash(models["DiT-XL/2"]),
        "DiT-XL/1, attention by XLA, remat full": without_flash(
            changed(models["DiT-XL/1"], remat="full")
        ),
        "DiffuSSM-XL, x in bfloat16": changed(xl, residual_dtype="bfloat16"),
        "DiffuSSM-XL, by FFT": changed(xl, ssm_implementation="fft"),
        "DiffuSSM-XL, remat full": changed(xl, remat="full"),
        "DiffuSSM-S, by FFT": changed(small, ssm_implementation="fft"),
        "DiffuSSM-S, remat none": changed(small, remat="none"),
    }


def students_on_gpu() -> dict[str, Config]:
    """DiT-XL/2 and the networks of its students, untaught, by mixer and pixels of a side.

    The most telling sizes come first, in batches of as many latents. Sampling is as in `on_gpu`.
    """
    models = {}
    for pixels in (256, 1024, 512):
        for mixer in (TEACHER, *STUDENTS):
            config = of_equal_tokens(
                dit_with_mixer(mixer, CARD_BATCH_SIZE), pixels // PIXELS_PER_LATENT
            )
            size = config.training.batch_size
            sample = dataclasses.replace(config.sample, num=size, batch_size=size, **ONE_CALL)
            models[f"{mixer}-{pixels}"] = dataclasses.replace(config, sample=sample)
    return models


def dit_with_mixer(mixer: str, batch_size: int | None = None) -> Config:
    """DiT-XL/2 with a mixer, which trains without a teacher; on one device if a batch is given."""
    values = dit256.get_config() if mixer == TEACHER else distill_dit256.get_config(mixer)
    values.training.teacher = None
    if batch_size is not None:
        values.training.batch_size, values.mesh.fsdp = batch_size, 1
    return from_dict(values.to_dict())


def of_equal_tokens(config: Config, side: int) -> Config:
    """The same model on latents of `side` x `side`, in a batch of as many latents as before."""
    size = config.training.batch_size * config.grid[0] ** 2 // side**2
    training = dataclasses.replace(config.training, batch_size=size)
    return dataclasses.replace(of_side(config, side), training=training)


def of_side(config: Config, side: int) -> Config:
    """The same model on latents of `side` x `side`."""
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, image_size=PIXELS_PER_LATENT * side)
    )


def changed(config: Config, **model: Any) -> Config:
    """The config with some fields of its model replaced."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def _four(base: Config, dit: Config) -> dict[str, Config]:
    return {
        DIFFUSSM: base,
        SAME_TOKENS: dit,
        SAME_FLOPS: changed(dit, depth=_depth_of_equal_work(dit, base)),
        PATCHES: changed(dit, patch_size=2),
    }


def _depth_of_equal_work(config: Config, other: Config) -> int:
    """The number of layers at which `config` takes nearly as many multiply-adds as `other`."""
    one, two, target = (
        multiply_adds(c).without_ssm
        for c in (changed(config, depth=1), changed(config, depth=2), other)
    )
    return max(1, round(1 + (target - one) / (two - one)))
