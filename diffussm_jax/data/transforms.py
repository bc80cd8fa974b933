"""What happens to one record between storage and the batch."""

import numpy as np
from jaxtyping import Float32, UInt8


def to_model_range(image: UInt8[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """0 .. 255 to [-1, 1]."""
    return image.astype(np.float32) / 127.5 - 1


def to_uint8(images: Float32[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """[-1, 1] to 0 .. 255, rounded to the nearest and clipped: the inverse of `to_model_range`."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def random_flip(
    image: Float32[np.ndarray, "h w c"], rng: np.random.Generator
) -> Float32[np.ndarray, "h w c"]:
    """Mirror left and right with probability 1/2."""
    return image[:, ::-1] if rng.random() < 0.5 else image
