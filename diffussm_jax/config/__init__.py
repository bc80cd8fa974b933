"""The configuration of a run.

`schema` has every field (those of the network come from `network`, of what is learned from
`objective`, of the data from `images`, of edits from `editing`), `rules` what a type cannot say,
and `parsing` builds a config and names its mistakes. `config_file` reads one of `configs/`, and
`drawn` says what the config of a model becomes at another size.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from diffussm_jax.config import parsing, rules
from diffussm_jax.config.editing import EditConfig
from diffussm_jax.config.images import AutoencoderConfig, DataConfig
from diffussm_jax.config.network import (
    DICO_SIZES,
    DIT_SIZES,
    FCDM_SIZES,
    SIZES,
    AttentionImplementation,
    DeltaGate,
    MixerName,
    ModelConfig,
    StackImplementation,
)
from diffussm_jax.config.objective import DiffusionConfig, DistillConfig, GuidanceConfig
from diffussm_jax.config.schema import (
    CheckpointConfig,
    Config,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    MeshConfig,
    OptimizerConfig,
    PlanConfig,
    SampleConfig,
    TrainingConfig,
)

__all__ = [
    "DICO_SIZES",
    "DIT_SIZES",
    "FCDM_SIZES",
    "SIZES",
    "AttentionImplementation",
    "AutoencoderConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeltaGate",
    "DiffusionConfig",
    "DistillConfig",
    "EditConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GuidanceConfig",
    "InspectConfig",
    "MeshConfig",
    "MixerName",
    "ModelConfig",
    "OptimizerConfig",
    "PlanConfig",
    "SampleConfig",
    "StackImplementation",
    "TrainingConfig",
    "from_dict",
    "to_json",
]


def from_dict(values: Any, options: Mapping[str, str | bool] | None = None) -> Config:
    """Build a Config from nested mappings and check its rules; missing fields take their default.

    Args:
        options: what the command line gives, by the dotted names of the fields that it replaces.

    Raises:
        ConfigError: in one line that names the field, the value and the mend.
    """
    config = parsing.build(Config, values)
    for field, given in (options or {}).items():
        config = parsing.with_option(config, field, given)
    rules.check(config)
    return config


def to_json(config: Config) -> str:
    """The config with all its fields, as a work directory keeps it."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
