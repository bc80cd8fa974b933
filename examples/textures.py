"""Textures to tile: crops of the bricks and the gravel that scikit-image ships.

python -m examples.textures runs/textures

Writes grey crops of 16 x 16 pixels into runs/textures/images/<class>/; docs/sizes.md trains on them
and draws tiles.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

SIDE = 16  # of a crop, in pixels
SHRINKAGE = {"brick": 6, "gravel": 2}  # so that a crop shows several bricks or stones


def main(folder: Path, *, num: int = 1500) -> None:
    """Write `num` crops of each texture at random places."""
    rng = np.random.default_rng(0)
    for name, factor in SHRINKAGE.items():
        texture = Image.fromarray(getattr(skimage.data, name)()).reduce(factor)
        target = folder / "images" / name
        target.mkdir(parents=True, exist_ok=True)
        for index in range(num):
            left, top = (int(rng.integers(0, side - SIDE + 1)) for side in texture.size)
            crop = texture.crop((left, top, left + SIDE, top + SIDE))
            crop.save(target / f"{index:04d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
