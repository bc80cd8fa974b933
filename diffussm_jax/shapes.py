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
| `n`     | conjugate state pairs of one channel (state size N = 2 n)   |
| `g`     | chunks of a sequence                                        |
| `t`     | positions in a chunk                                        |

A trailing axis of size 2 holds the real and the imaginary part of a complex number.
"""

from jaxtyping import Array, Float, Float32, Int, Key

Images = Float[Array, "b h w c"]
Tokens = Float[Array, "b l d"]
Groups = Float[Array, "b j d"]
Condition = Float[Array, "b d"]
Timesteps = Int[Array, " b"]
Labels = Int[Array, " b"]
ImageKeys = Key[Array, " b"]

Poles = Float32[Array, "r d n 2"]
Gains = Float32[Array, "r d n 2"]
Skip = Float32[Array, "r d"]
State = Float32[Array, "r b d n 2"]


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
