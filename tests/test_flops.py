"""Multiply-adds against XLA's own count, the papers' formulas and their tables."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import dit256, flow256, mean_flow256
from diffussm_jax import flops
from diffussm_jax.config import SIZES, from_dict
from diffussm_jax.models import create_model
from diffussm_jax.ops.s4d import Implementation, s4d
from diffussm_jax.planning.multiply_adds import multiply_adds
from tests.conftest import merge

LATENTS = {"space": "latents", "image_size": 256, "channels": 3, "num_classes": 1000}


@pytest.mark.parametrize("size", SIZES)
def test_dense_layers_are_the_papers_formula(size):
    """7.5 l d^2 a layer at m = 2, and 2 d^2 of modulation."""
    depth, width = SIZES[size]
    # Whatever computes the blocks: a kernel's products are those of a step of its grid.
    model = {"depth": depth, "width": width, "stack_implementation": "pallas_tpu"}
    counts = multiply_adds(from_dict({"model": model, "data": LATENTS}))
    assert counts.dense == depth * (7.5 * 1024 + 2) * width**2
    assert counts.attention == 0
    assert 0 < counts.embeddings < 0.01 * counts.dense


def test_what_a_model_is_told_besides_costs_its_embeddings():
    """A mean flow of scale-aware guidance has those of t - r and of the scale more than a flow."""
    flow, mean_flow = (from_dict(x.get_config("S").to_dict()) for x in (flow256, mean_flow256))
    counts, more = multiply_adds(flow), multiply_adds(mean_flow)
    d = flow.model.width
    assert more.embeddings - counts.embeddings == 2 * (256 * d + d**2)
    assert (more.dense, more.ssm) == (counts.dense, counts.ssm)


@pytest.mark.parametrize("size", ["S/4", "XL/2"])
def test_dit_is_its_formula_part_by_part(size):
    config = from_dict(dit256.get_config(size).to_dict())
    depth, d = config.model.depth, config.model.width
    tokens, features = (32 // config.model.patch_size) ** 2, config.model.patch_size**2
    counts = multiply_adds(config)
    assert counts.dense == depth * (12 * tokens + 6) * d**2
    assert counts.attention == depth * 2 * tokens**2 * d
    conditioning = 256 * d + d**2 + 2 * d**2
    assert counts.embeddings == tokens * features * (4 + 8) * d + conditioning
    assert counts.ssm == 0


@pytest.mark.parametrize("mixer", ["convnext", "delta_conv", "dico"])
def test_convolutional_mixers_are_their_formulas(mixer):
    """A depthwise convolution has k^2 products a token and channel; delta_conv's is on half."""
    values = dit256.get_config("S/2").to_dict()
    config = from_dict(values | {"model": values["model"] | {"mixer": mixer}})
    depth, d, tokens = config.model.depth, config.model.width, 256
    counts = multiply_adds(config)
    block = (8 * tokens + 6) * d**2  # the MLP and the modulation
    if mixer == "convnext":
        assert counts.convolutions == depth * tokens * 7**2 * d
        assert counts.dense == depth * (2 * 3 * tokens * d**2 + block)
    elif mixer == "dico":
        assert counts.convolutions == depth * tokens * 3**2 * d
        assert counts.dense == depth * (2 * tokens * d**2 + d**2 + block)
    else:
        assert counts.convolutions == depth * (tokens + tokens // 4) * 13**2 * d // 2
        # Into half of the width, back from two quarters, and the mean of all tokens.
        assert counts.dense == depth * ((1 / 2 + 1 / 2) * tokens * d**2 + d**2 + block)
        # Eight rows: means of 16 columns over pairs, and 8 back to 16 on half of the channels.
        assert counts.resampling == depth * 8 * (8 * 16 * d // 2 + 16 * 8 * d // 4)
    assert counts.attention == counts.ssm == 0
    assert counts.without_ssm == counts.total


IN_THE_QUICK_TIER = ("DiT", "DiffuSSM", "FCDM-XL")


@pytest.mark.parametrize(
    "published",
    [
        pytest.param(
            x, id=x.model, marks=[] if x.model.startswith(IN_THE_QUICK_TIER) else pytest.mark.slow
        )
        for x in flops.PUBLISHED
    ],
)
def test_published_models(published):
    """The papers' tables; DiffuSSM's paper counts something else, 5 to 11 % less."""
    config = from_dict(published.values)
    precision = 0.5 if isinstance(published.millions, int) else 0.05
    assert flops.num_parameters(config) / 1e6 == pytest.approx(published.millions, abs=precision)
    giga = multiply_adds(config).without_ssm / 1e9
    if published.model.startswith("DiT"):
        assert giga == pytest.approx(published.giga, rel=1e-3)
    elif not published.model.startswith("DiffuSSM"):
        assert giga == pytest.approx(published.giga, rel=1e-2)
    else:
        assert 1.04 < giga / published.giga < 1.13


@pytest.mark.parametrize("model", ["diffussm", "dit"])
def test_equal_to_xlas_count_of_an_unrolled_model(tiny_config, model):
    """XLA counts two operations a multiply-add, and element-wise ones too: at most, and nearly.

    Two images against four, since the operator's tables cost the same for any number.
    """
    values = {"name": model, "depth": 4, "width": 256, "scan_unroll": 4, "state_size": 64}
    config = merge(tiny_config, {"model": values, "data": LATENTS | {"image_size": 128}})
    one_block = Implementation("chunked", num_blocks=1)  # of a loop XLA counts one round
    operator = functools.partial(s4d, implementation=one_block)
    graphdef, params = nnx.split(
        jax.eval_shape(lambda: create_model(config, rngs=nnx.Rngs(0), apply_s4d=operator))
    )
    forward = jax.jit(lambda params, *x: nnx.merge(graphdef, params)(*x))

    def counted(b):
        x = jax.ShapeDtypeStruct((b, *config.grid), jnp.float32)
        label = jax.ShapeDtypeStruct((b,), jnp.int32)
        compiled = forward.lower(params, x, label, label).compile()
        return compiled.cost_analysis()["flops"]

    image = (counted(4) - counted(2)) / 2
    assert 0.9 < 2 * multiply_adds(config).total / image <= 1


def test_the_table_of_a_config(tiny_config, capsys, monkeypatch):
    monkeypatch.setattr(flops, "PUBLISHED", [x for x in flops.PUBLISHED if "XL/2" in x.model])
    flops.flops(merge(tiny_config, {"model": {"name": "dit", "num_heads": 4}}))
    text = capsys.readouterr().out
    assert "dit, 2 layers of width 16: 14,866 parameters" in text
    assert "one image, 64 tokens of 8 x 8 x 1" in text
    assert "ssm" not in text.split("\n\n")[0]
    (row,) = (line for line in text.splitlines() if "DiT-XL/2, 256" in line)
    assert row.split("256")[1].split() == ["675", "674.8", "118.64", "118.62", "DiT,", "table", "4"]
