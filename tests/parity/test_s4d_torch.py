"""s4d and discretize against S4D's reference formula in PyTorch (`benchmarks.ssm --torch`)."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ssm import arguments, host

pytestmark = pytest.mark.parity


def test_both_directions_are_s4d_in_pytorch():
    torch = pytest.importorskip("torch")
    from benchmarks.ssm import torch_s4d

    raw = arguments.make(2, 300, 6)
    with torch.no_grad():
        expected = torch_s4d.s4d(*torch_s4d.tensors(raw, torch.float64)).numpy()
    actual = host.apply(*map(jnp.asarray, raw), implementation=None)
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
