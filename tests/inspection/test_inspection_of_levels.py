"""A U is looked at stage by stage, each layer on its own grid; against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import from_dict
from diffussm_jax.inspection.figures import figures
from diffussm_jax.inspection.inputs import CleanImages, noised
from diffussm_jax.inspection.perturbation import KINDS, make_error
from diffussm_jax.inspection.report import add_filters, look
from diffussm_jax.training.state import abstract_model
from tests.models.tiny import randomized

RATE = 0.25
S4D = {"mixer": "s4d", "scan_orders": "rows", "direction": "forward", "state_size": 2}


def config_of(**options):
    model = {"name": "dit", "num_heads": 2, "width": 8, "dtype": "float32"} | options.pop("model")
    return from_dict({"model": model, "data": {"image_size": 8, "num_classes": 3}} | options)


def batch_of(config):
    x0 = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))
    return noised(config, CleanImages(x0, jnp.array([0, 2]), ""), 1.0)


def set_exponential(ssm):
    """Make the kernels of a stage exp(-RATE s): dt = RATE / 0.5, A = -0.5, B = 1."""
    gain = 2 * (1 - math.exp(-RATE)) / 0.5
    values = {"log_dt": math.log(2 * RATE), "log_neg_a_re": math.log(0.5), "a_im": 0, "skip": 0}
    for name, value in values.items():
        ssm[name] = jnp.full_like(ssm[name], value)
    for name, real in (("b", 1), ("c", 1 / gain)):
        ssm[name] = jnp.zeros_like(ssm[name]).at[..., 0].set(real)


def test_a_middle_stage_has_a_grid_of_its_own():
    config = config_of(
        model=S4D | {"levels": (1, 1, 1)}, inspect={"layers": (1,), "tokens": 16, "probes": 1}
    )
    graphdef, params = randomized(config)
    set_exponential(params["blocks"]["stage_1"]["s4d"]["ssm"])
    model, batch = nnx.merge(graphdef, params), batch_of(config)
    (report,) = look(config, model, [batch])
    drawn = add_filters([report], model, None, (8, 8))
    assert (report["name"], report["grid"], report["width"]) == ("layer 1 (stage 1)", (4, 4), 16)
    assert report["layers_of_stage"] == (1, 1)
    kernel = np.exp(-RATE * np.arange(16))
    np.testing.assert_allclose(
        drawn[1]["kernels"]["rows"], np.broadcast_to(kernel, (1, 16, 16)), rtol=1e-5
    )
    matrix = np.array([[kernel[i - j] if i >= j else 0 for j in range(16)] for i in range(16)])
    mixing = report["at"][0]["mixing"]
    np.testing.assert_allclose(mixing["of_the_middle_token"], matrix[:, 10], rtol=1e-4, atol=1e-6)
    squares = [
        [(i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2 for j in range(16)] for i in range(16)
    ]
    field = np.sqrt((matrix**2 * squares).sum() / (matrix**2).sum())
    np.testing.assert_allclose(mixing["effective_field"], field, rtol=1e-4)
    assert report["at"][0]["sensitivity"]["incoming"].shape == (16,)


@pytest.mark.slow
def test_the_layer_that_is_replaced_is_the_one_that_is_named():
    """A filter of its direct term alone is the identity that replaces it; the others are not."""
    config = config_of(model=S4D | {"levels": (1, 2, 1)})
    graphdef, params = randomized(config)
    ssm = params["blocks"]["stage_1"]["s4d"]["ssm"]
    ssm["c"] = ssm["c"].at[1].set(0)  # of layer 2
    error, batch = make_error(config, graphdef), batch_of(config)
    as_it_is = error(params, batch, jnp.asarray(0), jnp.asarray(0))
    identity = jnp.asarray(KINDS.index("identity"))
    is_same = [
        np.allclose(error(params, batch, jnp.asarray(layer), identity), as_it_is, rtol=1e-5)
        for layer in range(4)
    ]
    assert is_same == [False, False, True, False]


@pytest.mark.slow
def test_pictures_of_several_grids_and_numbers_of_heads():
    config = config_of(model={"levels": (1, 1, 1)}, inspect={"tokens": 4, "probes": 1})
    graphdef, params = randomized(config)
    batch = batch_of(config)
    layers = look(config, nnx.merge(graphdef, params), [batch])
    assert [len(layer["at"][0]["attention"]["entropy"]) for layer in layers] == [2, 4, 2]
    for layer in layers:
        num = math.prod(layer["grid"])
        assert layer["at"][0]["attention"]["incoming"].shape[1] == num
        np.testing.assert_allclose(layer["uniform"]["entropy"], math.log(num), rtol=1e-6)
    assert [layer["grid"] for layer in layers] == [(8, 8), (4, 4), (8, 8)]
    report = {"layers": layers, "grid": (8, 8), "noise_levels": [1.0]}
    drawn = {figure.name: figure for figure in figures(report, {}, [np.asarray(batch.x0)])}
    assert "own grid (8 x 8, 4 x 4)" in drawn["attention_incoming_0"].caption
    # Three maps below each other in the first two columns; in the others that of the middle alone.
    pixels = np.asarray(drawn["attention_incoming_0"].picture).astype(int)
    colour = (np.ptp(pixels, axis=2) > 20)[:, : int(0.85 * pixels.shape[1])]
    assert _runs(colour[:, np.flatnonzero(colour.any(axis=0))[5]]) == 3
    assert _runs(colour.any(axis=0)) == 4


def _runs(flags):
    return int(np.sum(np.diff(np.concatenate([[0], flags.astype(int)])) == 1))


def test_stacks_are_numbered_through():
    config = config_of(model={"levels": (1, 2, 1)})
    graphdef, params = abstract_model(config)
    stacks = nnx.merge(graphdef, params).stacks((8, 8))
    assert [stack.stage for stack in stacks] == [0, 1, 2]
    assert [list(stack.numbers) for stack in stacks] == [[0], [1, 2], [3]]
    assert [stack.grid for stack in stacks] == [(8, 8), (4, 4), (8, 8)]
