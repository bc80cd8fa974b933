"""`--mode=flops`: the size and multiply-adds of a config's model, and those of the papers' models.

Multiply-adds are counted in the models' own programs. One multiply-add counts once, as in the
"Gflops" of the papers; FLOPs are twice that. Element-wise work is not counted.
"""

import dataclasses
import sys
from typing import Any, NamedTuple

import jax

from diffussm_jax.config import DICO_SIZES, DIT_SIZES, FCDM_SIZES, SIZES, Config, from_dict
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.training.state import abstract_model


class Published(NamedTuple):
    """A model of a paper and what the paper says of it.

    Attributes:
        values: its config.
        millions: 1e6 parameters.
        giga: 1e9 multiply-adds of a forward pass.
        source: of the multiply-adds.
    """

    model: str
    values: dict[str, Any]
    millions: float
    giga: float
    source: str


def _latents(image_size: int, **model: Any) -> dict[str, Any]:
    data = {"space": "latents", "image_size": image_size, "channels": 3}
    return {"model": model, "data": data | {"num_classes": 1000}}


def _dit(size: str, image_size: int = 256) -> dict[str, Any]:
    depth, width, num_heads = DIT_SIZES[size]
    model = {"name": "dit", "depth": depth, "width": width, "num_heads": num_heads}
    return _latents(image_size, patch_size=2, **model)


def _fcdm(size: str) -> dict[str, Any]:
    levels, width = FCDM_SIZES[size]
    block = {"mixer": "convnext", "modulate_convolved": True, "mlp_ratio": 0}
    return _latents(256, name="dit", levels=levels, width=width, position="none", **block)


def _dico(size: str) -> dict[str, Any]:
    levels, width = DICO_SIZES[size]
    block = {"mixer": "dico", "mlp_ratio": 2, "last_stage": "wide"}
    return _latents(256, name="dit", levels=levels, width=width, position="none", **block)


_VIA_DICO = "DiffuSSM's totals / images, via DiCo"
_XL = dict(zip(("depth", "width"), SIZES["XL"]))
PUBLISHED = (
    Published("DiT-S/2, 256", _dit("S"), 33, 6.06, "DiT, table 4"),
    Published("DiT-B/2, 256", _dit("B"), 130, 23.01, "DiT, table 4"),
    Published("DiT-L/2, 256", _dit("L"), 458, 80.71, "DiT, table 4"),
    Published("DiT-XL/2, 256", _dit("XL"), 675, 118.64, "DiT, table 4"),
    Published("DiT-XL/2, 512", _dit("XL", 512), 675, 524.60, "DiT, section 5.1"),
    Published("FCDM-S, 256", _fcdm("S"), 32.7, 3.1, "FCDM"),
    Published("FCDM-B, 256", _fcdm("B"), 127.7, 12.2, "FCDM"),
    Published("FCDM-L, 256", _fcdm("L"), 504.5, 48.3, "FCDM"),
    Published("FCDM-XL, 256", _fcdm("XL"), 698.8, 64.6, "FCDM"),
    Published("DiCo-S, 256", _dico("S"), 33.1, 4.25, "DiCo"),
    Published("DiCo-B, 256", _dico("B"), 130.0, 16.88, "DiCo"),
    Published("DiCo-L, 256", _dico("L"), 463.9, 60.24, "DiCo"),
    Published("DiCo-XL, 256", _dico("XL"), 701.2, 87.30, "DiCo"),
    Published("DiffuSSM-XL, 256", _latents(256, **_XL), 673, 280.3, _VIA_DICO),
    Published("DiffuSSM-XL, 512", _latents(512, **_XL), 673, 1066.2, _VIA_DICO),
)
NOTE = """\
DiCo (arXiv 2505.11196) prints 280.3 and 1066.2: most likely DiffuSSM's total work divided by its
images, 1.85e11 / 660M and 3.22e11 / 302M, and so good to 0.4 %. What was counted is not known:
DiffuSSM's formula of 7.5 l d^2 a layer gives our figures, and these two are not in the ratio of
their tokens (3.80, not 4)."""


def flops(config: Config) -> None:
    """Write a config's parameters and multiply-adds, then the papers' figures beside ours."""
    sys.stdout.write(table_of_parts(config) + "\n\n" + table_of_published() + "\n")


def table_of_parts(config: Config) -> str:
    """The parameters of one config's model, and its multiply-adds and FLOPs by part."""
    model, (height, width, channels) = config.model, config.grid
    counts = multiply_adds(config)
    grid = f"{config.num_tokens} tokens of {height} x {width} x {channels}"
    name = f"{model.name}, {model.num_layers} layers of width {model.width}"
    if model.levels is not None:
        name += f" and more in stages of {', '.join(map(str, model.levels))}"
    rows = [
        f"{name}: {num_parameters(config):,} parameters",
        f"one image, {grid}, forward",
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
    """The papers' models, as the papers say and as counted here."""
    rows = [
        f"{'':20}{'M parameters':^16}{'G multiply-adds':^26}",
        f"{'':20}{'paper':>8}{'here':>8}{'paper':>8}{'here':>8}{'with ssm':>10}",
    ]
    for model, values, millions, giga, source in PUBLISHED:
        config = from_dict(values)
        counts = multiply_adds(config)
        size = f"{millions:8.4g}{num_parameters(config) / 1e6:8.1f}"
        with_ssm = f"{counts.total / 1e9:10.1f}" if counts.ssm else f"{'':10}"
        work = f"{giga:8.5g}{counts.without_ssm / 1e9:8.5g}{with_ssm}"
        rows.append(f"{model:20}{size}{work}  {source}")
    return "\n".join([*rows, NOTE])


def num_parameters(config: Config) -> int:
    """Count the parameters of a config's model, without making them."""
    _, params = abstract_model(config)
    return sum(leaf.size for leaf in jax.tree.leaves(params))
