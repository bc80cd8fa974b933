"""The S4D operator on a closed sequence: after its last token comes the first one again.

Its state before the first token is that of the sequence repeated without end. A pass from zero over
all l tokens leaves x_l, and a turn k earlier left exp(p l k) x_l of it, so that
    x = sum_{k>=0} exp(p l k) x_l = x_l / (1 - exp(p l)).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffussm_jax.ops import pairs
from diffussm_jax.ops.s4d import (
    Direction,
    Implementation,
    ImplementationName,
    as_implementation,
    s4d,
    s4d_with_state,
)
from diffussm_jax.shapes import SSM, State, Tokens

# For each of several equal parts of the channels, whether its sequence is closed.
ClosedParts = tuple[bool, ...]


def circular_s4d(
    u: Tokens,
    ssm: SSM,
    *,
    direction: Direction = "both",
    implementation: ImplementationName | Implementation | None = None,
    closed: ClosedParts = (True,),
) -> Float[Array, "b l e"]:
    """`s4d` on the sequence repeated without end, of which it gives one period.

    Args:
        closed: the parts of the channels for which it is so; the others are `s4d`'s.
    """
    of_states = as_implementation(implementation).of_states
    _, left = s4d_with_state(u, ssm, direction=direction, implementation=of_states)
    state = periodic_state(left, ssm, u.shape[1], closed)
    return s4d(u, ssm, direction=direction, initial_state=state, implementation=implementation)


def periodic_state(left: State, ssm: SSM, length: int, closed: ClosedParts = (True,)) -> State:
    """The state that enters a closed sequence, from what one pass over it from zero leaves.

    It is zero in channels that are not closed.
    """
    re, im = pairs.each(lambda x: x[:, None], _one_less_decay(ssm, length))  # r 1 d n
    norm = jnp.square(re) + jnp.square(im)
    state = pairs.pack(pairs.multiply(pairs.unpack(left), (re / norm, -im / norm)))
    return jnp.where(_of_channels(closed, ssm), state, 0)


def one_turn(ssm: SSM, length: int, closed: ClosedParts = (True,)) -> SSM:
    """The SSM that on a closed sequence counts each of its `length` tokens once.

    Its gains are g (1 - exp(p l)), so its kernel is K[t] - K[t + l], whose sum over all turns is
    K[0] .. K[l - 1]: circular convolution with the filter that a sequence of this length sees.
    """
    gains = pairs.pack(pairs.multiply(pairs.unpack(ssm.gains), _one_less_decay(ssm, length)))
    return ssm._replace(gains=jnp.where(_of_channels(closed, ssm), gains, ssm.gains))


def _of_channels(closed: ClosedParts, ssm: SSM) -> Bool[np.ndarray, "d 1 1"]:
    return np.repeat(closed, ssm.poles.shape[1] // len(closed))[:, None, None]


def _one_less_decay(ssm: SSM, length: int) -> pairs.Pair:
    """1 - exp(p l), [r d n]."""
    return pairs.each(jnp.negative, pairs.long_expm1(pairs.unpack(ssm.poles), length))
