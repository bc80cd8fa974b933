"""`--mode=sample`, and sampling from Python: load a work directory, ask for classes, get images."""

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from diffussm_jax import workdir as workdir_lib
from diffussm_jax.autoencoding import Autoencoder
from diffussm_jax.config import Config, SampleConfig, from_dict, grid_shape
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.diffusion.gaussian import make_diffusion
from diffussm_jax.diffusion.guidance import classifier_free
from diffussm_jax.diffusion.samplers import ddim, ddpm
from diffussm_jax.errors import UserError
from diffussm_jax.export import load_weights
from diffussm_jax.parallel.feed import collect, split_rows
from diffussm_jax.parallel.mesh import make_mesh, split_over_batch
from diffussm_jax.training.state import abstract_model

logger = logging.getLogger(__name__)

_GAP_COLOUR = 128  # neither the paper nor the ink of a digit

Decoder = Callable[[jax.Array], jax.Array]
ImageArray = UInt8[np.ndarray, "b h w c"]
LabelArray = Int[np.ndarray, "b"]


def make_decoder(config: Config, workdir: Path, mesh: Mesh) -> Decoder:
    """The function from what the model denoises to images: the autoencoder's, or none for pixels.

    Raises:
        UserError: the autoencoder is missing, or not the one of the run's latents.
    """
    if config.data.space == "pixels":
        return lambda pixels: pixels
    autoencoder = Autoencoder(config, mesh)
    encoded_by = workdir_lib.read_data_facts(workdir).get("autoencoder.sha256")
    if encoded_by not in (None, autoencoder.sha256):
        raise UserError(
            f"config.autoencoder.name: the weights of {config.autoencoder.name!r} are not those that the latents "
            f"of {workdir} were encoded with (sha256 {encoded_by[:12]}, now {autoencoder.sha256[:12]})"
        )
    return autoencoder.decode


class Generator:
    """Draws images with given parameters; compiles once for each set of sampler options.

    Image i is a function of (seed, i), its label and the options alone, not of the batch size or
    the devices.
    """

    def __init__(
        self,
        config: Config,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        decode: Decoder,
    ):
        self._config, self._graphdef, self._mesh = config, graphdef, mesh
        self._decode = decode

    def draw(
        self, params: dict, options: SampleConfig
    ) -> tuple[ImageArray, LabelArray | None]:
        """The images that a sample section asks for, and their labels (None without classes)."""
        labels = self._labels(options)
        batch_size = full_batch(options, self._mesh)
        run = self._compile(options)
        images = []
        starts = range(0, options.num, batch_size)
        for start in tqdm(
            starts, desc="sampling", leave=False, disable=_is_quiet(starts)
        ):
            # A last batch that is not full is drawn in full, so that it needs no second compilation.
            indices = np.arange(start, start + batch_size, dtype=np.int32)
            asked = None if labels is None else labels[indices % options.num]
            places = (split_rows(self._mesh, x) for x in (indices, asked))
            x_0 = run(params, options.seed, *places)
            images.append(to_uint8(collect(self._decode(x_0))))
        return np.concatenate(images)[: options.num], labels

    def _labels(self, options: SampleConfig) -> LabelArray | None:
        if not self._config.data.num_classes:
            return None
        classes = options.classes or tuple(range(self._config.data.num_classes))
        return np.resize(np.asarray(classes, np.int32), options.num)

    @functools.cache  # noqa: B019  # a generator lives as long as its process
    def _compile(self, options: SampleConfig) -> Callable:
        return sampling_program(self._config, self._graphdef, self._mesh, options)


def sampling_program(
    config: Config, graphdef: nnx.GraphDef, mesh: Mesh, options: SampleConfig
) -> Callable:
    """The jitted (params, seed, image indices, labels) -> what the model denoises, [b h w c], split over the mesh."""
    shape = grid_shape(config)
    diffusion = make_diffusion(config.diffusion, num_steps=options.steps)
    sampler = (
        functools.partial(ddim, eta=options.eta) if options.sampler == "ddim" else ddpm
    )

    def run(params, seed, indices, labels):
        model = nnx.merge(graphdef, params)
        if config.data.num_classes:
            model = classifier_free(
                model,
                options.cfg_scale,
                null_label=config.data.num_classes,
                cfg_channels=options.cfg_channels,
            )
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        return sampler(diffusion, model, keys, labels, shape=shape)

    return jax.jit(run, out_shardings=split_over_batch(mesh))


