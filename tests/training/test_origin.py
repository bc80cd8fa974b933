"""The first operation whose output is not finite, in functions where it is known."""

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.training.origin import find_origin


def test_finite_functions_have_none():
    assert find_origin(lambda x: jnp.sqrt(x).sum(), jnp.ones(3)) is None


def test_the_operation_is_found_behind_others():
    origin = find_origin(lambda x: jnp.sin(jnp.log(x - 1) * 2).sum(), jnp.ones(3))
    assert origin.operation == "log"
    assert "3 of 3 not finite" in origin.output
    assert "magnitudes 0 .. 0" in origin.inputs[0]


def test_an_argument_that_is_not_finite_is_named():
    assert find_origin(jnp.sum, jnp.array([1, jnp.nan])).operation == "argument"


def test_what_is_masked_is_no_origin():
    def function(x):
        return jnp.where(x > 0, jnp.log(x), 0).sum() + jnp.exp(x * 1000).sum()

    origin = find_origin(function, jnp.array([0.0, 1.0]))
    assert origin.operation == "exp"


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_scans_and_calls_are_opened(wrap):
    """The carry halves from 4: at iteration 3 it is 0.5, whose acosh is NaN."""

    def body(x, _):
        return x / 2, wrap(jnp.arccosh)(x)

    origin = find_origin(lambda x: jax.lax.scan(body, x, length=5)[1], jnp.float32(4))
    assert origin.scans == ("3 (from 0) of 5",)
    assert origin.operation in ("acosh", "sqrt", "log")


def test_the_backward_pass_is_searched_too():
    """sqrt is finite at 0 and its derivative is not."""
    loss = jax.jit(lambda x: jax.lax.scan(lambda c, y: (c + jnp.sqrt(y), None), 0.0, x)[0])
    x = jnp.array([1.0, 0.0, 2.0])
    assert find_origin(loss, x) is None
    origin = find_origin(jax.grad(loss), x)
    assert origin.operation in ("div", "rsqrt", "pow")


def test_places_are_lines_of_the_package():
    from diffussm_jax.diffusion.gaussian import normal_kl

    zero = jnp.zeros(3)
    origin = find_origin(normal_kl, zero, zero + 200, zero, zero)
    assert origin.operation == "exp"
    assert origin.place.startswith("diffusion/gaussian.py:")
    assert "(normal_kl)" in origin.place
