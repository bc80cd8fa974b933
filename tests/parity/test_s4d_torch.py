"""s4d and discretize against S4D's reference formula (Gu et al. 2022, listing 1) in PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops.s4d import discretize, s4d

pytestmark = pytest.mark.parity


def test_forward_direction_is_s4d_in_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    length, d, n = 300, 6, 32
    u = rng.normal(size=(2, length, d)).astype(np.float32)
    log_dt = rng.uniform(np.log(1e-3), np.log(1e-1), d).astype(np.float32)
    log_a_re = np.full((d, n), np.log(0.5), np.float32)
    a_im = np.tile(np.pi * np.arange(n, dtype=np.float32), (d, 1))
    c = (rng.normal(size=(d, n, 2)) / np.sqrt(2)).astype(np.float32)
    skip = rng.normal(size=d).astype(np.float32)

    dt = torch.tensor(log_dt, dtype=torch.float64).exp()
    a = torch.complex(
        -torch.tensor(log_a_re).double().exp(), torch.tensor(a_im).double()
    )
    dt_a = a * dt[:, None]
    weights = (
        torch.view_as_complex(torch.tensor(c).double()) * (torch.exp(dt_a) - 1) / a
    )
    powers = torch.exp(dt_a[..., None] * torch.arange(length))
    kernel = 2 * torch.einsum("hn,hnl->hl", weights, powers).real
    x = torch.tensor(u).double().transpose(1, 2)
    spectrum = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = (
        torch.fft.irfft(spectrum, n=2 * length)[..., :length]
        + x * torch.tensor(skip)[:, None]
    )

    stacked = (jnp.asarray(v)[None] for v in (log_dt, log_a_re, a_im, c))
    actual = s4d(
        jnp.asarray(u),
        *discretize(*stacked),
        jnp.asarray(skip)[None],
        direction="forward",
    )
    expected = y.transpose(1, 2).numpy()
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
