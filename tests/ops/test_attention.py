"""Attention by the flash kernel, interpreted, against softmax attention in float64."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.errors import UserError
from diffussm_jax.ops.attention import attention, choose, flash_tpu, refusal

HEADS, CHANNELS = 2, 24  # channels that fill no register, as the 72 of XL


def arrays(num_queries, num_keys, dtype):
    """Queries, keys, values and a cotangent [b l h f]."""
    rng = np.random.default_rng(0)
    lengths = num_queries, num_keys, num_keys, num_queries
    return [jnp.asarray(rng.normal(size=(1, n, HEADS, CHANNELS)), dtype) for n in lengths]


def reference(q, k, v, dy):
    """The output and the gradients of q, k and v."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    scale = CHANNELS**-0.5
    scores = scale * np.einsum("bqhf,bkhf->bhqk", q, k)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhqk,bkhf->bqhf", weights, v)
    d_weights = np.einsum("bqhf,bkhf->bhqk", dy, v)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    dq = scale * np.einsum("bhqk,bkhf->bqhf", d_scores, k)
    dk = scale * np.einsum("bhqk,bqhf->bkhf", d_scores, q)
    return y, dq, dk, np.einsum("bhqk,bqhf->bkhf", weights, dy)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "dtype", "tolerance"),
    [
        (128, 256, jnp.float32, 1e-5),
        pytest.param(128, 256, jnp.bfloat16, 2e-2, marks=pytest.mark.slow),
        pytest.param(640, 1280, jnp.float32, 1e-5, marks=pytest.mark.slow),  # several steps
    ],
)
def test_the_kernel_is_softmax_attention_with_its_gradients(
    num_queries, num_keys, dtype, tolerance
):
    *qkv, dy = arrays(num_queries, num_keys, dtype)

    @jax.jit
    def run(qkv, dy):
        y, vjp = jax.vjp(lambda *qkv: flash_tpu(*qkv, interpret=True), *qkv)
        return y, *vjp(dy)

    for actual, expected in zip(run(qkv, dy), reference(*qkv, dy), strict=True):
        assert actual.dtype == dtype
        difference = np.abs(np.asarray(actual, np.float64) - expected)
        assert difference.max() < tolerance * np.abs(expected).max()


def shapes(length, channels=72, dtype=jnp.bfloat16):
    q = jax.ShapeDtypeStruct((2, length, 16, channels), dtype)
    return q, q


TPU = types.SimpleNamespace(platform="tpu")
AMPERE = types.SimpleNamespace(platform="gpu", compute_capability="8.0")
TURING = types.SimpleNamespace(platform="gpu", compute_capability="7.5")


def test_what_runs_and_wins_is_chosen(monkeypatch):
    assert choose(jax.devices()[0], *shapes(1024)) == "xla"
    assert [choose(TPU, *shapes(length)) for length in (128, 1000, 256)] == ["xla", "xla", "flash"]
    assert choose(AMPERE, *shapes(1024)) == "xla"  # absent, and so only planned for
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [choose(AMPERE, *shapes(length)) for length in (128, 256)] == ["xla", "flash"]
    assert choose(TURING, *shapes(1024)) == "xla"


def test_where_cudnn_runs(monkeypatch):
    assert "with the GPU alone" in refusal(AMPERE, *shapes(1024))  # absent, and so only planned for
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert refusal(AMPERE, *shapes(1000)) is None
    assert "compute capability 7.5" in refusal(TURING, *shapes(1024))
    assert "heads of 20 channels" in refusal(AMPERE, *shapes(1024, channels=20))
    assert "not float32" in refusal(AMPERE, *shapes(1024, dtype=jnp.float32))


def test_a_kernel_that_cannot_run_is_refused_in_a_line_that_names_the_field():
    q, k, v, _ = arrays(128, 128, jnp.float32)
    with pytest.raises(UserError, match="^config.model.attention_implementation is flash, .* cpu;"):
        attention(q, k, v, implementation="flash")
    q = jnp.zeros((1, 1000, 1, 8))
    with pytest.raises(UserError, match="1000 tokens are no multiple of 128; None takes xla"):
        attention(q, q, q, implementation="flash", device=TPU)
