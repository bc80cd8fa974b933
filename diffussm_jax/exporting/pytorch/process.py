"""What all processes from noise to images share."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

# A guided network: of x_t, the scalars that it is told of the time, and the noise sigma / alpha.
Denoiser = Callable[[Tensor, list[float], float], Tensor]
# Standard normal noise of the shape of x_t, for a step; for START that which images begin as.
Noise = Callable[[int], Tensor]
START = 2**31 - 2


class Process(Protocol):
    """How images are drawn; `options` are the fields of the config's sample section."""

    def draw(self, denoise: Denoiser, noise: Noise, options: dict[str, Any]) -> Tensor: ...


# The process of a config's diffusion section, by its name.
PROCESSES: dict[str, Callable[[dict[str, Any]], Process]] = {}


def read_sampler(samplers: dict[str, Any], name: str) -> Any:
    """The sampler of this name; raises ValueError for another process's."""
    if name not in samplers:
        raise ValueError(f"sampler must be one of {', '.join(samplers)}, got {name!r}")
    return samplers[name]
