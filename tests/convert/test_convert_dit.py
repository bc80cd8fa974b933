"""What the converter reads in the released names and shapes; tests/parity has the values."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffussm_jax.convert.dit import config_of
from diffussm_jax.models.dit import position_code
from diffussm_jax.models.released_dit import from_released
from diffussm_jax.training.state import abstract_model


def released(depth=12, d=384, patch=4, side=8, num_classes=1000):
    """A state dict of the released code, all zero but for its position table."""
    layers = {
        "x_embedder.proj": (d, 4, patch, patch),
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "final_layer.linear": (patch * patch * 8, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
    }
    for layer in range(depth):
        block = f"blocks.{layer}"
        layers |= {
            f"{block}.attn.qkv": (3 * d, d),
            f"{block}.attn.proj": (d, d),
            f"{block}.mlp.fc1": (4 * d, d),
            f"{block}.mlp.fc2": (d, 4 * d),
            f"{block}.adaLN_modulation.1": (6 * d, d),
        }
    weights = {f"{name}.weight": np.zeros(x, np.float32) for name, x in layers.items()}
    weights |= {f"{name}.bias": np.zeros(x[0], np.float32) for name, x in layers.items()}
    weights["y_embedder.embedding_table.weight"] = np.zeros((num_classes + 1, d), np.float32)
    weights["pos_embed"] = np.asarray(position_code(side, side, num_features=d))[None]
    return weights


def test_the_config_is_in_the_shapes():
    weights = released()
    config = config_of(weights)
    model, data = config.model, config.data
    assert (model.name, model.depth, model.width, model.num_heads) == ("dit", 12, 384, 6)
    assert (model.patch_size, data.image_size, data.num_classes) == (4, 256, 1000)
    _, shapes = abstract_model(config)
    expected = {name: x.shape for name, x in flatten_dict(shapes, sep=".").items()}
    tensors = from_released(weights, depth=12)
    assert {name: x.shape for name, x in tensors.items()} == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 3}, "3 layers of width 384 are no size of DiT"),
        ({"d": 128}, "12 layers of width 128 are no size of DiT"),
    ],
)
def test_other_sizes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        config_of(released(**changed))


def test_another_position_table_is_refused():
    weights = released()
    weights["pos_embed"] = weights["pos_embed"][:, ::-1]
    with pytest.raises(ValueError, match="not the sin-cos table of a 8 x 8 grid"):
        config_of(weights)
