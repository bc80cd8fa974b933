"""Where a value that is not finite arises: a function is run operation by operation on real arrays.

An operation with finite inputs and an output that is not finite is an origin. Only an origin whose
values reach the result is reported, since masked infinities are usual. An operation that is itself
a program (a scan, a jitted function) is run in one go, and opened where the origin is inside it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Operations that run a program on their own inputs, and the parameter that holds the program.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "linear_call": "callee",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """An operation that made infinite or NaN values of finite ones.

    Attributes:
        operation: JAX's name of the operation.
        place: file, line and function of this package that called it.
        scans: the iteration of each scan around it, outermost first, as "1 (from 0) of 4"; the
            layers of a model are a scan too.
        output: shape and range of the output, and how many values are not finite.
        inputs: shapes and ranges of the inputs.
    """

    operation: str
    place: str
    scans: tuple[str, ...]
    output: str
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        scans = "".join(f", in iteration {i} of a scan" for i in self.scans)
        inputs = "; ".join(self.inputs)
        return f"`{self.operation}` at {self.place}{scans}: {self.output}, of inputs {inputs}"


Origins = Sequence[Origin | None]


def find_origin(function: Callable, *args: Any) -> Origin | None:
    """Find the origin of the first output of `function(*args)` that is not finite.

    An argument that is not finite is an origin too, with the operation "argument".

    Returns:
        None if all outputs are finite.
    """
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)
    origins = [_argument_origin(leaf) for leaf in leaves]
    outputs = _run(closed.jaxpr, closed.consts, leaves, origins, ())[1]
    return next(filter(None, outputs), None)


def _run(
    jaxpr: core.Jaxpr, consts: Sequence, args: Sequence, origins: Origins, scans: tuple[str, ...]
) -> tuple[list, list[Origin | None]]:
    """The outputs of a program and the origin of each that is not finite."""
    values: dict[core.Var, tuple[Any, Origin | None]] = {}
    values.update(zip(jaxpr.constvars, ((const, None) for const in consts)))
    values.update(zip(jaxpr.invars, zip(args, origins, strict=True), strict=True))

    def read(var: core.Var | core.Literal) -> tuple[Any, Origin | None]:
        return (var.val, None) if isinstance(var, core.Literal) else values[var]

    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for number, eqn in enumerate(jaxpr.eqns):
        inputs, sources = zip(*map(read, eqn.invars)) if eqn.invars else ((), ())
        outputs = _evaluate(jaxpr, eqn, inputs)
        output_origins = _output_origins(eqn, inputs, sources, outputs, scans)
        values.update(zip(eqn.outvars, zip(outputs, output_origins), strict=True))
        for var in set(_variables(eqn)) - kept:
            if last_use[var] == number:
                del values[var]
    results = [read(var) for var in jaxpr.outvars]
    return [value for value, _ in results], [origin for _, origin in results]


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
    return [var for var in eqn.invars if not isinstance(var, core.Literal)]


def _evaluate(jaxpr: core.Jaxpr, eqn: core.JaxprEqn, inputs: Sequence) -> list:
    """Run one operation as a program of its own."""
    variables = list(dict.fromkeys(_variables(eqn)))
    pairs = zip(eqn.invars, inputs, strict=True)
    values = {var: x for var, x in pairs if not isinstance(var, core.Literal)}
    alone = jaxpr.replace(
        constvars=[],
        invars=variables,
        outvars=[var for var in eqn.outvars if not isinstance(var, core.DropVar)],
        eqns=[eqn],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    results = iter(core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*(values[v] for v in variables)))
    return [None if isinstance(var, core.DropVar) else next(results) for var in eqn.outvars]


def _output_origins(
    eqn: core.JaxprEqn,
    inputs: Sequence,
    sources: Origins,
    outputs: Sequence,
    scans: tuple[str, ...],
) -> list[Origin | None]:
    """The origin of each output of an operation."""
    bad = [_count_bad(output) for output in outputs]
    if not any(bad):
        return [None] * len(outputs)
    inherited = next(filter(None, sources), None)
    if inherited is None:
        inherited = _inside(eqn, inputs, scans)
    if inherited is None:
        worst = outputs[bad.index(max(bad))]
        inherited = Origin(
            eqn.primitive.name,
            _place(eqn),
            scans,
            _summary(worst),
            tuple(_summary(value) for value in inputs),
        )
    return [inherited if count else None for count in bad]


def _inside(eqn: core.JaxprEqn, inputs: Sequence, scans: tuple[str, ...]) -> Origin | None:
    """The origin within an operation that is itself a program, if there is one."""
    name = eqn.primitive.name
    if name == "scan":
        return _inside_scan(eqn.params, inputs, scans)
    if name not in _CALLS or _CALLS[name] not in eqn.params:
        return None
    inner = eqn.params[_CALLS[name]]
    jaxpr, consts = (
        (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())
    )
    _, origins = _run(jaxpr, consts, inputs, [None] * len(inputs), scans)
    return next(filter(None, origins), None)


def _inside_scan(params: dict, inputs: Sequence, scans: tuple[str, ...]) -> Origin | None:
    num_consts, num_carry = _scan_counts(params)
    length, body = params["length"], params["jaxpr"]
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    stacked = inputs[num_consts + num_carry :]
    order = range(length)[:: -1 if params["reverse"] else 1]
    for i in order:
        args = [*consts, *carry, *(x[i] for x in stacked)]
        where = (*scans, f"{i} (from 0) of {length}")
        carry, origins = _run(body.jaxpr, body.consts, args, [None] * len(args), where)
        if any(origins):
            return next(filter(None, origins))
        carry = carry[:num_carry]
    return None


def _scan_counts(params: dict) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many it carries."""
    if "ft_in" in params:  # from JAX 0.12 on
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def _argument_origin(leaf: Any) -> Origin | None:
    if not _count_bad(leaf):
        return None
    return Origin("argument", "the call", (), _summary(leaf), ())


def _summary(value: Any) -> str:
    """The dtype, shape and range of an array, and how many of its values are not finite."""
    array = jnp.asarray(value) if not isinstance(value, jax.Array) else value
    text = f"{array.dtype}{list(array.shape)}"
    if not (jnp.issubdtype(array.dtype, jnp.number) and array.size):
        return text
    if num_bad := _count_bad(array):
        text += f" with {num_bad} of {array.size} not finite"
    if num_bad == array.size:
        return text
    finite = jnp.isfinite(array)
    low = jnp.min(jnp.abs(array), where=finite, initial=jnp.inf)
    high = jnp.max(jnp.abs(array), where=finite, initial=0)
    return f"{text}, magnitudes {float(low):.3g} .. {float(high):.3g}"


def _count_bad(value: Any) -> int:
    if value is None or not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return 0
    return int(jnp.sum(~jnp.isfinite(value)))


def _place(eqn: core.JaxprEqn) -> str:
    """The innermost line of this package outside this file."""
    traceback: Any = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        parts = frame.file_name.rsplit("/diffussm_jax/", 1)
        if len(parts) == 2 and not __file__.endswith(parts[1]):
            return f"{parts[1]}:{frame.line_num} ({frame.function_name})"
    return "no line of this package"
