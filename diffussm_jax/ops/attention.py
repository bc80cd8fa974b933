"""Attention of every token to every token: softmax(q k^T / sqrt(f)) v, for each head.

XLA's form writes the scores [b h l l] to memory and reads them again. A flash kernel (Dao et al.,
FlashAttention, 2022) keeps a block of them at a time on the chip. The kernels here are JAX's own:
splash attention for TPUs, and cuDNN's for GPUs.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    QKVLayout,
    make_splash_mha,
)
from jaxtyping import Array, Float

from diffussm_jax.errors import UserError

AttentionImplementation = Literal["xla", "flash"]
Queries = Float[Array, "b l h f"]
Keys = Float[Array, "b s h f"]  # and values; s is l but where a mesh splits the queries

LANES = 128
# Of a step of the TPU kernel, as many tokens as 16 MiB of VMEM have room for: most keys, most
# queries beside few keys and beside more, and keys that meet the queries at once.
MAX_KEYS, FEW_KEYS = 4096, 1024
MAX_QUERIES, MAX_QUERIES_BESIDE_MANY_KEYS = 1024, 512
COMPUTED_KEYS = 512
# Below so many tokens XLA's form takes fewer cycles on a TPU; GPUs were not timed there.
MIN_TOKENS = 256
# What the flash kernel of a TPU returns, to be kept where only matrix products are.
SAVED_NAME = "attention"


@runtime_checkable
class Attend(Protocol):
    """What a model calls to let tokens attend to each other: `attention`, bound or on a mesh."""

    def __call__(self, q: Queries, k: Keys, v: Keys) -> Queries: ...


def attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    implementation: AttentionImplementation | None = None,
    device: Any = None,
) -> Queries:
    """Attend from each token of q to all tokens of k and v.

    Args:
        implementation: None takes the fastest that can run (`choose`).
        device: a device of the kind that will run it; None is this process's first.

    Raises:
        UserError: the flash kernel was asked for and cannot run.
    """
    device = device or jax.devices()[0]
    reason = refusal(device, q, k)
    if implementation == "flash" and reason:
        raise UserError(
            f"config.model.attention_implementation is flash, which cannot run here: {reason}; "
            "None takes xla where that is so"
        )
    if (implementation or choose(device, q, k)) == "xla":
        return jax.nn.dot_product_attention(q, k, v)
    if device.platform == "tpu":
        return flash_tpu(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def choose(device: Any, q: Any, k: Any) -> AttentionImplementation:
    """Choose the flash kernel where it can run and is faster (docs/benchmarks.md).

    So say the TPU compiler's cycles, and an H100's time of DiT at 256 and 1,024 tokens.
    """
    return "flash" if k.shape[1] >= MIN_TOKENS and not refusal(device, q, k) else "xla"


def refusal(device: Any, q: Any, k: Any) -> str | None:
    """The reason why a device cannot run the flash kernel on these arrays, or None if it can."""
    f, lengths = q.shape[3], (q.shape[1], k.shape[1])
    match device.platform:
        case "tpu":
            rules = {f"{lengths[0]} tokens are no multiple of {LANES}": lengths[0] % LANES == 0}
            rules |= {f"{lengths[1]} tokens are no multiple of {LANES}": lengths[1] % LANES == 0}
        case "gpu":
            capability = getattr(device, "compute_capability", "0")
            rules = {
                "cuDNN compiles it on a machine with the GPU alone": (
                    jax.default_backend() == "gpu"
                ),
                f"it takes an Ampere or later GPU, not compute capability {capability}": (
                    not capability.startswith("gfx") and float(capability) >= 8  # gfx: AMD's
                ),
                f"it takes bfloat16, not {q.dtype}": q.dtype == jnp.bfloat16,
                f"heads of {f} channels, which must be a multiple of 8 up to 128": (
                    f % 8 == 0 and f <= 128
                ),
            }
        case platform:
            return f"there is no flash kernel for a {platform}"
    return next((reason for reason, holds in rules.items() if not holds), None)


def flash_tpu(q: Queries, k: Keys, v: Keys, *, interpret: bool = False) -> Queries:
    """Attend by JAX's splash attention without a mask; `interpret` runs it anywhere, slowly."""
    _, l, h, f = q.shape
    kernel = make_splash_mha(
        MultiHeadMask([FullMask((l, k.shape[1]))] * h),
        block_sizes=_block_sizes(l, k.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )
    q = q * jnp.asarray(f**-0.5, q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # b h l f
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)


def _block_sizes(num_queries: int, num_keys: int) -> BlockSizes:
    """The sizes of the kernels' steps, chosen by the TPU compiler's cycles.

    Tokens lie along the lanes of q, k and v, since heads of few channels would fill a part of them.
    """
    block_kv = _block(num_keys, MAX_KEYS)
    few = block_kv <= FEW_KEYS
    block_q = _block(num_queries, MAX_QUERIES if few else MAX_QUERIES_BESIDE_MANY_KEYS)
    computed = _block(block_kv, COMPUTED_KEYS)
    return BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=computed,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=computed,
        use_fused_bwd_kernel=True,
        q_layout=QKVLayout.SEQ_MINOR,
        k_layout=QKVLayout.SEQ_MINOR,
        v_layout=QKVLayout.SEQ_MINOR,
    )


def _block(length: int, most: int) -> int:
    """The largest divisor of a length, itself a multiple of 128, that is one too."""
    return max(n for n in range(LANES, min(length, most) + 1, LANES) if length % n == 0)
