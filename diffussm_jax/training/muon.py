"""Muon: momentum whose every matrix is replaced by the nearest orthogonal one, roughly.

Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024
(https://kellerjordan.github.io/posts/muon); scaled as in Liu et al., Muon is scalable for LLM
training, 2025 (arXiv 2502.16982).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from diffussm_jax.parallel.mesh import split_over_fsdp

MOMENTUM = 0.95  # the authors' value, and optax's
RMS = 0.2  # of AdamW's updates, as Liu et al. measured it
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a quintic that is steep at zero
EPS = 1e-8
FUSED = frozenset(
    {"modulation", "qkv", "uz"}
)  # layers that compute several maps [d, d] in one product


def scale_by_muon(mesh: Mesh | None = None) -> optax.GradientTransformation:
    """Nesterov momentum with every matrix orthogonalized, and the RMS of AdamW's updates.

    Leaves are kernels [..., i, o]; all axes but the last two count matrices. The momentum has the
    kernels' shapes. With a mesh each device along `fsdp` takes its share of the matrices.
    """

    def update(path: tuple, momentum: Array) -> Array:
        matrices = split_kernel(momentum, is_fused=is_fused(path))
        stack = matrices.reshape(-1, *matrices.shape[-2:])
        if mesh is not None:
            stack = split_over_fsdp(mesh, stack)
        stack = RMS * max(stack.shape[1:]) ** 0.5 * orthogonalize(stack)
        if mesh is not None:
            stack = split_over_fsdp(mesh, stack)
        return join_kernel(stack.reshape(matrices.shape), is_fused=is_fused(path))

    def update_all(updates: Any, _: Any) -> Any:
        return jax.tree_util.tree_map_with_path(update, updates)

    return optax.chain(optax.trace(MOMENTUM, nesterov=True), optax.stateless(update_all))


def orthogonalize(x: Float[Array, "n i o"]) -> Float[Array, "n i o"]:
    """Bring the singular values of each matrix near 1, into 0.7 to 1.2, by Newton and Schulz."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + EPS)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def is_fused(path: tuple) -> bool:
    """Whether the kernel at `path` of the parameters belongs to a layer of several maps."""
    return any(getattr(key, "key", None) in FUSED for key in path)


def split_kernel(kernel: Float[Array, "*n i o"], *, is_fused: bool) -> Array:
    """The matrices of a kernel: [*n, i, o], or [*n, o / i, i, i] of a fused one."""
    if not is_fused:
        return kernel
    *stacked, width, _ = kernel.shape
    return jnp.moveaxis(kernel.reshape(*stacked, width, -1, width), -2, -3)


def join_kernel(matrices: Array, *, is_fused: bool) -> Float[Array, "*n i o"]:
    """Inverse of `split_kernel`."""
    if not is_fused:
        return matrices
    *stacked, _, width, _ = matrices.shape
    return jnp.moveaxis(matrices, -3, -2).reshape(*stacked, width, -1)
