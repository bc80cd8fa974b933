"""What moves information between the tokens of a DiT's block: attention, or what can replace it."""

from typing import NamedTuple, Protocol, runtime_checkable

from flax import nnx

from diffussm_jax.config import MixerName, ModelConfig
from diffussm_jax.models.layers import ModulateRows
from diffussm_jax.models.mixers.attention import Attention
from diffussm_jax.models.mixers.convnext import ConvNeXt
from diffussm_jax.models.mixers.delta_conv import DeltaConv
from diffussm_jax.models.mixers.dico import DiCo
from diffussm_jax.models.mixers.s4d import S4DMixer
from diffussm_jax.ops.attention import Attend
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.ops.s4d import Operator
from diffussm_jax.shapes import Grid, Groups


@runtime_checkable
class Mixer(Protocol):
    """What mixes tokens [b l d], which are in raster order on a grid of l = height x width."""

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        """Give each token what it needs to know of the others; x itself is added by the block.

        Args:
            x: the residual stream.
            modulate: the block's LayerNorm, shift and scale, to be applied once: to x, or to what
                a mixer makes of it first.
        """
        ...


class Functions(NamedTuple):
    """What mixers call; on a mesh these come from `parallel/`."""

    attend: Attend
    apply_s4d: Operator
    convolve: Convolve


def create_mixer(
    name: MixerName, config: ModelConfig, *, functions: Functions, rngs: nnx.Rngs
) -> Mixer:
    """Make a mixer of a config's sizes."""
    match name:
        case "attention":
            return Attention(config, attend=functions.attend, rngs=rngs)
        case "s4d":
            return S4DMixer(config, apply_s4d=functions.apply_s4d, rngs=rngs)
        case "delta_conv":
            return DeltaConv(config, convolve=functions.convolve, rngs=rngs)
        case "convnext":
            return ConvNeXt(config, convolve=functions.convolve, rngs=rngs)
        case "dico":
            return DiCo(config, convolve=functions.convolve, rngs=rngs)
