"""S4D in chunks as fused TPU kernels, one for each pass.

`operator` is the entry and the gradient, `tiling` the sizes, `parameters` what XLA prepares from
the SSM, `kernels` the two kernels, which are made of `tables` and `states`.
"""

from diffussm_jax.ops.pallas_tpu.operator import pallas_tpu
from diffussm_jax.ops.pallas_tpu.tiling import Tiling, refusal, tiling_for

__all__ = ["Tiling", "pallas_tpu", "refusal", "tiling_for"]
