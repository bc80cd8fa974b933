"""A trained model at another size than it learnt from: what becomes of its steps and positions."""

import dataclasses

from diffussm_jax.config.network import ModelConfig
from diffussm_jax.config.schema import Config, SampleConfig
from diffussm_jax.config.sizes import pair, shortest


def as_drawn(options: SampleConfig, config: Config) -> Config:
    """The config of a model that draws: with the dtype and the size that `options` ask for.

    It is `config` itself where these are the model's own.
    """
    model, data = config.model, config.data
    if options.dtype is not None:
        model = dataclasses.replace(model, dtype=options.dtype)
    size = options.image_size
    if size is not None and pair(size) in data.bucket_sides:  # as it was learnt from
        data = dataclasses.replace(data, image_size=size)
    elif size not in (None, data.image_size):
        ratios = side_ratios(data.sides, pair(size))
        pad = round(data.pad / max(ratios))
        data = dataclasses.replace(data, image_size=size, pad=pad)
        model = carried_over(model, ratios, options)
    if (model, data) == (config.model, config.data):
        return config
    return dataclasses.replace(config, model=model, data=data)


def as_called(options: SampleConfig, config: Config) -> Config:
    """The config of a model as it is called to draw: in windows, at the size it learnt from."""
    if options.window_overlap is not None:
        options = dataclasses.replace(options, image_size=None)
    return as_drawn(options, config)


def side_ratios(old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float]:
    """The ratios of an old height and width to the new ones."""
    return old[0] / new[0], old[1] / new[1]


def carried_over(
    model: ModelConfig, ratios: tuple[float, float], options: SampleConfig
) -> ModelConfig:
    """The model at another size, with steps and positions as `options` ask for.

    Args:
        ratios: of the height and the width that it was trained at to the new ones.
    """
    height, width = ratios
    best = "axis" if model.scans_both else "pixels"  # as docs/sizes.md measures
    along_rows, along_columns = {
        "none": (1.0, 1.0),
        "width": (width, width),
        "pixels": (height * width, height * width),
        "axis": (width, height),  # a scan along rows steps over columns
    }[options.dt_rule or best]
    if model.name == "diffussm":  # which scans along rows alone
        along_columns = along_rows
    stretch = ratios if options.position == "interpolate" else (1.0, 1.0)
    return dataclasses.replace(
        model,
        dt_rate=_scaled(model.dt_rate, (along_rows, along_columns)),
        position_scale=_scaled(model.position_scale, stretch),
    )


def _scaled(
    value: float | tuple[float, float], by: tuple[float, float]
) -> float | tuple[float, float]:
    first, second = pair(value)
    return shortest((first * by[0], second * by[1]))
