"""The SSM of a stack where an axis of the mesh splits the tokens of each image.

It runs inside `jax.shard_map`. As in `parallel.s4d`, a part of the tokens needs from the others
only the state that enters it. The backward pass is the mirror image: there a part needs the
gradient of the state that leaves it, to which all parts add that read this state. Each pass takes
one small kernel and one `all_gather` of states.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.ops.stack_tpu.ssm import LayerNumber, StackedSSM
from diffussm_jax.ops.stack_tpu.ssm_states import entering_part
from diffussm_jax.ops.stack_tpu.ssm_tables import PackedState, SSMTables


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
        return self._chain(layer, self.input_planes(u)[:, :, :, None], tables, of_gradient=False)

    def d_leaving(self, dy: Float[Array, "b y_rows j"], tables: SSMTables) -> PackedState:
        """The gradient of the state after the last token that this part reads."""
        toward_entry = tuple(not backward for backward in self.reverse)
        mirrored = dataclasses.replace(self, reverse=toward_entry, gelu=False)
        dy = self.output_planes(dy)[None]
        return mirrored._chain(jnp.zeros(1, jnp.int32), dy, tables, of_gradient=True)

    def _chain(
        self,
        layer: LayerNumber,
        u: Float[Array, "L b m r d j"],
        tables: SSMTables,
        *,
        of_gradient: bool,
    ) -> PackedState:
        return entering_part(
            jax.lax.all_gather(self.leaving(layer, u, tables), self.axis),
            jax.lax.axis_index(self.axis),
            tables,
            block=self.step(u).block,
            tiling=self.tiling,
            of_gradient=of_gradient,
        )
