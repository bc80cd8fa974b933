"""s4d and discretize against S4D's reference formula in PyTorch (`benchmarks.ssm --torch`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ssm import arguments, host
from tests.ops.s4d_reference import error

pytestmark = pytest.mark.parity


def trained_arguments():
    """The arrays of a layer whose B has left 1."""
    raw = arguments.make(2, 300, 6)
    b = raw.b + 0.5 * np.random.default_rng(1).normal(size=raw.b.shape).astype(np.float32)
    return raw._replace(b=b)


def test_both_directions_and_all_gradients_are_s4d_in_pytorch():
    torch = pytest.importorskip("torch")
    from benchmarks.ssm import torch_s4d

    raw = trained_arguments()
    dy = np.random.default_rng(2).normal(size=(2, 300, 12)).astype(np.float32)
    tensors = torch_s4d.tensors(raw, torch.float64)
    expected = torch_s4d.s4d(*tensors)
    gradients = torch.autograd.grad(expected, tensors, torch.tensor(dy, dtype=torch.float64))
    actual, vjp = jax.vjp(
        functools.partial(host.apply, implementation=None), *map(jnp.asarray, raw)
    )
    assert error(actual, expected.detach().numpy()) < 1e-5
    errors = {
        name: error(ours, theirs.numpy())
        for name, ours, theirs in zip(raw._fields, vjp(jnp.asarray(dy)), gradients)
    }
    assert max(errors.values()) < 1e-4, errors
