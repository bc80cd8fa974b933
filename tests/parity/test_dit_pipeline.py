"""The diffusers pipeline of a DiT against JAX: DiTPipeline opens it, and draws the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import load_autoencoder, save_autoencoder
from diffussm_jax.config import from_dict
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.diffusion.samplers import image_noise
from diffussm_jax.exporting.pipeline import pipeline_files
from diffussm_jax.exporting.subfolder import write_subfolder
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.training.state import abstract_model, init_params

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
NUM_STEPS = 30  # with as many channels as this the steps' embedding is exact


@pytest.fixture(params=[{}, {"variance": "fixed_small", "prediction": "v", "schedule": "cosine"}])
def made(request, tmp_path):
    """A config, parameters that are all random, and the folder of their pipeline."""
    vae = AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=4)
    save_autoencoder(AutoencoderKL(vae, dtype="float32", rngs=nnx.Rngs(0)), tmp_path / "vae")
    config = from_dict(
        {
            "model": {
                "name": "dit",
                "depth": 2,
                "width": 48,
                "num_heads": 4,
                "patch_size": 2,
                "dtype": "float32",
            },
            "data": {"space": "latents", "image_size": 16, "channels": 3, "num_classes": 5},
            "diffusion": {"num_steps": NUM_STEPS} | request.param,
            "autoencoder": {"name": str(tmp_path / "vae"), "factor": 2, "scale": 0.5},
            "sample": {"sampler": "ddim", "steps": NUM_STEPS, "cfg_scale": 1.5},
        }
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: np.float32(x + 0.05 * rng.normal(size=x.shape))
        for name, x in flatten_dict(jax.jit(lambda: init_params(config))(), sep=".").items()
    }
    names = ["tench, Tinca tinca", "goldfish", "shark", "ray", "cock"]
    write_subfolder(tmp_path / "pipeline", pipeline_files(config, tensors, names))
    return config, unflatten_dict(tensors, sep="."), tmp_path


def test_the_transformer_is_equal_at_every_step(made):
    config, params, folder = made
    theirs = diffusers.DiTPipeline.from_pretrained(folder / "pipeline").transformer
    x = np.random.default_rng(1).normal(size=(NUM_STEPS, *config.grid)).astype(np.float32)
    t, y = np.arange(NUM_STEPS, dtype=np.int32), np.arange(NUM_STEPS, dtype=np.int32) % 6
    graphdef, _ = abstract_model(config)
    ours = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
    expected = np.asarray(jax.jit(ours)(*map(jnp.asarray, (x, t, y))))
    labels = torch.tensor(np.where(y == 5, 1000, y))
    with torch.no_grad():
        output = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), labels).sample
    output = output.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(output, expected, atol=2e-4 * np.abs(expected).max())


def test_the_pipeline_draws_the_same_images(made, monkeypatch):
    config, params, folder = made
    pipeline = diffusers.DiTPipeline.from_pretrained(folder / "pipeline")
    assert pipeline.get_label_ids(["Tinca tinca", "ray"]) == [0, 3]
    classes, seed, mesh = [0, 4, 2], 3, make_mesh(devices=jax.devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    keys = image_keys(seed, jnp.arange(3))
    draw = sampling_program(config, graphdef, mesh, config.sample)
    latents = draw(params, None, seed, jnp.arange(3), jnp.array(classes))
    decode = load_autoencoder(folder / "vae").decode
    expected = to_uint8(np.asarray(decode(latents / config.autoencoder.scale))).astype(int)
    noise = np.array(image_noise(keys, 2**31 - 2, config.grid)).transpose(0, 3, 1, 2)
    monkeypatch.setattr(
        "diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: torch.tensor(noise)
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        classes, guidance_scale=1.5, num_inference_steps=NUM_STEPS, output_type="np"
    ).images
    images = np.round(images * 255).astype(int)
    assert ((expected > 0) & (expected < 255)).mean() > 0.8
    assert np.abs(images - expected).max() <= 1
