"""A DiT for diffusers: names, the steps' embedding, and what is refused; tests/parity opens it."""

import json

import numpy as np
import pytest
from flax import nnx

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import save_autoencoder
from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.export import export
from diffussm_jax.exporting import timesteps
from diffussm_jax.exporting.pipeline import pipeline_files
from diffussm_jax.files import read_tensors
from diffussm_jax.models.released_dit import from_released, to_released
from diffussm_jax.workdir.exports import write_export

WIDTH, DEPTH, PATCH = 8, 2, 2


def random_tensors():
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (PATCH**2 * 4, WIDTH),
        "timestep.hidden": (256, WIDTH),
        "timestep.out": (WIDTH, WIDTH),
        "modulation.linear": (WIDTH, 2 * WIDTH),
        "head": (WIDTH, PATCH**2 * 8),
        "blocks.modulation.linear": (DEPTH, WIDTH, 6 * WIDTH),
        "blocks.attention.qkv": (DEPTH, WIDTH, 3 * WIDTH),
        "blocks.attention.out": (DEPTH, WIDTH, WIDTH),
        "blocks.mlp_in": (DEPTH, WIDTH, 4 * WIDTH),
        "blocks.mlp_out": (DEPTH, 4 * WIDTH, WIDTH),
    }
    tensors = {"label.table": rng.normal(size=(11, WIDTH))}
    for name, shape in shapes.items():
        tensors[f"{name}.kernel"] = rng.normal(size=shape)
        tensors[f"{name}.bias"] = rng.normal(size=(*shape[:-2], shape[-1]))
    return tensors


def test_released_names_lead_there_and_back():
    tensors = random_tensors()
    released = to_released(tensors, depth=DEPTH, patch_size=PATCH)
    assert released["x_embedder.proj.weight"].shape == (WIDTH, 4, PATCH, PATCH)
    back = from_released(released, depth=DEPTH)
    assert back.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


@pytest.mark.parametrize(("width", "num_steps", "bound"), [(64, 50, 1e-4), (256, 250, 1e-3)])
def test_steps_have_the_same_vectors_at_other_frequencies(width, num_steps, bound):
    rng = np.random.default_rng(0)
    shapes = {"hidden.kernel": (256, width), "hidden.bias": width}
    shapes |= {"out.kernel": (width, width), "out.bias": width}
    tensors = {f"timestep.{n}": np.float32(0.02 * rng.normal(size=s)) for n, s in shapes.items()}
    fitted, error = timesteps.fit(tensors, num_steps)
    ours, theirs = (timesteps.features(num_steps, n).astype(np.float32) for n in (128, 127))
    wanted = timesteps.embed(tensors, ours)
    size = np.sqrt(np.square(wanted).mean())
    assert np.abs(timesteps.embed(fitted, theirs) - wanted).max() < bound * size
    assert error < bound
    assert np.abs(timesteps.embed(tensors, theirs) - wanted).max() > 0.05 * size


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"name": "diffussm"}, "model.name must be 'dit' for export.format"),
        ("model", {"name": "dit", "mixer": "s4d"}, "model.mixers must be attention alone"),
        ("model", {"name": "dit", "mlp_ratio": 2}, "model.mlp_ratio must be 4"),
        ("model", {"name": "dit"}, "data.space must be 'latents'"),
    ],
)
def test_other_models_are_refused_in_one_line(section, values, message):
    with pytest.raises(ConfigError, match=message) as error:
        pipeline_files(from_dict({section: values}), {}, None)
    assert "\n" not in str(error.value)


def test_an_export_of_a_dit_gets_a_folder_for_diffusers(tmp_path):
    vae = AutoencoderKLConfig(block_out_channels=(4, 4), norm_num_groups=2, layers_per_block=1)
    save_autoencoder(AutoencoderKL(vae, dtype="float32", rngs=nnx.Rngs(0)), tmp_path / "vae")
    model = {"name": "dit", "depth": DEPTH, "width": WIDTH, "num_heads": 2, "patch_size": PATCH}
    values = {
        "model": model,
        "data": {"space": "latents", "image_size": 8, "channels": 3, "num_classes": 10},
        "autoencoder": {"name": str(tmp_path / "vae"), "factor": 2, "scale": 0.25},
        "export": {"folder": str(tmp_path / "out"), "format": "diffusers", "verify": "never"},
    }
    tensors = {name: np.float32(x) for name, x in random_tensors().items()}
    names = [f"class {y}" for y in range(10)]
    write_export(tmp_path / "in", from_dict(values), {"class_names": names}, tensors, 7)
    export(from_dict(values), tmp_path / "in")
    folder = tmp_path / "out" / "diffusers"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["id2label"] == {str(y): name for y, name in enumerate(names)}
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] == 0.25
    weights = read_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    table = weights["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(table[:11], tensors["label.table"])
    np.testing.assert_array_equal(table[1000], tensors["label.table"][10], "no class")
    values["export"]["format"] = "jax"
    export(from_dict(values), tmp_path / "in")
    assert not folder.exists()
