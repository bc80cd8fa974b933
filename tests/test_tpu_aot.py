"""The kernels and a whole block through the real TPU compiler, ahead of time and without a TPU."""

import functools
import importlib.util
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.block import Block
from diffussm_jax.ops.pallas_tpu import tiling_for
from diffussm_jax.ops.s4d import Choice, s4d
from diffussm_jax.planning import tpu_compiler

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]


def topologies(*, quick):
    """All kinds of chips; those that `make test` leaves to `make test-all` are slow."""
    return [
        pytest.param(x, marks=() if x in quick else pytest.mark.slow)
        for x in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
    ]


WIDTH, LIMIT_SECONDS = 128, 60


@pytest.fixture(scope="module")
def compile_for():
    """Compile a function of abstract arrays for one chip of a topology, within the limit."""

    def compile_for(topology, make_function, *shapes):
        device = tpu_compiler.devices(topology)[0]
        choice = Choice("pallas_tpu", tiling=tiling_for(device.device_kind))
        start = time.monotonic()
        compiled = tpu_compiler.compile_for(device, make_function(choice), *shapes)
        assert time.monotonic() - start < LIMIT_SECONDS
        text = compiled.as_text()
        assert "s4d_forward" in text
        assert "s4d_backward" in text
        return text

    return compile_for


def operator_shapes(dtype, length=512, num_pairs=32):
    parameters = jax.ShapeDtypeStruct((2, WIDTH, num_pairs, 2), jnp.float32)
    return (
        jax.ShapeDtypeStruct((8, length, WIDTH), dtype),
        parameters,
        parameters,
        jax.ShapeDtypeStruct((2, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((8, length, 2 * WIDTH), dtype),
    )


def operator(choice):
    def value_and_gradients(*arguments):
        *arguments, dy = arguments
        y, vjp = jax.vjp(functools.partial(s4d, implementation=choice), *arguments)
        return y, vjp(dy)

    return value_and_gradients


@pytest.mark.parametrize("topology", topologies(quick=["v4:2x2x1", "v5e:2x2"]))
def test_operator(compile_for, topology):
    compile_for(topology, operator, *operator_shapes(jnp.bfloat16))


def test_cycles_count_the_rounds_of_a_loop(compile_for):
    """Five layers in a scan cost five times one; kernels are counted too, with what they read and write."""

    def layers(n):
        def make_function(choice):
            def loss(u, *parameters):
                def layer(u, _):
                    y = s4d(u, *parameters, implementation=choice)
                    return y[..., :WIDTH] + y[..., WIDTH:], None

                return jnp.sum(jax.lax.scan(layer, u, length=n)[0].astype(jnp.float32))

            return jax.value_and_grad(loss)

        return make_function

    *arguments, _ = operator_shapes(jnp.bfloat16)
    few, many = (
        tpu_compiler.cycles(compile_for("v5e:2x2", layers(n), *arguments)) for n in (10, 20)
    )
    assert many.kernels == {name: 2 * times for name, times in few.kernels.items()}
    assert many.kernel_bytes == 2 * few.kernel_bytes
    assert 1.5 < many.xla / few.xla <= 2.1


@pytest.mark.slow
def test_operator_in_float32(compile_for):
    compile_for("v5e:2x2", operator, *operator_shapes(jnp.float32))


@pytest.mark.slow
def test_states_and_a_rest(compile_for):
    """A length that the chunks do not divide, states in and out, few pairs."""
    state = jax.ShapeDtypeStruct((2, 8, WIDTH, 4, 2), jnp.float32)

    def make_function(choice):
        def loss(state, *arguments):
            y, last = s4d(*arguments, initial_state=state, return_state=True, implementation=choice)
            return jnp.sum(y.astype(jnp.float32)) + jnp.sum(last)

        return jax.grad(loss, argnums=(0, 1, 2, 3, 4))

    *arguments, _ = operator_shapes(jnp.bfloat16, length=300, num_pairs=4)
    compile_for("v5e:2x2", make_function, state, *arguments)


@pytest.mark.parametrize("topology", topologies(quick=["v5e:2x2"]))
def test_block(compile_for, topology):
    config = ModelConfig(width=WIDTH)

    def make_block(choice):
        apply = functools.partial(s4d, implementation=choice)
        return Block(config, apply_s4d=apply, rngs=nnx.Rngs(0))

    abstract = jax.eval_shape(lambda: make_block(None))
    params = nnx.split(abstract, nnx.Param)[1]
    x = jax.ShapeDtypeStruct((8, 256, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((8, WIDTH), jnp.bfloat16)

    def make_function(choice):
        graphdef = nnx.split(jax.eval_shape(lambda: make_block(choice)), nnx.Param)[0]

        def loss(params, x, c):
            y = nnx.merge(graphdef, params)(x, c)
            return jnp.sum(jnp.square(y.astype(jnp.float32)))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))

    compile_for(topology, make_function, params, x, c)
