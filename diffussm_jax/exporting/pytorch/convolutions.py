"""Depthwise convolutions of tokens, as the convolutional mixers have them."""

from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import Grid


def depthwise(num_channels: int, kernel_size: int, *, bias: bool = True) -> nn.Conv2d:
    """A kernel for each channel; beyond the edges there are zeros."""
    half = kernel_size // 2
    return nn.Conv2d(
        num_channels, num_channels, kernel_size, padding=half, groups=num_channels, bias=bias
    )


def as_image(x: Tensor, grid: Grid) -> Tensor:
    """Tokens [b l d] as an image [b d h w]."""
    return x.transpose(1, 2).unflatten(2, grid)


def as_tokens(x: Tensor) -> Tensor:
    """An image [b d h w] as tokens [b l d]."""
    return x.flatten(2).transpose(1, 2)
