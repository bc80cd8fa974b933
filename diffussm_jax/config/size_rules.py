"""Rules of the sizes of images, those to train on and those to draw."""

import dataclasses
import re
from typing import Any

from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.parsing import require
from diffussm_jax.config.paths import FOLDER, is_parquet
from diffussm_jax.config.schema import Config
from diffussm_jax.config.sizes import Size, pair

MAX_AREA_RATIO = 1.5  # of two buckets


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
    _check_buckets(config)
    if sample.image_size is not None:
        field, size = "sample.image_size", sample.image_size
        _require_multiple(config, field, size)
        if sample.window_overlap is None:  # else the network sees windows of the trained size
            _require_divided(_of_size(config, size), field, size)
        drawn = as_drawn(sample, config).data
        demand = f"leave pixels between two edges of {drawn.pad}, which data.pad is at this size"
        require(2 * drawn.pad < min(drawn.sides), field, demand, size)


def _check_buckets(config: Config) -> None:
    """Check that each bucket is a size to train on, and that all are nearly equally large."""
    data, field = config.data, "data.buckets"
    if data.buckets is None:
        return
    fits = data.name.startswith(FOLDER) or is_parquet(data.name)
    demand = "be None unless data.name is folder:PATH, parquet:PATH or hf:USER/NAME"
    require(fits, field, demand, data.buckets)
    fits = all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", text) for text in data.buckets)
    require(fits, field, "be heights and widths as 256x256,208x320", data.buckets)
    sides = data.bucket_sides
    fits = data.sides in sides and len(set(sides)) == len(sides)
    size = "x".join(map(str, data.sides))
    demand = f"have no shape twice and that of data.image_size, {size}"
    require(fits, field, demand, data.buckets)
    areas = [height * width for height, width in sides]
    demand = f"have areas that differ by no more than a factor of {MAX_AREA_RATIO}"
    require(max(areas) <= MAX_AREA_RATIO * min(areas), field, demand, data.buckets)
    require(config.mesh.sequence == 1, field, "be None where mesh.sequence is not 1", data.buckets)
    demand = f"have sides above twice data.pad = {data.pad}"
    require(2 * data.pad < min(map(min, sides)), field, demand, data.buckets)
    for bucket in sides:
        _require_multiple(config, field, bucket)
        _require_divided(_of_size(config, bucket), field, data.buckets)


def _of_size(config: Config, size: Size) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=size))


def _require_divided(config: Config, field: str, value: Any) -> None:
    """Raise ConfigError naming the field that has this config's size, if it does not fit."""
    for name, number, demand, is_met in _demands(config):
        demand = f"be another: at this size {name} = {number} would have to {demand}"
        require(is_met, field, demand, value)


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
