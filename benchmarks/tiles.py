"""Do tiles meet at their edges, and strips at those of windows, and at what price?

python -m benchmarks.tiles runs/textures/run

In the run of configs/textures.py, for each way to draw tiles and each texture:
- seam: the mean difference of the pixels on both sides of an edge, over that of neighbours inside,
  along x and along y;
- worst: the largest mean difference between two neighbouring columns or rows, over the mean one;
- inside and across: the Frechet distance of the squares of 6 x 6 pixels from those of the crops
  that were trained on: of squares inside the tiles, and of those in the middle of an edge.
Then worst and inside of strips four images long. Leaves `tiles.png` and `strips.png` in the run.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

import diffussm_jax
from diffussm_jax.config import SampleConfig
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.diffusion import create_sampler
from diffussm_jax.diffusion.canvas import rolled, windowed
from diffussm_jax.diffusion.process import Denoiser
from diffussm_jax.evaluation.metrics import Moments, RunningMoments, frechet_distance
from diffussm_jax.models import create_model
from diffussm_jax.ops.circular import circular_s4d
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.training.state import abstract_model

NUM, SQUARE = 128, 6
BOTH, NEITHER = (True, True), (False, False)


def squares(images: np.ndarray) -> np.ndarray:
    """All squares of grey images, [num, pixels]."""
    views = np.lib.stride_tricks.sliding_window_view(images[..., 0], (SQUARE, SQUARE), (1, 2))
    return views.reshape(-1, SQUARE**2)


def moments(rows: np.ndarray) -> Moments:
    """The moments of squares."""
    running = RunningMoments()
    running.add(rows.astype(np.float32))
    return running.result()


def across(images: np.ndarray) -> np.ndarray:
    """The squares in whose middle two edges of an image meet."""
    half = SQUARE // 2
    along_x = np.concatenate([images[:, :, -half:], images[:, :, :half]], axis=2)
    along_y = np.concatenate([images[:, -half:], images[:, :half]], axis=1)
    return np.concatenate([squares(along_x), squares(along_y)])


def seam_and_worst(images: np.ndarray, axis: int) -> tuple[float, float]:
    """The difference across an edge, and the largest inside, over the mean one inside."""
    x = np.moveaxis(images, axis, 0)
    inside = np.abs(np.diff(x, axis=0)).mean(axis=(1, 2, 3))
    seam = np.abs(x[0] - x[-1]).mean()
    return float(seam / inside.mean()), float(inside.max() / inside.mean())


def sampler_of(model: TrainedModel, *, steps: int) -> Callable[..., np.ndarray]:
    """draw(make_denoiser, shape) of NUM images, the classes in turn; it denoises a structure."""
    config = model.config
    run = create_sampler(config.diffusion, SampleConfig(sampler="ddim", steps=steps))
    params = jax.device_put(model.params, jax.devices()[0])

    def draw(
        graphdef: nnx.GraphDef,
        change: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
        width: int = config.grid[1],
    ) -> np.ndarray:
        height, _, channels = config.grid

        @jax.jit
        def images(params: dict, indices: jax.Array) -> jax.Array:
            denoiser = change(nnx.merge(graphdef, params))
            labels = indices % config.data.num_classes
            shape = (height, width, channels)
            return run(denoiser, image_keys(0, indices), labels, shape=shape)

        parts = np.arange(NUM, dtype=np.int32).reshape(-1, 32)
        drawn = [np.asarray(images(params, jnp.asarray(part))) for part in parts]
        return np.clip(np.concatenate(drawn), -1, 1)

    return draw


def structures(model: TrainedModel) -> dict[str, nnx.GraphDef]:
    """The network with edges, without them, and on the image repeated without end."""
    config, mesh = model.config, make_mesh(devices=jax.devices()[:1])
    endless = jax.eval_shape(
        lambda: create_model(
            config, rngs=nnx.Rngs(0), apply_s4d=circular_s4d, fuse=lambda num: None
        )
    )
    return {
        "open": abstract_model(config, mesh)[0],
        "closed": abstract_model(config, mesh, closed=BOTH)[0],
        "endless": nnx.split(endless, nnx.Param)[0],
    }


def real_images(folder: Path) -> list[np.ndarray]:
    """The crops of each class, in [-1, 1]."""
    classes = sorted(path for path in (folder / "images").iterdir() if path.is_dir())
    return [
        np.stack([np.asarray(Image.open(path)) for path in sorted(x.glob("*.png"))])[..., None]
        / 127.5
        - 1
        for x in classes
    ]


def report(name: str, images: np.ndarray, real: list[Moments]) -> None:
    """Print the figures of each class."""
    for label, reference in enumerate(real):
        of_class = images[label :: len(real)]
        (seam_y, worst_y), (seam_x, worst_x) = (seam_and_worst(of_class, axis) for axis in (1, 2))
        inside, edge = (
            frechet_distance(moments(rows), reference)
            for rows in (squares(of_class), across(of_class))
        )
        print(
            f"{name:28} class {label}: seam {seam_x:.2f} {seam_y:.2f} "
            f"worst {max(worst_x, worst_y):.2f} inside {inside:.3f} across {edge:.3f}"
        )


def save_picture(rows: list[np.ndarray], path: Path, *, zoom: int = 4) -> None:
    """Write rows of pictures below each other, each [h w]."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((2, 2), (0, width - row.shape[1])), constant_values=1) for row in rows]
    pixels = np.clip(127.5 * (np.concatenate(padded) + 1), 0, 255).astype(np.uint8)
    Image.fromarray(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)).save(path, optimize=True)


def beside(images: np.ndarray, *, times: int) -> np.ndarray:
    """Pictures side by side, each repeated along both axes."""
    tiles = [np.tile(image[..., 0], (times, times)) for image in images]
    return np.concatenate([np.pad(x, ((0, 0), (1, 1)), constant_values=1) for x in tiles], axis=1)


def main(workdir: Path) -> None:
    """Print the table and leave the pictures."""
    model = diffussm_jax.load(workdir)
    real = [moments(squares(images)) for images in real_images(workdir.parent)]
    networks, draw = structures(model), sampler_of(model, steps=25)
    roll = functools.partial(rolled, closed=BOTH)
    plain, tiles = draw(networks["open"]), draw(networks["closed"], roll)
    report("as trained", plain, real)
    report("rolled", draw(networks["open"], roll), real)
    report("closed", draw(networks["closed"]), real)
    report("closed, rolled (wrap=xy)", tiles, real)
    report("endless, rolled", draw(networks["endless"], roll), real)
    for steps in (5, 10, 50):
        images = sampler_of(model, steps=steps)(networks["closed"], roll)
        report(f"wrap=xy in {steps} steps", images, real)
    save_picture([beside(x[:6], times=3) for x in (plain, tiles)], workdir / "tiles.png")

    height, width, _ = model.config.grid
    size = SampleConfig(image_size=(height, 4 * width))
    carried_over, _ = abstract_model(as_drawn(size, model.config))
    strips = {"strip, as one image": draw(carried_over, width=4 * width)}
    for overlap in (0.0, 0.5, 0.75):
        change = functools.partial(windowed, window=(height, width), overlap=overlap)
        strips[f"strip, overlap {overlap}"] = draw(networks["open"], change, 4 * width)
    for name, images in strips.items():
        report(name, images, real)
    save_picture([x[i, ..., 0] for x in strips.values() for i in (0, 1)], workdir / "strips.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    main(parser.parse_args().workdir)
