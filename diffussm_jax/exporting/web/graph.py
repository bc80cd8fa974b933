"""The network of a run as one ONNX graph: a call of x_t, what the model is told, and labels.

jax2onnx converts the call. Before that, whatever depends on the parameters alone is computed here:
filters, position codes, tables. An SSM is then one matrix product for each channel, whose matrix is
made of the filter when the graph is loaded, and beyond 128 tokens a chain of such products.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float, Int

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.models import create_model
from diffussm_jax.ops.attention import attention
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.ops.s4d import Implementation, s4d

INPUTS = ("x_t", "told", "labels")
OPSET = 21  # jax2onnx's own default has operators that ONNX Runtime Web does not know
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


def model_graph(config: Config, params: dict, *, num_images: int) -> bytes:
    """The network as an ONNX file, float32, for calls with `num_images` images.

    Its inputs are x_t [b h w c], what the model is told [b k] and, with classes, labels [b]; its
    output is the prediction [b h w c] without a learned variance.

    Raises:
        UserError: jax2onnx is not installed, or cannot convert the network.
    """
    convert = _converter()
    inputs = [
        jax.ShapeDtypeStruct((num_images, *config.grid), jnp.float32),
        jax.ShapeDtypeStruct((num_images, len(config.conditions)), jnp.float32),
        jax.ShapeDtypeStruct((num_images,), jnp.int32),
    ][: 3 if config.data.num_classes else 2]
    closed = jax.make_jaxpr(folded(network(config, params), *inputs))(*inputs)
    # jax2onnx would compute and store what is made of constants alone: they are inputs for it.
    names = [*INPUTS[: len(inputs)], *(f"constant_{i}" for i in range(len(closed.consts)))]

    def call(*values: Array) -> Array:
        bound = zip(closed.jaxpr.constvars, values[len(inputs) :])
        return _evaluate(closed.jaxpr, dict(bound), values[: len(inputs)])[0]

    try:
        proto = convert(
            call,
            [*inputs, *closed.consts],
            opset=OPSET,
            input_names=names,
            output_names=["prediction"],
        )
    except NotImplementedError as error:
        mixers = ", ".join(config.model.pattern) if config.model.name == "dit" else "s4d"
        raise UserError(
            f"config.export.format = 'web': jax2onnx cannot convert config.model.name = "
            f"{config.model.name!r} with mixers {mixers}: {error}"
        ) from error
    return _with_constants(proto, dict(zip(names[len(inputs) :], closed.consts)))


def _with_constants(proto: Any, constants: dict[str, Array]) -> bytes:
    """The file of a graph, with these inputs as constants."""
    from onnx.numpy_helper import from_array

    inputs = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    arrays = (from_array(np.asarray(value), name) for name, value in constants.items())
    proto.graph.initializer.extend(arrays)
    return proto.SerializeToString()


def network(config: Config, params: dict) -> Call:
    """The network as a function of the graph's inputs, in float32."""
    plain = dataclasses.replace(
        config.model, dtype="float32", residual_dtype="float32", remat="none"
    )
    config = dataclasses.replace(config, model=plain)
    in_chunks = Implementation("chunked", num_blocks=1, backend="cpu")
    make = functools.partial(
        create_model,
        config,
        apply_s4d=functools.partial(s4d, implementation=in_chunks),
        attend=functools.partial(attention, implementation="xla"),
        convolve=convolution,
        fuse=lambda num_rows: None,
    )
    structure = nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    model = nnx.merge(structure, jax.tree.map(jnp.asarray, params))

    def call(
        x_t: Float[Array, "b h w c"], told: Float[Array, "b k"], y: Int[Array, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        return model(x_t, told, y)[..., : config.grid[2]]

    return call


def folded(call: Call, *inputs: jax.ShapeDtypeStruct) -> Call:
    """The same function, whose trace has what depends on its inputs, and no loops."""
    with jax.disable_jit():  # which makes loops over layers and chunks a row of layers and chunks
        closed = jax.make_jaxpr(call)(*inputs)

    def run(*values: Array) -> Array:
        constants = dict(zip(closed.jaxpr.constvars, map(_known, closed.consts)))
        return _traced(_evaluate(closed.jaxpr, constants, values)[0])

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


def _evaluate(jaxpr: Jaxpr, values: dict[Any, Any], inputs: Sequence[Any]) -> list[Any]:
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
            results = _evaluate(inner.jaxpr, constants, operands)
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


def _converter() -> Callable[..., Any]:
    # It reports each of its plugins that a version of JAX has nothing for.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(
            "config.export.format = 'web' needs jax2onnx, which is not installed: "
            "pip install 'diffussm-jax[web]'"
        ) from error
    return to_onnx
