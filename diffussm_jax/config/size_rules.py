"""Rules of the sizes of images, those to train on and those to draw."""

import dataclasses
from typing import Any

from diffussm_jax.config.parsing import require
from diffussm_jax.config.schema import Config
from diffussm_jax.config.sizes import Size, pair


def check_sizes(config: Config) -> None:
    """Check the size of training and that of sampling, and what depends on them."""
    data, sample = config.data, config.sample
    _require_multiple(config, "data.image_size", data.image_size)
    demand = "be 0 where data.space is latents, which are of whole crops"
    require(data.space == "pixels" or not data.pad, "data.pad", demand, data.pad)
    demand = f"leave pixels of data.image_size = {data.image_size} between the two edges"
    require(2 * data.pad < min(data.sides), "data.pad", demand, data.pad)
    for name, value, demand, is_met in _demands(config):
        require(is_met, name, demand, value)
    is_colour = data.space == "latents" or data.channels in (1, 3)
    require(is_colour, "data.channels", "be 1 (grey) or 3 (RGB)", data.channels)
    if sample.image_size is None:
        return
    _require_multiple(config, "sample.image_size", sample.image_size)
    drawn = dataclasses.replace(
        config, data=dataclasses.replace(data, image_size=sample.image_size)
    )
    for name, value, demand, is_met in _demands(drawn):
        demand = f"be another: at this size {name} = {value} would have to {demand}"
        require(is_met, "sample.image_size", demand, sample.image_size)


def _require_multiple(config: Config, field: str, size: Size) -> None:
    factor = config.autoencoder.factor
    fits = config.data.space == "pixels" or all(side % factor == 0 for side in pair(size))
    require(fits, field, f"be a multiple of autoencoder.factor = {factor}", size)


def _demands(config: Config) -> list[tuple[str, Any, str, bool]]:
    """What the grid asks of fields: name, value, what it must do, and whether it does."""
    model, (height, width, _) = config.model, config.grid
    patch, (rows, columns) = model.patch_size, config.token_grid
    fits = height % patch == 0 == width % patch
    demand = f"divide both sides of the {height} x {width} grid"
    demands: list[tuple[str, Any, str, bool]] = [("model.patch_size", patch, demand, fits)]
    if model.name == "diffussm":
        demand = f"divide the {rows * columns} tokens of a {height} x {width} grid"
        demands.append(("model.m", model.m, demand, rows * columns % model.m == 0))
        return demands
    grid, halvings = f"the {rows} x {columns} grid of tokens", model.num_levels - 1
    fits = rows % 2**halvings == 0 == columns % 2**halvings
    demand = f"have fewer stages: {grid} halves {halvings} times"
    demands.append(("model.levels", model.levels, demand, fits))
    if "delta_conv" in model.pattern:
        rows, columns = rows // 2**halvings, columns // 2**halvings
        fits = all(rows % factor == 0 == columns % factor for factor in model.pyramid)
        demand = f"divide the {rows} x {columns} grid of tokens"
        demand += " in the middle of model.levels" if halvings else ""
        demands.append(("model.pyramid", model.pyramid, demand, fits))
    return demands
