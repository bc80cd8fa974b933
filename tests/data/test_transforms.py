"""Decoding for every mode that images have, and cropping against ADM's published procedure."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffussm_jax.data import transforms

PHOTO = skimage.data.chelsea()  # 300 x 451 x 3


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} | options))
    return file.getvalue()


def adms_crop(image, size):
    """The published procedure: resize the whole picture, then cut."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    array = np.array(image.resize(resized, Image.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [32, 64, 100, 256, 300, 333])
@pytest.mark.parametrize("turned", [False, True])
def test_the_crop_is_adms(size, turned):
    photo = PHOTO.swapaxes(0, 1) if turned else PHOTO
    image = Image.fromarray(np.ascontiguousarray(photo))
    actual, expected = transforms.centre_crop(image, (size, size)), adms_crop(image, size)
    assert actual.shape == expected.shape == (size, size, 3)
    np.testing.assert_array_equal(actual, expected)


def test_a_picture_of_the_right_size_is_left_alone():
    digit = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (crop,) = np.moveaxis(transforms.centre_crop(Image.fromarray(digit), (8, 8)), -1, 0)
    np.testing.assert_array_equal(crop, digit)


def test_padding_is_black_and_leaves_the_picture_alone():
    digit = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1)
    padded = transforms.pad_with_black(digit, 2)
    assert padded.shape == (12, 12, 1)
    np.testing.assert_array_equal(padded[2:-2, 2:-2], digit)
    assert padded.sum() == digit.sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (3, 2)])
def test_the_smallest_and_the_longest_pictures(size):
    image = transforms.decode_image(encode(Image.new("RGB", size, "red")), channels=3)
    crop = transforms.centre_crop(image, (256, 256))
    assert crop.shape == (256, 256, 3)
    assert (crop == (255, 0, 0)).all()


MODES = {
    "grey": lambda rgb: rgb.convert("L"),
    "palette": lambda rgb: rgb.convert("P", palette=Image.Palette.ADAPTIVE),
    "rgba": lambda rgb: rgb.convert("RGBA"),
    "cmyk": lambda rgb: rgb.convert("CMYK"),
    "1 bit": lambda rgb: rgb.convert("1"),
    "16 bits": lambda rgb: Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
    "grey and alpha": lambda rgb: rgb.convert("LA"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_looks_like_the_picture(mode, channels):
    rgb = Image.fromarray(PHOTO)
    data = encode(MODES[mode](rgb), format="TIFF")
    decoded = transforms.decode_image(data, channels=channels)
    actual = np.asarray(decoded).reshape(300, 451, channels)
    colourless = mode in ("grey", "1 bit", "16 bits", "grey and alpha")
    expected = np.asarray(rgb.convert("L" if colourless or channels == 1 else "RGB"))
    expected = np.broadcast_to(expected.reshape(300, 451, -1), actual.shape)
    error = np.abs(actual.astype(float) - expected)
    if mode == "1 bit":  # dithered: right only on average
        assert abs(actual.mean() - expected.mean()) < 2
    else:
        assert error.mean() < (8 if mode == "palette" else 1)


def test_transparent_parts_are_white_and_photos_stand_upright():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    decoded = transforms.decode_image(encode(clear), channels=3)
    assert (np.asarray(decoded) == 255).all()
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees
    sideways = encode(Image.new("RGB", (8, 4)), format="JPEG", exif=exif)
    assert transforms.decode_image(sideways, channels=3).size == (4, 8)


def test_damaged_images_are_errors():
    whole = encode(Image.fromarray(PHOTO), format="JPEG")
    for data in (b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises((ValueError, OSError)):
            transforms.decode_image(data, channels=3)
    with pytest.raises(ValueError, match="floats"):
        transforms.decode_image(encode(Image.new("F", (4, 4)), format="TIFF"), channels=3)


def test_mirroring_is_a_fair_coin_for_each_position():
    whole = transforms.mirrored(7, start=0, num=4000)
    assert 0.45 < whole.mean() < 0.55
    part = transforms.mirrored(7, start=1234, num=100)
    np.testing.assert_array_equal(part, whole[1234:1334])
    assert not np.array_equal(whole, transforms.mirrored(8, start=0, num=4000))


def test_uint8_is_the_inverse_of_the_train_steps_range():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    scaled = values.astype(np.float32) / 127.5 - 1
    assert (scaled.min(), scaled.max()) == (-1, 1)
    np.testing.assert_array_equal(transforms.to_uint8(scaled), values)
    assert transforms.to_uint8(np.full((1, 1, 1), 7, np.float32)).item() == 255
