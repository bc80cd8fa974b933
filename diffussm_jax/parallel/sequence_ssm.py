"""The SSM of a stack where an axis of the mesh splits the tokens of each image.

It runs inside `jax.shard_map`. As in `parallel.s4d`, a part of the tokens needs from the others
only the state that enters it. The backward pass is the mirror image: there a part needs the
gradient of the state that leaves it, to which all parts add that read this state. Each pass takes
one small kernel and one `all_gather` of states.
"""

import dataclasses

import jax
from jaxtyping import Array, Float

from diffussm_jax.ops import pairs
from diffussm_jax.ops.pallas_tpu.block import LANES
from diffussm_jax.ops.stack_tpu.ssm import LayerNumber, StackedSSM
from diffussm_jax.ops.stack_tpu.ssm_states import PackedState, conjugate, decay_over, entering_part
from diffussm_jax.ops.stack_tpu.ssm_tables import SSMTables


@dataclasses.dataclass(frozen=True)
class SequenceSSM(StackedSSM):
    """The SSM on a device's part of the tokens; the parts are equal runs, in the axis's order.

    y and du are those of the complete sequence. The gradients of the SSM are those through this
    part's tokens, so the caller sums them over the axis, as those of all other parameters.

    Attributes:
        axis: the mesh axis that splits the tokens.
    """

    axis: str = dataclasses.field(kw_only=True)

    def entering(
        self, layer: LayerNumber, u: Float[Array, "L b u_rows j"], tables: SSMTables
    ) -> PackedState:
        """The state before the first token that this part reads."""
        decay = decay_over(tables, self._num_chunks(u))
        return self._chain(self.added(layer, u, tables), decay, self.reverse)

    def d_leaving(self, dy: Float[Array, "b y_rows j"], tables: SSMTables) -> PackedState:
        """The gradient of the state after the last token that this part reads."""
        decay = conjugate(decay_over(tables, self._num_chunks(dy)))
        toward_entry = tuple(not backward for backward in self.reverse)
        return self._chain(self.d_entering(dy, tables), decay, toward_entry)

    def _num_chunks(self, x: Array) -> int:
        return self.m * x.shape[-1] // LANES

    def _chain(
        self, added: PackedState, decay: pairs.Pair, reverse: tuple[bool, ...]
    ) -> PackedState:
        parts = jax.lax.all_gather(added, self.axis)
        return entering_part(parts, jax.lax.axis_index(self.axis), decay, reverse)
