"""What a run on your own images needs, without a download: photographs and an autoencoder.

python -m examples.photos runs/photos

The photographs are those that scikit-image and scikit-learn ship, of mixed sizes and modes, in
runs/photos/images/<class>/. The autoencoder in runs/photos/autoencoder/ has random weights, so what
it decodes is noise; for pictures put real weights in their place, or name a hub id in the config.
`--untidy` adds what folders hold after years of use, a broken file included.
"""

import argparse
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import skimage.data
import sklearn.datasets
from flax import nnx
from PIL import ExifTags, Image

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import save_autoencoder

CLASSES = {
    "scenes": ("china.jpg", "flower.jpg", "hubble_deep_field.jpg", "moon.png", "rocket.jpg"),
    "subjects": (
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "horse.png",
    ),
    "textures": (
        "brick.png",
        "grass.png",
        "gravel.png",
        "ihc.png",
        "microaneurysms.png",
        "retina.jpg",
    ),
}
AUTOENCODER = AutoencoderKLConfig(
    block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4
)


logger = logging.getLogger(__name__)


def main(folder: Path, *, untidy: bool = False) -> None:
    """Write the photographs and the autoencoder into a folder."""
    shipped = [
        Path(path) for module in (skimage.data, sklearn.datasets) for path in module.__path__
    ]
    for label, names in CLASSES.items():
        target = folder / "images" / label
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            (source,) = (path for root in shipped for path in root.rglob(name))
            shutil.copy(source, target)
    _add_modes(folder / "images" / "subjects")
    if untidy:
        _add_untidy_files(folder / "images")
    save_autoencoder(random_autoencoder(AUTOENCODER), folder / "autoencoder")
    logger.info("photographs in %d classes and an autoencoder are in %s", len(CLASSES), folder)


def random_autoencoder(config: AutoencoderKLConfig, *, seed: int = 0) -> AutoencoderKL:
    """An autoencoder with random weights, which keep the scale of what passes through."""
    rng = np.random.default_rng(seed)
    model = jax.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)

    def draw_parameter(path: tuple, parameter: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind != "kernel":
            return np.full(parameter.shape, kind == "scale", np.float32)
        fan_in = np.prod(parameter.shape[:-1])
        return rng.normal(0, fan_in**-0.5, parameter.shape).astype(np.float32)

    weights = jax.tree_util.tree_map_with_path(draw_parameter, nnx.to_pure_dict(params))
    nnx.replace_by_pure_dict(params, weights)
    return nnx.merge(graphdef, params)


def _add_modes(folder: Path) -> None:
    """Add some of the photographs in unusual modes: CMYK, a palette, 16 bits."""
    with Image.open(folder / "coffee.png") as image:
        image.convert("CMYK").save(folder / "coffee_cmyk.jpg")
        image.convert("P").save(folder / "coffee_palette.png")
    with Image.open(folder / "coins.png") as image:
        deep = np.asarray(image).astype(np.uint16) * 257
        Image.fromarray(deep).save(folder / "coins_16_bits.png")


def _add_untidy_files(images: Path) -> None:
    """Add a sub-folder, names in other scripts, a link, thumbnails, and files of other kinds."""
    scenes, subjects, textures = (images / label for label in CLASSES)
    nested = scenes / "Зима 2019" / "Köln & Umgebung"
    nested.mkdir(parents=True, exist_ok=True)
    with Image.open(scenes / "china.jpg") as image:
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = 6  # the camera was held upright: turn by 90 degrees
        image.rotate(90, expand=True).save(nested / "寺院.jpg", exif=tags)
        thumbnails = images / ".thumbnails"
        thumbnails.mkdir(exist_ok=True)
        image.resize((128, 85)).save(thumbnails / "china.png")
    link = subjects / "cat.png"
    link.unlink(missing_ok=True)
    link.symlink_to("chelsea.png")
    (subjects / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (subjects / "captions.txt").write_text("cat.png: the same cat\n")
    whole = (textures / "grass.png").read_bytes()
    (textures / "grass (1).png").write_bytes(whole[: len(whole) // 2])


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m examples.photos", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--untidy", action="store_true", help="add what old folders hold")
    arguments = parser.parse_args()
    main(arguments.folder, untidy=arguments.untidy)
