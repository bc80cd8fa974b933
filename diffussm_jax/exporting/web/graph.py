"""The network of a run as one ONNX graph: a call of x_t, what the model is told, and labels.

jax2onnx converts the call, after whatever depends on the parameters alone has been computed
(`folding`). An SSM is then one matrix product for each channel, whose matrix is made of the filter
when the graph is loaded, and beyond 128 tokens a chain of such products.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, Int

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.web.folding import Call, evaluate, folded
from diffussm_jax.models import create_model
from diffussm_jax.ops.attention import attention
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.ops.s4d import Implementation, s4d

INPUTS = ("x_t", "told", "labels")
MAX_BYTES = int(1.9 * 2**30)  # protobuf ends at 2 GiB
OPSET = 21  # jax2onnx's own default has operators that ONNX Runtime Web does not know


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
    num_bytes = sum(x.nbytes for x in closed.consts)
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"config.export.format = 'web': the network takes {num_bytes / 2**30:.1f} GiB, and a "
            "file of a page at most 1.9"
        )
    try:
        return _converted(closed, inputs, convert)
    except NotImplementedError as error:
        mixers = ", ".join(config.model.pattern) if config.model.name == "dit" else "s4d"
        raise UserError(
            f"config.export.format = 'web': jax2onnx cannot convert config.model.name = "
            f"{config.model.name!r} with mixers {mixers}: {error}"
        ) from error


def _converted(closed: ClosedJaxpr, inputs: list[Any], convert: Callable[..., Any]) -> bytes:
    """A trace as an ONNX file.

    jax2onnx would compute and store what is made of constants alone: they are inputs for it.
    """
    names = [f"constant_{i}" for i in range(len(closed.consts))]

    def call(*values: Array) -> Array:
        constants = dict(zip(closed.jaxpr.constvars, values[len(inputs) :]))
        return evaluate(closed.jaxpr, constants, values[: len(inputs)])[0]

    proto = convert(
        call,
        [*inputs, *closed.consts],
        opset=OPSET,
        input_names=[*INPUTS[: len(inputs)], *names],
        output_names=["prediction"],
    )
    return _with_constants(proto, dict(zip(names, closed.consts)))


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
