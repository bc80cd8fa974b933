"""Calls of Pallas kernels in the text of a compiled program, each of which compiles alone too."""

import json
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

_TARGET = "tpu_custom_call"
_DTYPES = {
    "bf16": "bfloat16",
    "c64": "complex64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "pred": "bool",
    "s8": "int8",
    "s16": "int16",
    "s32": "int32",
    "s64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
}
_ARRAY = re.compile(rf"\b(?P<dtype>{'|'.join(_DTYPES)})\[(?P<shape>[\d,]*)\]")
_CALL = re.compile(
    rf'%(?P<name>\w+)(?:\.\d+)? = (?P<results>.*) custom-call\(.*custom_call_target="{_TARGET}", '
    r"operand_layout_constraints=\{(?P<operands>.*?)\}, (?P<rest>(?:[\w-]+=.*, )?)backend_config="
)
_OP_NAME = re.compile(r'op_name="(?:[^"]*/)?(?P<name>\w+)/pallas_call"')
_ALIAS = re.compile(r"\{(?P<result>\d*)\}: \((?P<operand>\d+), \{\}\)")
# What of a call's configuration decides how its kernel compiles: code, options and limits.
_CONFIG = ("custom_call_config", "flag_configs", "scoped_memory_configs")
# Where the program around a call (from TPU7x on) placed its arrays, which binds no call alone.
_PLACEMENT = ("input_memory_space_colors", "output_memory_space_colors")


class KernelCall(NamedTuple):
    """A call of a kernel, as far as its cycles depend on it, in the words of a program's text.

    Attributes:
        name: the name that `pallas_call` was given.
        config: the kernel's code and options, in JSON.
        operands: types of the arrays that it reads.
        results: types of the arrays that it writes.
        aliases: results that are written in an operand's place.
    """

    name: str
    config: str
    operands: str
    results: str
    aliases: str

    @property
    def num_bytes(self) -> int:
        """What the call reads and writes, each array once."""
        return num_bytes(self.operands) + num_bytes(self.results)

    def lower(self, device: jax.Device) -> jax.stages.Lowered:
        """Lower a program for one chip that is this call alone."""
        place = SingleDeviceSharding(device)
        operands = [jax.ShapeDtypeStruct(*x, sharding=place) for x in arrays(self.operands)]
        results = [jax.ShapeDtypeStruct(*x) for x in arrays(self.results)]
        aliases = {int(x["operand"]): int(x["result"] or 0) for x in _ALIAS.finditer(self.aliases)}
        run = jax.ffi.ffi_call(
            _TARGET,
            results if len(results) > 1 else results[0],
            input_output_aliases=aliases,
            custom_call_api_version=1,
            legacy_backend_config=self.config,
        )
        return jax.jit(lambda *x: run(*x), donate_argnums=tuple(aliases)).lower(*operands)


def read_call(line: str) -> KernelCall | None:
    """The call that a line of a compiled program is, or None.

    Raises:
        ValueError: it is a call in another form than is known.
    """
    if f'custom_call_target="{_TARGET}"' not in line:
        return None
    if not (match := _CALL.search(line)):
        raise ValueError(f"a kernel's call cannot be read: {line.strip()[:200]}")
    config, _ = json.JSONDecoder().raw_decode(line, match.end())
    custom = config["custom_call_config"]
    custom |= {name: [] for name in _PLACEMENT if name in custom}
    named = _OP_NAME.search(match["rest"]) or match
    return KernelCall(
        name=named["name"],
        config=json.dumps({name: config[name] for name in _CONFIG if name in config}),
        operands=_without_layouts(match["operands"]),
        results=_without_layouts(match["results"]),
        aliases=", ".join(x[0] for x in _ALIAS.finditer(match["rest"])),
    )


def num_bytes(text: str) -> int:
    """The size of all arrays whose types a piece of a program's text has."""
    return sum(math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype in arrays(text))


def arrays(text: str) -> list[tuple[tuple[int, ...], Any]]:
    """The shapes and dtypes of the array types in a piece of a program's text."""
    return [
        (tuple(int(x) for x in match["shape"].split(",") if x), _DTYPES[match["dtype"]])
        for match in _ARRAY.finditer(text)
    ]


def _without_layouts(arrays: str) -> str:
    return ", ".join(match[0] for match in _ARRAY.finditer(arrays))
