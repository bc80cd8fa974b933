"""Fields of the network that no shape of a parameter shows, where two networks differ in them."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffussm_jax.config import ModelConfig
from diffussm_jax.config.sizes import pair

Fields = Mapping[str, Sequence[str]]

# By the module of a block whose parameters mean something else under another value. `ssm` is that
# of DiffuSSM, the others are mixers.
OF_MIXERS: Fields = {
    "attention": ("num_heads",),
    "s4d": ("scan_orders",),
    "delta_conv": ("delta_gate", "pyramid"),
    "convnext": ("modulate_convolved",),
}
# Likewise, but images of another size ask for another value.
OF_STEPS: Fields = {"s4d": ("dt_rate",), "ssm": ("dt_rate",)}
OF_POSITIONS = ("position", "position_scale")  # which all layers see
_MAY_BE_PAIRS = ("dt_rate", "position_scale")


def differences(ours: ModelConfig, theirs: ModelConfig, fields: Fields) -> dict[str, str]:
    """The first field in which a module that both networks have differs, in words, by module."""
    in_both = _modules(ours) & _modules(theirs)
    found = {
        module: difference(ours, theirs, names)
        for module, names in fields.items()
        if module in in_both
    }
    return {module: text for module, text in found.items() if text is not None}


def difference(ours: ModelConfig, theirs: ModelConfig, names: Sequence[str]) -> str | None:
    """The first of some fields in which two networks differ, in words; None if they are equal."""
    for name in names:
        here, there = (getattr(model, name) for model in (ours, theirs))
        if _value(name, here) != _value(name, there):
            return f"model.{name} is {here!r} here and was {there!r} there"
    return None


def _modules(model: ModelConfig) -> set[str]:
    return {"ssm"} if model.name == "diffussm" else set(model.pattern)


def _value(name: str, value: Any) -> Any:
    return pair(value) if name in _MAY_BE_PAIRS else value
