"""Autoencoders that are damaged, misnamed or point elsewhere."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.autoencoder.weights import load_autoencoder
from diffussm_jax.files import read_tensors
from diffussm_jax.parallel.mesh import make_mesh
from tests.conftest import merge
from tests.fuzz.one_line import JSON_DAMAGE, SAFETENSORS, error_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def autoencoder(tiny_autoencoder, tmp_path):
    return shutil.copytree(tiny_autoencoder, tmp_path / "autoencoder")


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_the_config_of_an_autoencoder(autoencoder, damage):
    (autoencoder / "config.json").write_bytes(JSON_DAMAGE[damage])
    assert "config.json" in error_of(lambda: load_autoencoder(autoencoder))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, value)
            for field in ("in_channels", "latent_channels", "layers_per_block")
            for value in (0, -1, 2.5, "3", None, True, [3], {}, 10**9, 10**30)
        ),
        *(
            ("block_out_channels", value)
            for value in ([], [0], [-8], ["8"], [None], [[8]], "8", 8, {}, [8] * 99)
        ),
        *(("norm_num_groups", value) for value in (0, 3, -4, "4", 1.5, None, [])),
        *(("scaling_factor", value) for value in (0, -1, "x", None, [], float("nan"))),
        *(("act_fn", value) for value in ("relu", None, 3, ["x"], {}, [{}], [[]])),
        *(("down_block_types", value) for value in ("x", ["x"], [{}], [None], [[1]])),
        *(("shift_factor", value) for value in (0.1, "x", [1], {})),
        ("use_quant_conv", False),
        ("mid_block_add_attention", "no"),
    ],
)
def test_fields_of_an_autoencoder(autoencoder, field, value):
    path = autoencoder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    error_of(lambda: load_autoencoder(autoencoder))


@pytest.mark.parametrize("name", SAFETENSORS)
def test_the_weights_of_an_autoencoder(autoencoder, name):
    (autoencoder / WEIGHTS).write_bytes(SAFETENSORS[name])
    assert WEIGHTS in error_of(lambda: load_autoencoder(autoencoder))


@pytest.mark.parametrize("change", ["missing", "flat", "scalar", "more", "undotted", "transposed"])
def test_arrays_of_an_autoencoder(autoencoder, change):
    tensors = read_tensors(autoencoder / WEIGHTS)
    name = "decoder.conv_in.weight"
    x = tensors[name]
    changed = {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "flat": tensors | {name: x.reshape(-1)},
        "scalar": tensors | {name: np.array(3, np.float32)},
        "more": tensors | {name: x[None]},
        "undotted": tensors | {"weight": x},
        "transposed": tensors | {name: np.ascontiguousarray(x.T)},
    }[change]
    safetensors.numpy.save_file(changed, autoencoder / WEIGHTS)
    assert "weight" in error_of(lambda: load_autoencoder(autoencoder))


@pytest.mark.parametrize("name", ["../nowhere", "/", "a/b/c", "..", "x" * 300, "a b", "\u2028"])
def test_names_that_are_no_autoencoder(tiny_config, monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    config = merge(tiny_config, {"autoencoder": {"name": name}})
    mesh = make_mesh(devices=jax.devices()[:1])
    error_of(lambda: Autoencoder(config, mesh))
