"""Axis letters and array aliases: the glossary that every signature uses.

| letter  | axis                                                        |
|---------|-------------------------------------------------------------|
| `b`     | batch                                                       |
| `h w c` | latent (or pixel) grid: height, width, channels             |
| `l`     | tokens, h*w in raster order                                 |
| `m`     | hourglass ratio: neighbouring tokens per group              |
| `j`     | groups, l / m                                               |
| `d`     | width: features of a token, channels of the SSM             |
| `r`     | directions of the SSM: forward, then backward               |
| `e`     | outputs of the SSM for a token, r d                         |
| `n`     | conjugate state pairs of one channel (state size N = 2 n)   |
| `g`     | chunks of a sequence                                        |
| `t`     | positions in a chunk                                        |

A trailing axis of size 2 holds the real and the imaginary part of a complex number.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Float32, Int, Key, Num

Images = Float[Array, "b h w c"]
Tokens = Float[Array, "b l d"]
Groups = Float[Array, "b j d"]
Streams = Float[Array, "_ b j d"]  # groups between layers of a backbone, at several depths
Condition = Float[Array, "b d"]
Timesteps = Int[Array, " b"]
Times = Num[Array, "b *k"]  # as a process draws them: a step, t in [0, 1], or (t, r)
Conditions = Num[Array, "b *k"]  # what a model is told besides x_t and the label
Labels = Int[Array, " b"]
Grid = tuple[int, int]  # height and width of an image in tokens
Closed = tuple[bool, bool]  # whether an image's bottom meets its top, and its right side its left
ImageKeys = Key[Array, " b"]

State = Float32[Array, "r b d n 2"]


class SSM(NamedTuple):
    """The state space layer that `ops.s4d` applies, discretised: one value, and a pytree.

    Its arrays are always float32, since bfloat16 poles are unusable. The axis r has one entry for
    each direction of the layer; code that runs a single direction takes an SSM without that axis.

    Attributes:
        poles: dt A, real part negative.
        gains: B C (exp(dt A) - 1) / A; the factor 2 Re(...) is the operator's.
        skip: the direct term D.
    """

    poles: Float32[Array, "r d n 2"]
    gains: Float32[Array, "r d n 2"]
    skip: Float32[Array, "r d"]


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
