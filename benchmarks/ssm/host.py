"""Measure time, memory and error of the operator on this backend."""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.ssm import arguments
from benchmarks.ssm.derivatives import gradient, gradient_with_tangent
from diffussm_jax.ops.s4d import ImplementationName, discretize, s4d
from diffussm_jax.shapes import SSM

# The paper's algorithm, ours, and the recurrences, which take minutes where b l d is large.
IMPLEMENTATIONS: tuple[ImplementationName, ...] = ("chunked", "fft", "associative_scan", "scan")
SLOW = {"associative_scan", "scan"}
SLOW_LIMIT = 1_000_000
ERROR_SHAPE = (1, 8)  # b d; channels are independent


@dataclasses.dataclass
class Row:
    """The figures of one implementation at one shape; None where it was not run or is unknown."""

    implementation: str
    b: int
    l: int
    d: int
    forward_ms: float | None = None
    both_ms: float | None = None  # forward and backward
    tangent_ms: float | None = None  # both, with a tangent along u that the loss needs
    compile_s: float | None = None  # of forward and backward
    memory: float | None = None  # of both besides u, y and gradients, in sizes of u and y
    error: float | None = None  # relative L2 of y to float64


def measure(
    implementation: ImplementationName, shape: tuple[int, int, int], repeats: int, budget_s: float
) -> Row:
    """Take medians of up to `repeats` calls, fewer (at least three) once `budget_s` is over."""
    raw = [jnp.asarray(x) for x in arguments.make(*shape)]
    run = jax.jit(functools.partial(apply, implementation=implementation))
    dy = jax.eval_shape(run, *raw)
    both = jax.jit(gradient(run))
    row = Row(implementation, *shape)
    start = time.perf_counter()
    compiled = both.lower(dy, *raw).compile()
    row.compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    row.memory = memory.temp_size_in_bytes / (raw[0].nbytes + dy.size * dy.dtype.itemsize)
    if implementation in SLOW and np.prod(shape) > SLOW_LIMIT:
        return row
    row.forward_ms = median_ms(lambda: run(*raw), repeats, budget_s)
    ones = jnp.ones(dy.shape, dy.dtype)
    row.both_ms = median_ms(lambda: compiled(ones, *raw), repeats, budget_s)
    with_tangent = jax.jit(gradient_with_tangent(run, along=(0,)))
    d_u = raw[0][..., ::-1]
    row.tangent_ms = median_ms(lambda: with_tangent(ones, (d_u,), *raw), repeats, budget_s)
    row.error = error(implementation, shape[1])
    return row


def measure_torch(shape: tuple[int, int, int], repeats: int, budget_s: float) -> Row:
    """Measure the official formula in PyTorch, on as many threads as XLA takes."""
    import torch

    from benchmarks.ssm import torch_s4d

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tensors = torch_s4d.tensors(arguments.make(*shape))

    def both() -> tuple:
        y = torch_s4d.s4d(*tensors)
        return torch.autograd.grad(y, tensors, torch.ones_like(y))

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return torch_s4d.s4d(*tensors)

    row = Row("torch", *shape)
    row.forward_ms = median_ms(forward, repeats, budget_s)
    row.both_ms = median_ms(both, repeats, budget_s)
    return row


def apply(u: Array, *parameters: Array, implementation: ImplementationName | None) -> Array:
    """Compute y from the arrays of `arguments.Raw`, as the PyTorch formula does."""
    return s4d(u, discretize(*parameters), implementation=implementation)


def error(implementation: ImplementationName, length: int) -> float:
    """Relative L2 error against a convolution in float64 with the same float32 SSM."""
    b, d = ERROR_SHAPE
    u, *parameters = (jnp.asarray(x) for x in arguments.make(b, length, d))
    ssm = discretize(*parameters)
    y = jax.jit(functools.partial(s4d, implementation=implementation))(u, ssm)
    expected = convolution(np.asarray(u), ssm)
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def convolution(u: np.ndarray, ssm: SSM) -> np.ndarray:
    """Compute y of both directions from the complete kernel, in float64."""
    u, poles, gains, skip = (np.asarray(x, np.float64) for x in (u, *ssm))
    length = u.shape[1]
    p, g = (x[..., 0] + 1j * x[..., 1] for x in (poles, gains))
    kernels = 2 * (g[..., None] * np.exp(p[..., None] * np.arange(length))).sum(2).real
    outputs = []
    for r, order in enumerate((slice(None), slice(None, None, -1))):
        spectrum = np.fft.rfft(u[:, order], 2 * length, axis=1)
        spectrum *= np.fft.rfft(kernels[r], 2 * length).T
        y = np.fft.irfft(spectrum, axis=1)[:, :length]
        outputs.append(y[:, order] + skip[r] * u)
    return np.concatenate(outputs, axis=-1)


def median_ms(call: Callable, repeats: int, budget_s: float) -> float:
    """Median wall time in milliseconds, after a call to warm up."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < budget_s):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
