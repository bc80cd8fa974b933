"""A function's trace in which nothing is left that does not depend on its inputs.

JAX's own tracing stages everything. Here what is known is computed at once: the filters of an SSM,
position codes, tables. A known array that is only rearranged from a much smaller one is rearranged
in the trace, so that a file holds the small one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float

# A constant that is so many times larger than what it is rearranged from is not stored.
MAX_GROWTH = 4
REARRANGING = (
    "broadcast_in_dim",
    "concatenate",
    "reshape",
    "slice",
    "squeeze",
    "stack",
    "tile",
    "transpose",
)

Call = Callable[..., Float[Array, "b h w c"]]


def folded(call: Call, *inputs: jax.ShapeDtypeStruct) -> Call:
    """The same function, whose trace has what depends on its inputs, and no loops."""
    with jax.disable_jit():  # which makes loops over layers and chunks a row of layers and chunks
        closed = jax.make_jaxpr(call)(*inputs)

    def run(*values: Array) -> Array:
        constants = dict(zip(closed.jaxpr.constvars, map(_known, closed.consts)))
        return _traced(evaluate(closed.jaxpr, constants, values)[0])

    return run


class Known(NamedTuple):
    """A value that does not depend on the inputs.

    Attributes:
        origin: the equation that rearranged other known values into it; None for any other.
        stored: the least numbers that it can be rearranged from.
    """

    value: Any
    stored: int
    origin: tuple[Any, list["Known"]] | None = None


def _known(value: Any) -> Known:
    return Known(value, np.size(value))


def evaluate(jaxpr: Jaxpr, values: dict[Any, Any], inputs: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, at once where all operands are `Known`; the rest is traced.

    Args:
        values: of its constants, by their variables.
    """
    values = values | dict(zip(jaxpr.invars, inputs))

    def read(var: Any) -> Any:
        return _known(var.val) if isinstance(var, Literal) else values[var]

    for equation in jaxpr.eqns:
        operands = [read(var) for var in equation.invars]
        if inner := _inner(equation.params):
            constants = dict(zip(inner.jaxpr.constvars, map(_known, inner.consts)))
            results = evaluate(inner.jaxpr, constants, operands)
        elif all(isinstance(operand, Known) for operand in operands):
            results = _compute(equation, operands)
        else:
            results = _bind(equation, [_traced(operand) for operand in operands])
        values.update(zip(equation.outvars, results))
    return [read(var) for var in jaxpr.outvars]


def _inner(params: dict[str, Any]) -> ClosedJaxpr | None:
    """What a call of a function calls; its rules of differentiation are not needed."""
    for name in ("jaxpr", "call_jaxpr"):
        if isinstance(params.get(name), Jaxpr):
            return ClosedJaxpr(params[name], ())
        if isinstance(params.get(name), ClosedJaxpr):
            return params[name]
    return None


def _compute(equation: Any, operands: list[Known]) -> list[Known]:
    with jax.ensure_compile_time_eval():
        results = [np.asarray(x) for x in _bind(equation, [jnp.asarray(x.value) for x in operands])]
    if equation.primitive.name not in REARRANGING:
        return list(map(_known, results))
    stored = sum(operand.stored for operand in operands)
    return [Known(x, min(x.size, stored), (equation, operands)) for x in results]


def _traced(operand: Any) -> Any:
    """An operand of an equation in the graph: of a large constant, how it is rearranged."""
    if not isinstance(operand, Known):
        return operand
    if operand.origin is None or np.size(operand.value) <= MAX_GROWTH * operand.stored:
        return jnp.asarray(operand.value)
    equation, operands = operand.origin
    return _bind(equation, [_traced(x) for x in operands])[0]


def _bind(equation: Any, operands: list[Any]) -> list[Any]:
    bind = IN_PARTS.get(equation.primitive.name, equation.primitive.bind)
    results = bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def _stack(*arrays: Array, axis: int) -> Array:
    return jax.lax.concatenate([jax.lax.expand_dims(x, [axis]) for x in arrays], axis)


def _unstack(array: Array, *, axis: int) -> list[Array]:
    indices = range(array.shape[axis])
    return [jax.lax.index_in_dim(array, i, axis, keepdims=False) for i in indices]


def _tile(array: Array, *, reps: tuple[int, ...]) -> Array:
    shape = [n for pair in zip(reps, array.shape) for n in pair]
    kept = range(1, 2 * array.ndim, 2)
    repeated = jax.lax.broadcast_in_dim(array, shape, kept)
    return repeated.reshape([rep * n for rep, n in zip(reps, array.shape)])


# Primitives that jax2onnx does not know, made of such as it does.
IN_PARTS: dict[str, Callable[..., Any]] = {"stack": _stack, "tile": _tile, "unstack": _unstack}
