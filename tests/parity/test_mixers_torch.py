"""delta_conv and convnext against the same in PyTorch's convolutions, pooling and interpolation."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.test_convolutional_mixers import D, mixer_of, tokens, unmodulated

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
from torch.nn import functional as F

GRID = 4, 6


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def depthwise(x, layer):
    kernel = layer["kernel"].permute(3, 2, 0, 1)
    y = F.conv2d(x, kernel, layer.get("bias"), padding=len(kernel[0, 0]) // 2, groups=len(kernel))
    return y


def convnext(x, p):
    b, l, d = x.shape
    y = depthwise(x.mT.reshape(b, d, *GRID), p["depthwise"]).reshape(b, d, l).mT
    hidden = F.gelu(dense(F.layer_norm(y, (d,), eps=1e-6), p["widen"]), approximate="tanh")
    norms = torch.norm(hidden, p=2, dim=1, keepdim=True)
    response = norms / (norms.mean(dim=-1, keepdim=True) + 1e-6)
    hidden = p["norm"]["scale"] * (hidden * response) + p["norm"]["bias"] + hidden
    return dense(hidden, p["out"])


def delta_conv(x, p):
    b, l, d = x.shape
    u = dense(x, p["narrow"]).mT.reshape(b, d // 2, *GRID)
    stages = []
    for factor, name in ((1, "stage_0"), (2, "stage_1")):
        y = F.adaptive_avg_pool2d(u, (GRID[0] // factor, GRID[1] // factor))
        value, gate = depthwise(y, p[name]).chunk(2, dim=1)
        y = value * gate / (d / 4) ** 0.5
        stages.append(F.interpolate(y, GRID, mode="bilinear", align_corners=False))
    y = torch.cat(stages, dim=1).reshape(b, -1, l).mT
    return dense(y, p["out"]) + dense(x.mean(dim=1, keepdim=True), p["mean"])


@pytest.mark.parametrize("theirs", [convnext, delta_conv], ids=lambda x: x.__name__)
def test_values_and_all_gradients(theirs):
    graphdef, params = nnx.split(mixer_of(theirs.__name__), nnx.Param)
    params = nnx.to_pure_dict(params)
    arguments = tokens(*GRID), params
    dy = np.random.default_rng(2).normal(size=(2, GRID[0] * GRID[1], D)).astype(np.float32)

    @jax.jit
    def ours(x, params):
        y, vjp = jax.vjp(
            lambda x, params: nnx.merge(graphdef, params)(x, GRID, unmodulated), x, params
        )
        return y, *vjp(dy)

    y, *gradients = ours(*arguments)
    leaves, structure = jax.tree.flatten(arguments)
    tensors = [torch.tensor(np.array(x, np.float64), requires_grad=True) for x in leaves]
    expected = theirs(*jax.tree.unflatten(structure, tensors))
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    their_gradients = torch.autograd.grad(expected, tensors, torch.tensor(np.float64(dy)))
    for actual, gradient in zip(jax.tree.leaves(gradients), their_gradients, strict=True):
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(actual / scale, gradient / scale, atol=1e-4)
