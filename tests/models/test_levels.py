"""A U of stages: what leads from level to level, every mixer, meshes, runs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from configs import dico256, fcdm256
from diffussm_jax.config import MeshConfig, OptimizerConfig, from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.models.levels import Resampling, stages_of
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.training.optimizer import label_parameters
from diffussm_jax.training.state import abstract_model, init_params
from tests.models.tiny import (
    assert_gradients_reach_all,
    assert_same_on_a_mesh,
    inputs,
    randomized,
    tiny,
)

LEVELS = {"name": "dit", "levels": (1, 2, 1), "num_heads": 2}
FCDM = LEVELS | {"mixer": "convnext", "modulate_convolved": True, "mlp_ratio": 0}
FCDM |= {"position": "none"}
DICO = LEVELS | {"mixer": "dico", "mlp_ratio": 2, "last_stage": "wide", "position": "none"}
MIXERS = ["attention", "s4d", "delta_conv", "convnext", "dico"]


def convolved(x, kernel):
    """A dense 3 x 3 convolution, place by place."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i, j in np.ndindex(*x.shape[1:3]):
        y[:, i, j] = np.einsum("buvi,uvio->bo", padded[:, i : i + 3, j : j + 3], kernel)
    return y


def test_resampling_is_a_loop_over_places():
    config = tiny(**LEVELS | {"width": 4}).model
    layers = Resampling(config, convolve=convolution, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    above = jnp.asarray(rng.normal(size=(2, 4, 6, 4)), jnp.float32)
    down = layers.down(1, above.reshape(2, 24, 4), (4, 6)).reshape(2, 2, 3, 8)
    y = convolved(above, np.asarray(layers.down_1.kernel[...]))
    up = layers.up(1, down.reshape(2, 6, 8), (2, 3), above.reshape(2, 24, 4)).reshape(2, 4, 6, 4)
    z = convolved(down, np.asarray(layers.up_1.kernel[...]))
    merge = layers.merge_1.kernel[...]
    for i, j in np.ndindex(4, 6):
        place = 2 * (i % 2) + j % 2
        ours = down[:, i // 2, j // 2, 2 * place : 2 * place + 2]
        np.testing.assert_allclose(ours, y[:, i, j], atol=1e-5)
        fine = z[:, i // 2, j // 2, 4 * place : 4 * place + 4]
        expected = np.concatenate([fine, above[:, i, j]], axis=-1) @ merge
        np.testing.assert_allclose(up[:, i, j], expected, atol=1e-5)


def test_stages_are_of_the_levels():
    narrow = stages_of(tiny(**LEVELS | {"levels": (1, 2, 3, 2, 1)}).model)
    assert narrow == ((0, 1, 1), (1, 2, 2), (2, 4, 3), (1, 2, 2), (0, 1, 1))
    assert stages_of(tiny(**DICO).model) == ((0, 1, 1), (1, 2, 2), (0, 2, 1))


def test_shapes_and_names_of_parameters():
    names = flatten_dict(abstract_model(tiny(**FCDM | {"patch_size": 2}))[1], sep=".")
    shapes = {name: x.shape for name, x in names.items()}
    assert shapes["blocks.stage_1.convnext.widen.kernel"] == (2, 32, 96)
    assert shapes["blocks.stage_2.modulation.linear.kernel"] == (1, 16, 48)
    assert shapes["embed.kernel"] == (3, 3, 4, 16)
    assert shapes["head.kernel"] == (3, 3, 16, 8)
    assert shapes["label.table"] == (11, 16)
    assert shapes["level_1.label.table"] == (11, 32)
    assert shapes["resampling.up_1.kernel"] == (3, 3, 32, 64)
    assert not any("mlp" in name for name in names)
    wide = flatten_dict(abstract_model(tiny(**DICO))[1], sep=".")
    assert wide["blocks.stage_2.dico.enter.kernel"].shape == (1, 32, 32)
    assert "out.kernel" not in wide


def test_any_shape_that_halves_runs():
    graphdef, params = abstract_model(tiny(**FCDM))
    x = jax.ShapeDtypeStruct((2, 8, 12, 1), jnp.float32)
    ints = jax.ShapeDtypeStruct((2,), jnp.int32)
    y = jax.eval_shape(lambda p, x, t: nnx.merge(graphdef, p)(x, t, t), params, x, ints)
    assert y.shape == (2, 8, 12, 2)


def test_fsdp_splits_stages_and_what_is_between_them():
    config = from_dict(fcdm256.get_config("B").to_dict())
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    _, params = abstract_model(config)
    places = flatten_dict(state_shardings(mesh, params), sep=".")
    flat = flatten_dict(params, sep=".")
    whole = [name for name, place in places.items() if place.spec == PartitionSpec()]
    assert sum(flat[name].size for name in whole) < 0.05 * sum(x.size for x in flat.values())
    assert places["resampling.up_2.kernel"].spec == PartitionSpec(None, None, "fsdp")
    assert places["blocks.stage_2.convnext.widen.kernel"].spec == PartitionSpec(None, "fsdp")
    labels = flatten_dict(label_parameters(OptimizerConfig(name="muon"), params), sep=".")
    assert labels["blocks.stage_2.convnext.widen.kernel"] == "matrix"
    assert labels["blocks.stage_2.convnext.depthwise.kernel"] == "dense"
    assert labels["resampling.up_2.kernel"] == "dense"


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_first_output_is_zero_and_gradients_reach_every_parameter(mixer):
    model = DICO if mixer == "dico" else FCDM if mixer == "convnext" else LEVELS
    config = tiny(**model | {"mixer": mixer})
    first = nnx.merge(abstract_model(config)[0], jax.jit(lambda: init_params(config))())
    assert not np.any(jax.jit(first)(*inputs()))
    assert_gradients_reach_all(config)


@pytest.mark.slow
def test_a_pattern_and_recomputation_change_no_value():
    hybrid = LEVELS | {"levels": (2, 4, 2), "mixers": ("convnext", "attention")}
    _, params = randomized(tiny(**hybrid))
    outputs = [
        jax.jit(nnx.merge(abstract_model(tiny(**hybrid | options))[0], params))(*inputs())
        for options in ({}, {"remat": "full", "scan_unroll": 2})
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mixers", [("convnext", "s4d"), ("dico", "attention")])
def test_on_a_mesh_it_is_what_one_device_computes(mixers):
    config = tiny(**LEVELS | {"levels": (2, 2, 2), "mixers": mixers, "modulate_convolved": True})
    assert_same_on_a_mesh(config, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"levels": (1, 2)}, r"model.levels must be an odd number of stages, .*, got \(1, 2\)"),
        ({"levels": (8,)}, "model.levels must be an odd number of stages, at least 3"),
        ({"levels": (1,) * 9}, "model.levels must have fewer stages: the 8 x 8 grid of tokens"),
        ({"levels": (1, 0, 1)}, "model.levels must be positive"),
        ({"name": "diffussm"}, "model.levels must be None for model.name = 'diffussm'"),
        ({"mixers": ("s4d", "dico")}, r"model.mixers must divide each stage of model.levels ="),
        ({"mixer": "delta_conv", "pyramid": (1, 8)}, "divide the 4 x 4 grid of tokens in the mid"),
        ({"levels": None, "last_stage": "wide"}, "model.last_stage must be 'narrow' where"),
    ],
)
def test_what_does_not_fit_ends_in_a_line(options, line):
    with pytest.raises(ConfigError, match=line):
        tiny(**LEVELS | options)


@pytest.mark.parametrize("file", [fcdm256, dico256])
def test_a_size_that_is_not_there_is_named(file):
    with pytest.raises(ValueError, match="takes one of S, B, L, XL; got 'M'"):
        file.get_config("M")