def full_batch(options: SampleConfig, mesh: Mesh) -> int:
    """Images of a batch: as many as asked for, rounded up to what the devices share evenly."""
    num_parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-min(options.batch_size, options.num) // num_parts) * num_parts


class TrainedModel:
    """A model from a work directory or an export, ready to sample.

    Attributes:
        config: of its run.
        params: the EMA parameters, or the raw ones if asked for.
        step: of its checkpoint.
        class_names: None where the run had no labels.
    """

    def __init__(
        self,
        config: Config,
        params: dict,
        step: int,
        class_names: list[str] | None,
        workdir: Path,
    ):
        self.config, self.params, self.step = config, params, step
        self.class_names = class_names
        mesh = make_mesh(config.mesh)
        graphdef, _ = abstract_model(config, mesh)
        decode = make_decoder(config, workdir, mesh)
        self._generator = Generator(config, graphdef, mesh, decode)

    def draw(self, options: SampleConfig) -> tuple[ImageArray, LabelArray | None]:
        """The images that a sample section asks for, and their labels (None without classes)."""
        return self._generator.draw(self.params, options)

    def sample(self, classes: Sequence[int] | None = None, **options) -> ImageArray:
        """Draw one image for each class of `classes`, or `num` images.

        Args:
            classes: class of each image; None for every class in turn, or an unconditional model.
            **options: fields of the config's sample section that differ from the run's: num, steps,
                sampler, cfg_scale, seed ...
        """
        if classes is not None:
            options |= {"classes": tuple(int(y) for y in classes), "num": len(classes)}
        values = dataclasses.asdict(self.config)
        values["sample"] |= options
        return self.draw(from_dict(values).sample)[0]


def load(
    workdir: str | Path, *, step: int | None = None, ema: bool = True
) -> TrainedModel:
    """The model of a work directory, from its latest checkpoint or the one of `step`, or that of an export.

    Raises:
        UserError: there is no run, no such checkpoint, or the checkpoint is of another model.
    """
    weights = load_weights(workdir, step=step, ema=ema)
    return TrainedModel(*weights, Path(workdir))


def sample(config: Config, workdir: Path) -> None:
    """Draw `sample.num` images into `workdir/samples/`: a PNG grid and an npz in ADM's form.

    The npz holds `arr_0`, uint8 images [num, h, w, c], and with classes `arr_1`, their labels.
    """
    workdir_lib.require_same_model(workdir, config)
    model = load(workdir, ema=config.sample.ema)
    logger.info("sampling %d images from step %d", config.sample.num, model.step)
    images, labels = model.draw(config.sample)
    if jax.process_index() != 0:
        return
    folder = workdir / "samples"
    save_grid(images, folder / "samples.png", labels=labels)
    arrays = [images] if labels is None else [images, labels]
    np.savez(folder / "samples.npz", *arrays)
    logger.info("wrote %s and %s", folder / "samples.png", folder / "samples.npz")


def save_grid(
    images: ImageArray,
    path: str | Path,
    *,
    labels: LabelArray | None = None,
    gap: int = 1,
) -> None:
    """Write images as one nearly square PNG, row by row, with `gap` pixels between them.

    Where labels repeat with a period, a row holds whole periods, so that a column is one class. Images
    below 32 pixels are enlarged.
    """
    num, height, width, channels = images.shape
    num_columns = _num_columns(num, labels)
    num_rows = -(-num // num_columns)
    cell = (height + gap, width + gap, channels)
    cells = np.full((num_rows * num_columns, *cell), _GAP_COLOUR, np.uint8)
    cells[:num, :height, :width] = images
    rows = cells.reshape(num_rows, num_columns, *cell).swapaxes(1, 2)
    grid = rows.reshape(num_rows * cell[0], num_columns * cell[1], channels)
    grid = grid[: len(grid) - gap, : grid.shape[1] - gap]
    zoom = -(-32 // height)
    grid = grid.repeat(zoom, axis=0).repeat(zoom, axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid[..., 0] if channels == 1 else grid).save(path)


def _num_columns(num: int, labels: LabelArray | None) -> int:
    side = int(np.ceil(np.sqrt(num)))
    period = 1 if labels is None else len(np.unique(labels))
    return period * max(1, round(side / period)) if period <= 3 * side else side


def _is_quiet(batches: Sequence) -> bool:
    return len(batches) == 1 or not sys.stderr.isatty()
