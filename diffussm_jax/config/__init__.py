"""The configuration of a run: `schema` has every field, `rules` what a type cannot say, `parsing` reads both."""

import dataclasses
import json
from typing import Any

from diffussm_jax.config import parsing, rules
from diffussm_jax.config.schema import (
    DIT_SIZES,
    SIZES,
    AutoencoderConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    EvaluateConfig,
    ExportConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PlanConfig,
    SampleConfig,
    TrainingConfig,
)

__all__ = [
    "DIT_SIZES",
    "SIZES",
    "AutoencoderConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EvaluateConfig",
    "ExportConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlanConfig",
    "SampleConfig",
    "TrainingConfig",
    "from_dict",
    "to_json",
]


def from_dict(values: Any) -> Config:
    """Build and validate a Config from nested mappings; missing fields take their default.

    Raises:
        ConfigError: in one line that names the field, the value and the mend.
    """
    config = parsing.build(Config, values)
    rules.check(config)
    return config


def to_json(config: Config) -> str:
    """The resolved config, as written into a work directory."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
