"""The sharded operator equals that of one device, on 8 fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from diffussm_jax.ops.circular import circular_s4d, one_turn
from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.s4d import Implementation, s4d, s4d_with_state
from diffussm_jax.parallel.s4d import shard_circular_s4d, shard_s4d, shard_s4d_with_state
from tests.ops.s4d_reference import error, make_input, make_ssm

PALLAS = Implementation("pallas_tpu", tiling=Tiling(channels=2, interpret=True))


def make_mesh(data, sequence):
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, sequence), ("data", "sequence"), axis_types=types)


@pytest.mark.parametrize(
    ("mesh_shape", "length", "implementation"),
    [
        ((1, 8), 8, None),
        ((2, 4), 400, None),
        pytest.param((2, 4), 400, "fft", marks=pytest.mark.slow),
        pytest.param((2, 4), 512, PALLAS, marks=pytest.mark.slow),
        pytest.param((8, 1), 128, PALLAS, marks=pytest.mark.slow),
    ],
)
def test_values_states_and_gradients(mesh_shape, length, implementation):
    ssm, u = make_ssm(2, 4, 8), make_input(8, length, 4)
    rng = np.random.default_rng(5)
    state = jnp.asarray(rng.normal(size=(2, 8, 4, 8, 2)), jnp.float32)
    cotangents = make_input(8, length, 8, seed=6), 0.1 * state[..., ::-1]

    def value_and_vjp(operator):
        @jax.jit
        def run(u, ssm, state):
            outputs, vjp = jax.vjp(
                lambda u, ssm, x: operator(u, ssm, initial_state=x), u, ssm, state
            )
            return outputs, vjp(cotangents)

        return run(u, ssm, state)

    sharded = shard_s4d_with_state(
        make_mesh(*mesh_shape), sequence_axis="sequence", implementation=implementation
    )
    on_mesh, on_one_device = value_and_vjp(sharded), value_and_vjp(s4d_with_state)
    for actual, expected in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(on_one_device)):
        assert error(actual, np.asarray(expected)) < 1e-5


@pytest.mark.parametrize("sequence_axis", ["sequence", pytest.param(None, marks=pytest.mark.slow)])
def test_a_closed_sequence_is_closed_over_the_devices(sequence_axis):
    """Sequences that are not closed begin with nothing, as ever."""
    ssm, u, dy = make_ssm(2, 4, 8), make_input(8, 80, 4), make_input(8, 80, 8, seed=6)
    closed = (True, False)
    sharded = shard_circular_s4d(make_mesh(2, 4), sequence_axis=sequence_axis, closed=closed)

    def alone(u, ssm):
        return circular_s4d(u, one_turn(ssm, 80, closed), closed=closed)

    def value_and_vjp(operator):
        y, vjp = jax.vjp(operator, u, ssm)
        return y, vjp(dy)

    runs = [jax.jit(functools.partial(value_and_vjp, x))() for x in (sharded, alone)]
    for actual, expected in zip(*map(jax.tree.leaves, runs)):
        assert error(actual, np.asarray(expected)) < 1e-5
    plain = np.asarray(s4d(u, ssm)).reshape(8, 80, 2, 4)
    y = np.asarray(runs[0][0]).reshape(plain.shape)
    assert error(y[..., 2:], plain[..., 2:]) < 1e-6
    assert error(y[..., :2], plain[..., :2]) > 0.1


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_direction_over_the_batch_only(direction):
    ssm, u = make_ssm(1, 4, 8), make_input(8, 60, 4)
    sharded = shard_s4d(make_mesh(8, 1))
    y = jax.jit(lambda *x: sharded(*x, direction=direction))(u, ssm)
    assert error(y, np.asarray(s4d(u, ssm, direction=direction))) < 1e-6


def test_only_states_cross_devices():
    """Of a sharded sequence the program gathers the states and nothing as long as the sequence."""
    u, ssm = make_input(2, 4096, 4), make_ssm(2, 4, 8)
    sharded = shard_s4d(make_mesh(1, 8), sequence_axis="sequence")
    program = jax.jit(sharded).lower(u, ssm).compile().as_text()
    gathers = [line for line in program.splitlines() if " all-gather(" in line]
    assert len(gathers) == 1
    assert "f32[8,2,2,4,8,2]" in gathers[0]
    assert "all-to-all" not in program
    assert "collective-permute" not in program
