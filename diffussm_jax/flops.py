"""`--mode=flops`, and what else counts a model's work: the multiply-adds of every matrix product in its own program.

One multiply-add counts once, as in the "Gflops" of the papers; FLOPs are twice that. Element-wise work is not counted.
"""

import dataclasses
import sys
from typing import Any, NamedTuple

from diffussm_jax.config import DIT_SIZES, SIZES, Config, from_dict
from diffussm_jax.planning.multiply_adds import multiply_adds


class Published(NamedTuple):
    model: str
    values: dict[str, Any]  # of the config
    giga: float  # multiply-adds
    source: str


def flops(config: Config) -> None:
    """Write a config's multiply-adds and FLOPs by part, and the papers' figures beside this count of their models."""
    sys.stdout.write(describe(config) + "\n\n" + describe_published() + "\n")


def describe(config: Config) -> str:
    """The table of one config."""
    model, (height, width, channels) = config.model, config.grid
    found = multiply_adds(config)
    tokens = config.num_tokens
    grid = f"{tokens} tokens of {height} x {width} x {channels}"
    rows = [
        f"{model.name}, {model.depth} layers of width {model.width}: one image, {grid}, forward",
        f"{'':12}{'G multiply-adds':>16}{'GFLOPs':>12}",
    ]
    parts = dataclasses.asdict(found) | {"total": found.total}
    if found.ssm:
        parts["without ssm"] = found.without_ssm
    for name, count in parts.items():
        if count or name == "total":
            rows.append(f"{name:12}{count / 1e9:16.4f}{2 * count / 1e9:12.4f}")
    return "\n".join(rows)


def describe_published() -> str:
    """The table of the papers' models."""
    rows = [f"{'G multiply-adds':20}{'paper':>8}{'here':>8}{'with ssm':>10}"]
    for model, values, giga, source in PUBLISHED:
        found = multiply_adds(from_dict(values))
        with_ssm = f"{found.total / 1e9:10.1f}" if found.ssm else f"{'':10}"
        here = f"{found.without_ssm / 1e9:8.1f}"
        rows.append(f"{model:20}{giga:8.1f}{here}{with_ssm}  {source}")
    return "\n".join([*rows, *NOTE])


NOTE = (
    "DiffuSSM's paper does not say what it counts; its formula, 7.5 l d^2 a layer, gives our figure, and its",
    "own two are not in the ratio of their tokens (3.80, not 4).",
)


def _latents(image_size: int, **model: Any) -> dict[str, Any]:
    data = {"space": "latents", "image_size": image_size, "channels": 3}
    return {"model": model, "data": data | {"num_classes": 1000}}


def _dit(size: str, image_size: int = 256) -> dict[str, Any]:
    depth, width, num_heads = DIT_SIZES[size]
    model = {"name": "dit", "depth": depth, "width": width, "num_heads": num_heads}
    return _latents(image_size, patch_size=2, **model)


_XL = dict(zip(("depth", "width"), SIZES["XL"]))
PUBLISHED = (
    Published("DiT-S/2, 256", _dit("S"), 6.06, "DiT, table 4"),
    Published("DiT-B/2, 256", _dit("B"), 23.01, "DiT, table 4"),
    Published("DiT-L/2, 256", _dit("L"), 80.71, "DiT, table 4"),
    Published("DiT-XL/2, 256", _dit("XL"), 118.64, "DiT, table 4"),
    Published("DiT-XL/2, 512", _dit("XL", 512), 524.60, "DiT, section 5.1"),
    Published("DiffuSSM-XL, 256", _latents(256, **_XL), 280.3, "DiffuSSM"),
    Published("DiffuSSM-XL, 512", _latents(512, **_XL), 1066.0, "DiffuSSM"),
)
