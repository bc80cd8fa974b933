"""How well does a model of the digits draw at other sizes than it was trained at?

python -m benchmarks.sizes runs/digits runs/dit --picture sizes.png

Draws with every way of carrying a model over, `sample.position` and `sample.dt_rule`, and prints a
Markdown table. The samples are brought back to 8 x 8 by averages over areas. A cell has the share
of them that a 3-nearest-neighbour classifier then gives the class that was asked for, as
`benchmarks.digits` measures it, and the share of their variance that the averages took away: noise,
which the classifier does not see. Samples of a model of 8 x 8 that are drawn at 8 x 8 and enlarged
would have the class of the column 8 at every size, and as little noise as the row `real`.
"""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import diffussm_jax
from benchmarks.digits import measure
from benchmarks.throughput.tables import table
from diffussm_jax.config import Config
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.sizes import Size, pair, size_name

DIGITS = (8, 8)  # size of the real ones
DEFAULT_SIZES: tuple[Size, ...] = (8, 12, 16, (8, 16), (16, 8), 32)
NUM_SHOWN = 10  # images of each row of the picture


def ways(config: Config, sizes: list[Size], positions: list[str]) -> Iterator[dict[str, Any]]:
    """Options that carry a model over, those alone that differ from those before at some size."""
    known: set[tuple[Config, ...]] = set()
    for position, rule in itertools.product(positions, ("axis", "width", "pixels", "none")):
        way = {"position": position, "dt_rule": rule}
        at_sizes = tuple(_carried(config, way, size) for size in sizes)
        if at_sizes not in known:
            known.add(at_sizes)
            yield way


def _carried(config: Config, way: dict[str, Any], size: Size) -> Config:
    options = dataclasses.replace(config.sample, image_size=size, **way)
    drawn = as_drawn(options, config)
    model = drawn.model if drawn.model.has_ssm else dataclasses.replace(drawn.model, dt_rate=1.0)
    return dataclasses.replace(drawn, model=model)


def score(images: np.ndarray, labels: np.ndarray) -> str:
    """The share of uint8 samples [b h w 1] of any size that have their class, and their noise."""
    reduced = resized(images, DIGITS, Image.Resampling.BOX)
    lost = images - resized(reduced, images.shape[1:3], Image.Resampling.BICUBIC).astype(float)
    noise = np.mean(np.square(lost)) / np.mean(images.var(axis=(1, 2, 3)))
    return f"{measure(reduced, labels)['agreement']:.0%}, {noise:.2f}"


def resized(images: np.ndarray, sides: tuple[int, ...], how: Image.Resampling) -> np.ndarray:
    """The images at another height and width."""
    height, width = sides
    pictures = [Image.fromarray(x[..., 0]).resize((width, height), how) for x in images]
    return np.stack([np.asarray(x) for x in pictures])[..., None]


def real_digits(size: Size, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The first digits of the data, enlarged as the data pipeline does, and their classes."""
    digits = load_digits()
    images = np.round(digits.images[:num] / 16 * 255).astype(np.uint8)[..., None]
    return resized(images, pair(size), Image.Resampling.BICUBIC), digits.target[:num]


def read_size(text: str) -> Size:
    """A size as `--config.data.image_size` takes it."""
    sides = [int(side) for side in re.split("[,x]", text)]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+")
    parser.add_argument("--sizes", type=read_size, nargs="+", default=list(DEFAULT_SIZES))
    parser.add_argument("--positions", nargs="+", default=["interpolate", "extend"])
    parser.add_argument("--num", type=int, default=100, help="images of each cell")
    parser.add_argument("--steps", type=int, default=10, help="of the run's sampler")
    parser.add_argument("--picture", type=Path, help="folder for a PNG of each cell")
    flags = parser.parse_args()
    real = {size_name(size): score(*real_digits(size, flags.num)) for size in flags.sizes}
    rows: list[dict[str, Any]] = [{"run": "real", "position": None, "dt_rule": None} | real]
    labels = np.arange(flags.num) % 10
    for workdir in flags.workdirs:
        model = diffussm_jax.load(workdir)
        for way in ways(model.config, flags.sizes, flags.positions):
            row = {"run": str(workdir)} | way
            for size in flags.sizes:
                images = model.sample(
                    labels, image_size=size, steps=flags.steps, batch_size=flags.num, **way
                )
                row[size_name(size)] = score(images, labels)
                if flags.picture is not None:
                    run = "-".join(workdir.parts[-2:])
                    name = "-".join((run, *way.values(), size_name(size)))
                    diffussm_jax.save_grid(images[:NUM_SHOWN], flags.picture / f"{name}.png")
            rows.append(row)
            print(row, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
