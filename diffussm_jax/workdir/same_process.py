"""Whether another network may stand beside a model: as its guide, or as its teacher."""

from collections.abc import Sequence

from diffussm_jax.config import Config, parsing
from diffussm_jax.errors import UserError

# What two networks have in common that predict the same for the same inputs.
OF_THE_PROCESS = (
    "grid",
    "data.num_classes",
    "diffusion.process",
    "diffusion.num_steps",
    "diffusion.schedule",
    "diffusion.prediction",
    "guidance.max_scale",  # an input of the model
)


def require_same(
    config: Config, other: Config, fields: Sequence[str], *, named: str, mend: str
) -> None:
    """Raise UserError naming the first field in which another network differs from the model.

    Args:
        named: the field that chose it and its folder, as `config.sample.autoguidance: runs/worse`.
        mend: what the user can do.
    """
    for field in fields:
        ours, theirs = (parsing.get_field(c, field) for c in (config, other))
        if ours != theirs:
            raise UserError(
                f"{named} holds a run with {field} = {theirs!r}, and the model has {ours!r}: {mend}"
            )
