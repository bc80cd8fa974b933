"""The attention baseline: the published counts, and the properties that every backbone has."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import dit256
from diffussm_jax.config import DIT_SIZES, from_dict
from diffussm_jax.models.dit import position_code
from diffussm_jax.train import train
from diffussm_jax.training.state import abstract_model
from tests.conftest import merge
from tests.models.tiny import assert_gradients_reach_all, inputs, randomized, tiny

TINY = {"name": "dit", "num_heads": 4}


def count(size):
    _, params = abstract_model(from_dict(dit256.get_config(size).to_dict()))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_are_those_of_the_released_models():
    assert count("XL/2") == 674_834_720
    assert count("XL/2") + 256 * 1152 == 675_129_632  # with the fixed position table
    millions = [round(count(f"{size}/2") / 1e6) for size in DIT_SIZES]
    assert millions == [33, 130, 458, 675]  # DiT, tables 1 and 4


@pytest.mark.parametrize(
    "options", [{}, {"patch_size": 2}, {"dtype": "bfloat16"}, {"remat": "dots"}], ids=str
)
def test_output_shape_and_gradients_reach_every_parameter(options):
    assert_gradients_reach_all(tiny(**TINY | options))


def test_without_position_code_it_is_equivariant_to_a_permutation_of_patches():
    """What tells attention from a scan: rows of the image may change places."""
    graphdef, params = randomized(tiny(**TINY, position="none"))
    x, t, y = inputs()
    model = jax.jit(lambda x: nnx.merge(graphdef, params)(x, t, y))
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(model(x[:, order]), model(x)[:, order], atol=1e-4)


def test_position_code_is_the_released_codes_formula():
    """get_2d_sincos_pos_embed: the column's half first, sin then cos, over the raster."""
    frequencies = 10_000.0 ** -(np.arange(4) / 4)
    for row in range(3):
        for column in range(5):
            halves = [part(x * frequencies) for x in (column, row) for part in (np.sin, np.cos)]
            code = position_code(3, 5, num_features=16)[5 * row + column]
            np.testing.assert_allclose(code, np.concatenate(halves), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mixers", [None, ("delta_conv", "convnext")], ids=str)
def test_trains_on_a_mesh_and_samples(tiny_config, tmp_path, mixers):
    """The same loop, with parameters and tokens split."""
    config = merge(
        tiny_config,
        {
            "model": TINY | {"patch_size": 2, "mixers": mixers},
            "mesh": {"fsdp": 2, "sequence": 2},
            "training": {"num_steps": 4, "eval_every": 4, "sample_every": 4},
        },
    )
    train(config, tmp_path)
    assert (tmp_path / "samples" / "step_0000004.png").exists()
    assert "eval_loss" in (tmp_path / "metrics.jsonl").read_text()
