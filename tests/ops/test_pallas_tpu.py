"""The TPU kernels in interpret mode, beyond the suite of all implementations (test_s4d.py)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.pallas_tpu import Tiling, tiling_for
from diffussm_jax.ops.pallas_tpu.operator import make_kernels
from diffussm_jax.ops.pallas_tpu.tiling import fit
from diffussm_jax.ops.s4d import DIRECTIONS, Implementation, abstract_ssm, choose, s4d
from tests.ops.s4d_reference import (
    assert_close,
    make_input,
    make_ssm,
    value_and_gradients_of,
    value_and_vjp,
)

BASE = Tiling(channels=1, interpret=True)


def shapes(b, length, d, num_pairs, dtype=jnp.float32):
    """An abstract u and SSM."""
    return jax.ShapeDtypeStruct((b, length, d), dtype), abstract_ssm(2, d, num_pairs)


@pytest.fixture(scope="module")
def expected():
    u, ssm = make_input(2, 512, 3), make_ssm(2, 3, 4)
    dy = make_input(2, 512, 6, seed=2)
    return u, ssm, dy, value_and_gradients_of(u, ssm, DIRECTIONS["both"], dy)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"chunk_size": 256}, marks=pytest.mark.slow),
        {"strided_roll": False},
        pytest.param({"channels": 2, "interleave": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tilings_change_nothing(expected, options):
    """Neither values nor gradients."""
    u, ssm, dy, definition = expected
    tiling = dataclasses.replace(BASE, **options)
    y, gradients = value_and_vjp(Implementation("pallas_tpu", tiling=tiling), u, ssm, dy)
    assert_close((y, *gradients), definition)


def test_no_two_grid_steps_race(expected, capfd):
    """The detector's calls to the host have no place in a derivative, so the kernels run alone."""
    u, ssm, dy, definition = expected
    detector = pltpu.InterpretParams(detect_races=True)
    tiling = fit(dataclasses.replace(BASE, interpret=detector), u, ssm)
    kernels = make_kernels(DIRECTIONS["both"], tiling, has_state=False)
    y, _ = kernels.run(u, ssm, None)
    du, d_ssm, _ = kernels.gradients((u, ssm, None), (dy, None))
    assert_close((y, du, d_ssm), definition)
    assert "RACE DETECTED" not in capfd.readouterr().out


def test_default_tiling_fits_every_chip():
    u, ssm = shapes(32, 1024, 1152, 32, jnp.bfloat16)
    channels = {
        kind: fit(tiling_for(kind), u, ssm).channels
        for kind in ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU v99")
    }
    assert channels["TPU v5 lite"] == channels["TPU v6 lite"] == 16
    assert 1 < channels["TPU v4"] == channels["TPU v99"] < channels["TPU v5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (shapes(256, 65536, 4, 8), "too long for pallas_tpu"),
        (shapes(1, 256, 4, 33), "more than the 32 pairs that pallas_tpu takes"),
    ],
)
def test_what_does_not_fit_is_named_and_never_chosen(arguments, message):
    implementation = Implementation("pallas_tpu", tiling=Tiling())
    run = functools.partial(s4d.__wrapped__, implementation=implementation)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, *arguments)
    assert choose("tpu", *arguments) == Implementation("chunked", backend="tpu")


def test_choice_by_backend_and_shape():
    long, short = shapes(8, 1024, 4, 32), shapes(8, 64, 4, 32)
    assert choose("cpu", *long).name == choose("gpu", *long).name == "chunked"
    assert choose("tpu", *long).name == "pallas_tpu"
    assert choose("tpu", *short).name == "chunked"
