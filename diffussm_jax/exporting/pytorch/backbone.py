"""What all networks share: the sizes of a config, and an image in rows of tokens and back."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Config = dict[str, Any]  # config.json
Grid = tuple[int, int]  # height and width of an image in tokens

# The network of a config, by the name of its model.
BACKBONES: dict[str, Callable[[Config], nn.Module]] = {}


def conditions_of(config: Config) -> list[str]:
    """The scalars that the model is told, in their order."""
    names = ["timestep"]
    if config["diffusion"]["process"] == "mean_flow":
        names.append("interval")
    if config["guidance"]["max_scale"] is not None:
        names.append("guidance_scale")
    return names


def grid_of(config: Config) -> tuple[int, int, int]:
    """The channels, height and width of what the model denoises: an image, or its latent."""
    data, size = config["data"], config["data"]["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    if data["space"] == "pixels":
        return data["channels"], height, width
    factor = config["autoencoder"]["factor"]
    return config["autoencoder"]["channels"], height // factor, width // factor


def channels_of(config: Config) -> tuple[int, int]:
    """The channels of the network's input and output; the output may have a variance besides."""
    channels, _, _ = grid_of(config)
    return channels, channels * (1 + (config["diffusion"]["variance"] == "learned_range"))


def to_rows(x: Tensor, patch_size: int, group_size: int) -> Tensor:
    """Put the values of each token, and those of the tokens of a group, side by side."""
    b, c, h, w = x.shape
    p = patch_size
    x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)  # b i j p p c
    return x.reshape(b, -1, group_size * p * p * c)


def to_image(x: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """The inverse of `to_rows`."""
    b, (h, w), p = x.shape[0], grid, patch_size
    x = x.reshape(b, h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4)  # b c i p j p
    return x.reshape(b, -1, h * p, w * p)
