"""`--mode=flops`: the multiply-adds of a config's model, and those of the papers' models.

They are counted in the models' own programs. One multiply-add counts once, as in the "Gflops" of
the papers; FLOPs are twice that. Element-wise work is not counted.
"""

import dataclasses
import sys
from typing import Any, NamedTuple

from diffussm_jax.config import DIT_SIZES, SIZES, Config, from_dict
from diffussm_jax.planning.multiply_adds import multiply_adds


class Published(NamedTuple):
    """A model of a paper and what the paper says of it.

    Attributes:
        values: its config.
        giga: 1e9 multiply-adds of a forward pass.
    """

    model: str
    values: dict[str, Any]
    giga: float
    source: str


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
NOTE = (
    "DiffuSSM's paper does not say what it counts; its formula, 7.5 l d^2 a layer, gives our "
    "figure, and its\n"
    "own two are not in the ratio of their tokens (3.80, not 4)."
)


def flops(config: Config) -> None:
    """Write a config's multiply-adds and FLOPs by part, then the papers' figures beside ours."""
    sys.stdout.write(table_of_parts(config) + "\n\n" + table_of_published() + "\n")


def table_of_parts(config: Config) -> str:
    """The multiply-adds and FLOPs of one config's model, by part."""
    model, (height, width, channels) = config.model, config.grid
    counts = multiply_adds(config)
    grid = f"{config.num_tokens} tokens of {height} x {width} x {channels}"
    rows = [
        f"{model.name}, {model.depth} layers of width {model.width}: one image, {grid}, forward",
        f"{'':12}{'G multiply-adds':>16}{'GFLOPs':>12}",
    ]
    parts = dataclasses.asdict(counts) | {"total": counts.total}
    if counts.ssm:
        parts["without ssm"] = counts.without_ssm
    for name, count in parts.items():
        if count or name == "total":
            rows.append(f"{name:12}{count / 1e9:16.4f}{2 * count / 1e9:12.4f}")
    return "\n".join(rows)


def table_of_published() -> str:
    """The multiply-adds of the papers' models, as the papers say and as counted here."""
    rows = [f"{'G multiply-adds':20}{'paper':>8}{'here':>8}{'with ssm':>10}"]
    for model, values, giga, source in PUBLISHED:
        counts = multiply_adds(from_dict(values))
        with_ssm = f"{counts.total / 1e9:10.1f}" if counts.ssm else f"{'':10}"
        here = f"{counts.without_ssm / 1e9:8.1f}"
        rows.append(f"{model:20}{giga:8.1f}{here}{with_ssm}  {source}")
    return "\n".join([*rows, NOTE])
