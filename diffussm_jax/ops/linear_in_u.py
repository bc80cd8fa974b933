"""Derivatives of an operator that is a kernel, in forward mode, in reverse mode, and in both.

y and the last state are linear in the input u and the first state x, and the SSM's filters depend
on neither. Write S for the operator, p for the SSM, a dot for a tangent and a bar for a cotangent:
    S(p) (u, x)                                        the value
    S(p) (u', x') + (dS/dp p') (u, x)                  its tangent
    (u-, x-, p-) = transpose of the tangent's map      its gradients
An SSM that is constant, as in the time derivative of a network, leaves only the first term of the
tangent: the same kernel, run on the tangents of u and x. Reverse mode in JAX transposes the
tangent's map, and here the transpose is the kernel that yields all gradients at once. Since the
tangent is the operator again, a loss of a value and its tangent has gradients too.

Plain JAX code needs none of this: JAX differentiates it by the same rules.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call

from diffussm_jax.shapes import SSM, State, Tokens

Operands = tuple[Tokens, SSM, State | None]


class Kernels(NamedTuple):
    """The operator as two kernels, and in plain JAX; the results are a pytree of arrays.

    Attributes:
        run: maps operands (u, ssm, state) to the results.
        gradients: maps the operands and the results' cotangents to the operands' cotangents.
        plain: equals `run`, and JAX can differentiate it; gives the tangents along the SSM.
    """

    run: Callable[..., Any]
    gradients: Callable[[Operands, Any], Operands]
    plain: Callable[..., Any]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def linear_in_u(kernels: Kernels, u: Tokens, ssm: SSM, state: State | None) -> Any:
    """kernels.run(u, ssm, state), with derivatives.

    Raises:
        NotImplementedError: the second derivative along the SSM is asked for.
    """

    def transpose(ssm: SSM, cotangents: Any) -> tuple[Tokens, State | None]:
        # Without values of u and the state the gradients of the SSM would be wrong; none is used.
        zeros = jax.tree.map(jnp.zeros_like, (u_like, state_like))
        d_u, _, d_state = kernels.gradients((zeros[0], ssm, zeros[1]), cotangents)
        return d_u, d_state

    u_like, state_like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (u, state))
    return linear_call(lambda ssm, x: kernels.run(x[0], ssm, x[1]), transpose, ssm, (u, state))


@functools.partial(linear_in_u.defjvp, symbolic_zeros=True)
def _jvp(kernels: Kernels, operands: Operands, tangents: Any) -> tuple[Any, Any]:
    results = linear_in_u(kernels, *operands)
    _, ssm, _ = operands
    is_constant = all(isinstance(x, SymbolicZero) for x in tangents[1])
    tangents = _without_symbols(tangents)
    if is_constant:
        return results, linear_in_u(kernels, tangents[0], ssm, tangents[2])
    tangent = functools.partial(_tangent, kernels)
    return results, linear_call(tangent, kernels.gradients, _once(operands), tangents)


def _tangent(kernels: Kernels, operands: Operands, tangents: Operands) -> Any:
    u, ssm, state = operands
    d_u, d_ssm, d_state = tangents
    along_u = kernels.run(d_u, ssm, d_state)
    _, along_ssm = jax.jvp(lambda ssm: kernels.plain(u, ssm, state), (ssm,), (d_ssm,))
    return jax.tree.map(jnp.add, along_u, along_ssm)


@jax.custom_jvp
def _once(operands: Operands) -> Operands:
    """The operands as they are; the kernels have no derivatives of their own."""
    return operands


@_once.defjvp
def _refuse(primals: Any, tangents: Any) -> tuple[Any, Any]:
    raise NotImplementedError(
        "s4d has no second derivative along its SSM as a kernel (pallas_tpu); take implementation "
        "'chunked'"
    )


def _without_symbols(tangents: Any) -> Any:
    """Put arrays of zeros in place of the symbols for zero.

    `linear_call` takes only what is linear in the tangents, which a constant is not: these zeros
    are an empty part of a tangent, padded.
    """
    leaves = jax.tree.leaves(tangents)
    empty = next(x for x in leaves if not isinstance(x, SymbolicZero)).ravel()[:0]

    def array(x: Any) -> jax.Array:
        if not isinstance(x, SymbolicZero):
            return x
        return jnp.pad(empty.astype(x.dtype), (0, math.prod(x.shape))).reshape(x.shape)

    return jax.tree.map(array, tangents)
