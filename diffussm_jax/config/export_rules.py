"""Rules for exports, and for addresses on the hub."""

import re

from diffussm_jax.config import parsing
from diffussm_jax.config.parsing import require
from diffussm_jax.config.schema import Config

HUB = "hf://"
# Fields that name an export, or an autoencoder, to be read.
_MAY_BE_ON_HUB = (
    "training.init_from",
    "training.teacher",
    "sample.autoguidance",
    "autoencoder.name",
)


def check_export(config: Config) -> None:
    """Check where an export goes, and that only what is read is named on the hub."""
    options = config.export
    is_name = options.push_to is None or re.fullmatch(r"[\w.-]+/[\w.-]+", options.push_to)
    demand = "be USER/NAME of a repository on the hub"
    require(bool(is_name), "export.push_to", demand, options.push_to)
    for field in ("push_public", "push_dry_run"):
        demand = "be False where export.push_to is None"
        is_free = options.push_to is not None or not getattr(options, field)
        require(is_free, f"export.{field}", demand)
    for field in parsing.field_names(Config):
        value = parsing.get_field(config, field)
        is_on_hub = isinstance(value, str) and value.startswith(HUB)
        demand = f"not be at {HUB}, which serves --workdir, {', '.join(_MAY_BE_ON_HUB)} alone"
        require(not is_on_hub or field in _MAY_BE_ON_HUB, field, demand, value)
