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
from diffussm_jax.ops.s4d import Implementation, abstract_ssm, s4d, s4d_with_state
from diffussm_jax.planning import tpu_compiler

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]
WIDTH, LIMIT_SECONDS = 128, 60


def topologies(mark):
    """All kinds of chips; all but v5e are marked."""
    return [
        pytest.param(x, marks=() if x == "v5e:2x2" else mark)
        for x in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
    ]


def operands(dtype, length=512, num_pairs=32):
    """An abstract u and SSM."""
    return jax.ShapeDtypeStruct((8, length, WIDTH), dtype), abstract_ssm(2, WIDTH, num_pairs)


def operator(implementation):
    def value_and_gradients(u, ssm):
        y, vjp = jax.vjp(functools.partial(s4d, implementation=implementation), u, ssm)
        return y, vjp(y)

    return value_and_gradients


@pytest.fixture(scope="module")
def compile_for():
    """Compile a function of abstract arrays for one chip of a topology, within the limit."""

    def compile_for(topology, make_function, *shapes):
        device = tpu_compiler.devices(topology)[0]
        implementation = Implementation("pallas_tpu", tiling=tiling_for(device.device_kind))
        start = time.monotonic()
        compiled = tpu_compiler.compile_for(device, make_function(implementation), *shapes)
        assert time.monotonic() - start < LIMIT_SECONDS
        text = compiled.as_text()
        assert "s4d_forward" in text
        assert "s4d_backward" in text
        return text

    return compile_for


@pytest.mark.parametrize("topology", topologies(pytest.mark.slow))
def test_operator(compile_for, topology):
    compile_for(topology, operator, *operands(jnp.bfloat16))


@pytest.mark.slow
def test_a_tangent_is_one_more_forward_kernel(compile_for):
    """Of a loss of value and tangent: two forward kernels and one backward kernel."""

    def make_function(implementation):
        run = functools.partial(s4d, implementation=implementation)

        def loss(u, ssm, d_u):
            y, tangent = jax.jvp(lambda u: run(u, ssm), (u,), (d_u,))
            return jnp.sum(jnp.square((y + jax.lax.stop_gradient(tangent)).astype(jnp.float32)))

        return jax.grad(loss, argnums=(0, 1))

    u, ssm = operands(jnp.bfloat16)
    kernels = tpu_compiler.cycles(compile_for("v5e:2x2", make_function, u, ssm, u)).kernels
    counts = {kind: 0 for kind in ("s4d_forward", "s4d_backward")}
    for name, times in kernels.items():
        counts[next(kind for kind in counts if kind in name)] += times
    assert counts == {"s4d_forward": 2, "s4d_backward": 1}


@pytest.mark.slow
def test_cycles_count_the_rounds_of_a_loop(compile_for):
    """Twenty layers in a scan cost twice ten; kernels are counted too, with their traffic."""

    def layers(n):
        def make_function(implementation):
            def loss(u, ssm):
                def layer(u, _):
                    y = s4d(u, ssm, implementation=implementation)
                    return y[..., :WIDTH] + y[..., WIDTH:], None

                return jnp.sum(jax.lax.scan(layer, u, length=n)[0].astype(jnp.float32))

            return jax.value_and_grad(loss)

        return make_function

    few, many = (
        tpu_compiler.cycles(compile_for("v5e:2x2", layers(n), *operands(jnp.bfloat16)))
        for n in (10, 20)
    )
    assert many.kernels == {name: 2 * times for name, times in few.kernels.items()}
    assert many.kernel_bytes == 2 * few.kernel_bytes
    assert 1.5 < many.xla / few.xla <= 2.1


@pytest.mark.slow
def test_operator_in_float32(compile_for):
    compile_for("v5e:2x2", operator, *operands(jnp.float32))


@pytest.mark.slow
def test_states_and_a_rest(compile_for):
    """A length that the chunks do not divide, states in and out, few pairs."""
    state = jax.ShapeDtypeStruct((2, 8, WIDTH, 4, 2), jnp.float32)

    def make_function(implementation):
        def loss(state, u, ssm):
            y, last = s4d_with_state(u, ssm, initial_state=state, implementation=implementation)
            return jnp.sum(y.astype(jnp.float32)) + jnp.sum(last)

        return jax.grad(loss, argnums=(0, 1, 2))

    compile_for("v5e:2x2", make_function, state, *operands(jnp.bfloat16, length=300, num_pairs=4))


@pytest.mark.slow
@pytest.mark.parametrize("topology", topologies(pytest.mark.nightly))
def test_block(compile_for, topology):
    config = ModelConfig(width=WIDTH)

    def make_block(implementation):
        apply_s4d = functools.partial(s4d, implementation=implementation)
        return Block(config, apply_s4d=apply_s4d, rngs=nnx.Rngs(0))

    abstract = jax.eval_shape(lambda: make_block(None))
    params = nnx.split(abstract, nnx.Param)[1]
    x = jax.ShapeDtypeStruct((8, 256, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((8, WIDTH), jnp.bfloat16)

    def make_function(implementation):
        graphdef = nnx.split(jax.eval_shape(lambda: make_block(implementation)), nnx.Param)[0]

        def loss(params, x, c):
            y = nnx.merge(graphdef, params)(x, c)
            return jnp.sum(jnp.square(y.astype(jnp.float32)))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))

    compile_for(topology, make_function, params, x, c)
