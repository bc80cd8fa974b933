"""Images to edit, without looking for any: held-out ones of a config's data set, as PNGs.

python -m examples.edits configs/digits.py runs/edits/digits

They are in folders of their classes, two of each, with masks of their lower halves beside them
(docs/editing.md).
"""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from diffussm_jax.config import config_file, from_dict
from diffussm_jax.config.sizes import shortest
from diffussm_jax.data.sources import open_images

NUM = 2  # of each class


def main(config_path: str, folder: Path, data_dir: str | None) -> None:
    """Write the images and masks into a folder."""
    config = from_dict(config_file.load(config_path))
    data, seen = config.data, Counter[int]()
    height, width = (side - 2 * data.pad for side in data.sides)  # the border comes back on reading
    data = dataclasses.replace(
        data,
        image_size=shortest((height, width)),
        pad=0,
        in_memory=False,
        data_dir=data_dir or data.data_dir,
    )
    source = open_images(dataclasses.replace(config, data=data), data.eval_split or data.split)
    for index in range(len(source)):
        image, label = (source.example(index)[name] for name in ("image", "label"))
        if seen[int(label)] == NUM:
            continue
        path = folder / str(label) / f"{'ab'[seen[int(label)]]}.png"
        seen[int(label)] += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.squeeze(image)).save(path)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[len(mask) // 2 :] = 255
        Image.fromarray(mask).save(path.with_suffix(".mask.png"))
        if len(seen) == data.num_classes and min(seen.values()) == NUM:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="as configs/digits.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data_dir", help="folder of prepared data sets, as config.data.data_dir")
    arguments = parser.parse_args()
    main(arguments.config, arguments.folder, arguments.data_dir)
