"""Draw images with given parameters: sampler, guidance and autoencoder on a mesh."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.config.drawn import as_called
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.feed import split_rows, to_host
from diffussm_jax.sampling.images import ImageArray, LabelArray, LatentArray
from diffussm_jax.sampling.inputs import image_labels
from diffussm_jax.sampling.program import closed_for_model, images_per_call, sampling_program
from diffussm_jax.shapes import Closed
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir.data_facts import read_data_facts
from diffussm_jax.workdir.same_process import OF_THE_PROCESS, require_same
from diffussm_jax.workdir.weights import Weights, load_weights, naming

Decoder = Callable[[jax.Array, Closed], jax.Array]  # of images that are closed along these axes
Drawn = ImageArray | LatentArray


def make_decoder(config: Config, workdir: Path, mesh: Mesh) -> Decoder:
    """The function from what the model denoises to images in [-1, 1]: the identity for pixels.

    Raises:
        UserError: as `open_autoencoder`.
    """
    return decoder_of(open_autoencoder(config, workdir, mesh))


def decoder_of(autoencoder: Autoencoder | None) -> Decoder:
    """What an autoencoder makes of what the model denoises; without one, the identity."""
    return (lambda pixels, closed: pixels) if autoencoder is None else autoencoder.decode


def open_autoencoder(config: Config, workdir: Path, mesh: Mesh) -> Autoencoder | None:
    """The autoencoder of a run; None for a model of pixels.

    Raises:
        UserError: it is missing, or is not the one that encoded the run's latents.
    """
    if config.data.space == "pixels":
        return None
    autoencoder = Autoencoder(config, mesh)
    encoded_by = read_data_facts(workdir).autoencoder_sha256
    if encoded_by not in (None, autoencoder.sha256):
        raise UserError(
            f"config.autoencoder.name: the weights of {config.autoencoder.name!r} are not those "
            f"that the latents of {workdir} were encoded with (sha256 {encoded_by[:12]}, now "
            f"{autoencoder.sha256[:12]})"
        )
    return autoencoder


class Generator:
    """Draws images with given parameters, compiling once for each sampler and its options.

    Image i is a function of (seed, i), its label and the options alone, not of the batch size or
    the devices. Without `decode` latents are drawn.

    Args:
        graphdef: the model's structure.
        change: what is done to that structure where it is made anew for the options of a sampler,
            as it was done to `graphdef` already.
    """

    def __init__(
        self,
        config: Config,
        graphdef: nnx.GraphDef,
        mesh: Mesh,
        decode: Decoder | None,
        *,
        change: Callable[[nnx.GraphDef], nnx.GraphDef] = lambda graphdef: graphdef,
    ):
        self._config, self._graphdef, self._mesh = config, graphdef, mesh
        self._decode, self._change = decode, change
        self._programs: dict[SampleConfig, Callable[..., jax.Array]] = {}
        self._guides: dict[str, Weights] = {}

    def draw(self, params: dict, options: SampleConfig) -> tuple[Drawn, LabelArray | None]:
        """The images that a sample section asks for, and their labels (None without classes)."""
        images = self.draw_range(params, options, range(options.num))
        num_classes = self._config.data.num_classes
        return images, image_labels(options, num_classes, np.arange(options.num))

    def draw_range(self, params: dict, options: SampleConfig, indices: range) -> Drawn:
        """The images at consecutive indices."""
        size = images_per_call(options, self._mesh)
        run, guide = self._compile(static_options(options)), self.guide(options)
        num_classes = self._config.data.num_classes
        images = []
        starts = range(indices.start, indices.stop, size)
        is_quiet = len(starts) == 1 or not sys.stderr.isatty()
        for start in tqdm(starts, desc="sampling", leave=False, disable=is_quiet):
            # The last batch is drawn in full too: another size would compile another program.
            batch = np.arange(start, start + size, dtype=np.int32)
            labels = image_labels(options, num_classes, batch)
            inputs = (split_rows(self._mesh, x) for x in (batch, labels))
            x0 = run(params, guide and guide.params, options.seed, *inputs)
            images.append(self._finished(x0, options.closed))
        return np.concatenate(images)[: len(indices)]

    def _finished(self, x0: jax.Array, closed: Closed) -> Drawn:
        if self._decode is not None:
            return to_uint8(to_host(self._decode(x0, closed)))
        with np.errstate(over="ignore"):
            latents = (to_host(x0) / self._config.autoencoder.scale).astype(np.float16)
        if not np.isfinite(latents).all():
            raise UserError("config.sample.outputs: latents that the model draws are not finite")
        return latents

    def guide(self, options: SampleConfig) -> Weights | None:
        """The model that autoguidance moves away from, loaded onto this generator's mesh once.

        Raises:
            UserError: there is no such model, or it is of another diffusion process.
        """
        folder = options.autoguidance
        if folder is None:
            return None
        if folder not in self._guides:
            with naming("config.sample.autoguidance"):
                guide = load_weights(folder, mesh=self._mesh)
            named = f"config.sample.autoguidance: {folder}"
            mend = "use a worse version of the same model"
            require_same(self._config, guide.config, OF_THE_PROCESS, named=named, mend=mend)
            self._guides[folder] = guide
        return self._guides[folder]

    def _compile(self, options: SampleConfig) -> Callable[..., jax.Array]:
        if options not in self._programs:
            config, graphdef, guide = self.called(options)
            self._programs[options] = sampling_program(config, graphdef, self._mesh, options, guide)
        return self._programs[options]

    def called(self, options: SampleConfig) -> tuple[Config, nnx.GraphDef, Config | None]:
        """The model as it is called to draw (`config.drawn`), and its guide's config."""
        config, guide = as_called(options, self._config), self.guide(options)
        graphdef, closed = self._graphdef, closed_for_model(options)
        if config is not self._config or any(closed):
            graphdef = self._change(abstract_model(config, self._mesh, closed=closed)[0])
        return config, graphdef, None if guide is None else as_called(options, guide.config)


def static_options(options: SampleConfig) -> SampleConfig:
    """Reset the options that are arguments of the program, so that it compiles once."""
    default, arguments = SampleConfig(), ("num", "batch_size", "seed", "labels", "classes")
    return dataclasses.replace(options, **{name: getattr(default, name) for name in arguments})
