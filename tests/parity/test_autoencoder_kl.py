"""AutoencoderKL against diffusers' on the same random weights, through diffusers' files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffussm_jax.autoencoder.weights import WEIGHTS_FILE, load_autoencoder

pytestmark = pytest.mark.parity

CHANNELS = (32, 64, 96)
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Their model, and the folder that it was saved to."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    levels = len(CHANNELS)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return model, folder


def relative(actual, expected) -> float:
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("names", ["new", "old"])
def test_moments_and_images(published, names, tmp_path):
    import torch

    theirs, folder = published
    if names == "old":
        weights = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
        renamed = {}
        for name, value in weights.items():
            for new, old in OLD.items():
                if ".attentions." in name:
                    name = name.replace(f".{new}.", f".{old}.")
            renamed[name] = value
        assert renamed.keys() != weights.keys()
        safetensors.numpy.save_file(renamed, tmp_path / WEIGHTS_FILE)
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        folder = tmp_path
    ours = load_autoencoder(str(folder))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
        decoded = theirs.decode(latents.mean).sample.permute(0, 2, 3, 1).numpy()
    to_last = [x.permute(0, 2, 3, 1).numpy() for x in (latents.mean, latents.std)]
    mean, std = jax.jit(lambda x: ours.encode(x))(jnp.asarray(images))
    assert relative(mean, to_last[0]) < 1e-4
    assert relative(std, to_last[1]) < 1e-4
    decode = jax.jit(lambda z: ours.decode(z, slice_size=1))
    assert relative(decode(mean), decoded) < 1e-4
