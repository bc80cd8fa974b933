"""From an encoded image to its array in a batch: decode, crop as ADM does, mirror."""

import contextlib
import io

import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from diffussm_jax.config import DataConfig
from diffussm_jax.data.formats import set_up_pillow

PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
MAX_ASPECT = 16  # of a picture that is resized at its full length


def decode_image(
    data: bytes, *, channels: int, max_pixels: int = DataConfig.max_pixels
) -> Image.Image:
    """Decode an image of any mode as 8-bit grey (1 channel) or RGB (3).

    It is turned upright as its EXIF tag says, transparent parts become white, and 16 bits become
    8 by scaling (Pillow alone would clip them).

    Raises:
        ValueError, OSError and anything else that Pillow raises: `data` is empty, truncated, no
            image, or one of more than `max_pixels`.
    """
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, more than config.data.max_pixels = "
            f"{max_pixels}"
        )
    image.load()
    with contextlib.suppress(Exception):  # an EXIF block that cannot be read turns no picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image) / 257, 0, 255)
        image = Image.fromarray(np.round(values).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats, whose range nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(PILLOW_MODES[channels])


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("the file is empty")
    set_up_pillow()
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(
            f"no image that Pillow reads, or one whose head is damaged: {data[:12]!r} ..."
        ) from error


def centre_crop(image: Image.Image, sides: tuple[int, int]) -> UInt8[np.ndarray, "h w c"]:
    """Crop to a height and width, to a square as ADM does in `center_crop_arr`.

    The image is halved with a box filter while it is at least twice too large, resized with a
    bicubic filter until it just covers the crop, and cut to its centre.
    """
    height, width = sides
    image = _cut_strip(image)
    while image.width >= 2 * width and image.height >= 2 * height:
        half = image.width // 2, image.height // 2
        image = image.resize(half, Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = round(image.width * scale), round(image.height * scale)
    image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    cropped = image.crop((left, top, left + width, top + height))
    return np.asarray(cropped).reshape(height, width, -1)


def pad_with_black(pixels: UInt8[np.ndarray, "h w c"], width: int) -> UInt8[np.ndarray, "_ _ c"]:
    """Add `width` black pixels along each edge."""
    height, length, channels = pixels.shape
    padded = np.zeros((height + 2 * width, length + 2 * width, channels), np.uint8)
    padded[width : width + height, width : width + length] = pixels
    return padded


def describe_crop(pad: int = 0) -> str:
    """Say what `centre_crop` and `pad_with_black` do, for facts that are compared."""
    crop = "ADM: box halving, bicubic, centre"
    return f"{crop}; {pad} black pixels around" if pad else crop


def _cut_strip(image: Image.Image) -> Image.Image:
    """Cut the far ends off a very long image: resized, 1 x 30,000 pixels would take gigabytes."""
    short = min(image.size)
    excess = [max(0, side - MAX_ASPECT * short) // 2 for side in image.size]
    if not any(excess):
        return image
    left, top = excess
    return image.crop((left, top, image.width - left, image.height - top))


def mirrored(seed: int, *, start: int, num: int) -> Bool[np.ndarray, " b"]:
    """Whether each of the examples `start` .. `start + num` of the stream is mirrored.

    It is a function of the seed and of the example's position alone.
    """
    words_per_position = 4  # Philox counts in blocks of four words
    bits = np.random.Philox(key=seed)
    bits.advance(start)
    words = bits.random_raw(words_per_position * num)
    return words[::words_per_position] % 2 == 1


def from_uint8(images: UInt8[Array, "*b h w c"]) -> Float32[Array, "*b h w c"]:
    """Scale 0 .. 255 to [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: Float32[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Scale [-1, 1] to 0 .. 255, rounded and clipped: the inverse of `from_uint8`."""
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
