"""Which columns of a parquet file are the image and the label: by their types, or as configured."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from diffussm_jax.config import DataConfig
from diffussm_jax.errors import UserError


class Columns(NamedTuple):
    """The columns that are read.

    Attributes:
        image: a column of bytes, or of a struct that has them, as Hugging Face's Image feature.
        label: a column of integers; None where there are no labels.
        class_names: of a ClassLabel; None where nothing names the integers.
    """

    image: str
    label: str | None
    class_names: list[str] | None


def find_columns(schema: pa.Schema, config: DataConfig, *, named: str) -> Columns:
    """Find the columns of a data set.

    Raises:
        UserError: there is no such column, or more than one.
    """
    features = _features(schema)
    image = _pick(
        config.image_column,
        [
            [x.name for x in schema if features.get(x.name, {}).get("_type") == "Image"],
            [x.name for x in schema if pa.types.is_struct(x.type) and has_bytes(x.type)],
            [x.name for x in schema if has_bytes(x.type)],
        ],
        schema,
        field="data.image_column",
        named=named,
    )
    if image is None:
        raise UserError(f"{named} has no column of images; {_list(schema)}")
    if not has_bytes(schema.field(image).type):
        kind = schema.field(image).type
        raise UserError(f"config.data.image_column: {image!r} of {named} is {kind}, not bytes")
    label = _find_label(schema, config, features, named=named)
    names = features.get(label or "", {}).get("names")
    return Columns(image, label, None if names is None else [str(x) for x in names])


def has_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes, or a struct with a field of them named `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and has_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _find_label(
    schema: pa.Schema, config: DataConfig, features: dict[str, dict], *, named: str
) -> str | None:
    integers = [x.name for x in schema if pa.types.is_integer(x.type)]
    classes = [x for x in integers if features.get(x, {}).get("_type") == "ClassLabel"]
    is_free = config.num_classes == 0 and config.label_column is None
    if is_free and len(classes or integers) > 1:  # the model does not ask
        return None
    label = _pick(
        config.label_column, [classes, integers], schema, field="data.label_column", named=named
    )
    if label is not None and label not in integers:
        kind = schema.field(label).type
        raise UserError(f"config.data.label_column: {label!r} of {named} is {kind}, not integers")
    if label is None and config.num_classes:
        raise UserError(
            f"{named} has no column of classes; {_list(schema)}: set --config.data.num_classes=0 "
            "to train without labels"
        )
    return label


def _pick(
    given: str | None,
    candidates: Sequence[Sequence[str]],
    schema: pa.Schema,
    *,
    field: str,
    named: str,
) -> str | None:
    """The given column, or the only one of the first kind that has any."""
    if given is not None:
        if given not in schema.names:
            raise UserError(f"config.{field}: {named} has no column {given!r}; {_list(schema)}")
        return given
    names = next(filter(None, candidates), [])
    if len(names) > 1:
        raise UserError(f"{named} may mean {' or '.join(names)}: set --config.{field}={names[0]}")
    return names[0] if names else None


def _features(schema: pa.Schema) -> dict[str, dict]:
    """What Hugging Face's libraries note of the columns; {} where nothing is."""
    try:
        text = (schema.metadata or {})[b"huggingface"]
        features = json.loads(text)["info"]["features"]
        return {name: x for name, x in features.items() if isinstance(x, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _list(schema: pa.Schema) -> str:
    return "it has " + ", ".join(f"{x.name} ({x.type})" for x in schema)
