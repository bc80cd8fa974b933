"""FCDM and DiCo as whole networks against the same in PyTorch's convolutions and shuffles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.test_levels import DICO, FCDM
from tests.models.tiny import randomized, tiny

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
from torch.nn import functional as F

LEVELS = (1, 2, 1, 2, 1)


def pointwise(x, p):
    return F.conv2d(x, p["kernel"].T[..., None, None], p.get("bias"))


def conv(x, p):
    kernel = p["kernel"].permute(3, 2, 0, 1)
    groups = x.shape[1] // kernel.shape[1]
    return F.conv2d(x, kernel, p.get("bias"), padding=kernel.shape[2] // 2, groups=groups)


def gelu(x):
    return F.gelu(x, approximate="tanh")


def normed(x):
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) / torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-6)


def modulation(c, p, num):
    y = F.silu(c) @ p["linear"]["kernel"] + p["linear"]["bias"]
    return y[..., None, None].chunk(num, dim=1)


def fcdm_block(x, c, p):
    shift, scale, gate = modulation(c, p["modulation"], 3)
    mixer = p["convnext"]
    y = normed(conv(x, mixer["depthwise"])) * (1 + scale) + shift
    y = gelu(pointwise(y, mixer["widen"]))
    norms = torch.norm(y, p=2, dim=(2, 3), keepdim=True)
    response = norms / (norms.mean(dim=1, keepdim=True) + 1e-6)
    weight, bias = (mixer["norm"][name][:, None, None] for name in ("scale", "bias"))
    return x + gate * pointwise(weight * (y * response) + bias + y, mixer["out"])


def dico_block(x, c, p):
    shift, scale, gate, *of_mlp = modulation(c, p["modulation"], 6)
    mixer = p["dico"]
    y = normed(x) * (1 + scale) + shift
    y = gelu(conv(pointwise(y, mixer["enter"]), mixer["depthwise"]))
    y = y * torch.sigmoid(pointwise(F.adaptive_avg_pool2d(y, 1), mixer["gate"]))
    x = x + gate * pointwise(y, mixer["out"])
    shift, scale, gate = of_mlp
    y = gelu(pointwise(normed(x) * (1 + scale) + shift, p["mlp_in"]))
    return x + gate * pointwise(y, p["mlp_out"])


def embedded(p, t, y):
    frequencies = torch.exp(-np.log(10_000) * torch.arange(128) / 128)
    angles = t[:, None] * frequencies
    p, table = p["timestep"], p["label"]["table"]
    c = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    c = F.silu(c @ p["hidden"]["kernel"] + p["hidden"]["bias"])
    return c @ p["out"]["kernel"] + p["out"]["bias"] + table[y]


def places_last(x):
    """Channels of `pixel_unshuffle`, which has the places of a square innermost, as ours are."""
    b, c, h, w = x.shape
    return x.reshape(b, c // 4, 4, h, w).transpose(1, 2).reshape(b, c, h, w)


def places_first(x):
    b, c, h, w = x.shape
    return x.reshape(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)


def network(p, x, t, y, block, is_wide):
    c = [embedded(part, t, y) for part in (p, p["level_1"], p["level_2"])]
    x, joints, left = conv(x, p["embed"]), p["resampling"], []
    for stage, level in enumerate((0, 1, 2, 1, 0)):
        if stage in (1, 2):
            left.append(x)
            x = places_last(F.pixel_unshuffle(conv(x, joints[f"down_{level}"]), 2))
        elif stage:
            x = F.pixel_shuffle(places_first(conv(x, joints[f"up_{level + 1}"])), 2)
            x = pointwise(torch.cat([x, left.pop()], dim=1), joints[f"merge_{level + 1}"])
        level = 1 if is_wide and stage == 4 else level
        for layer in range(LEVELS[stage]):
            of_layer = jax.tree.map(lambda a, i=layer: a[i], p["blocks"][f"stage_{stage}"])
            x = block(x, c[level], of_layer)
    x = x if is_wide else conv(x, p["out"])
    shift, scale = modulation(c[level], p["modulation"], 2)
    return conv(normed(x) * (1 + scale) + shift, p["head"])


@pytest.mark.parametrize(("model", "block"), [(FCDM, fcdm_block), (DICO, dico_block)])
def test_the_whole_network(model, block):
    graphdef, params = randomized(tiny(**model | {"levels": LEVELS, "width": 8}))
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype(np.float32)
    t, y = np.array([3, 700]), np.array([1, 10])
    ours = jax.jit(nnx.merge(graphdef, params))(jnp.asarray(x), jnp.asarray(t), jnp.asarray(y))
    theirs = network(
        jax.tree.map(lambda a: torch.tensor(np.array(a)), params),
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor(t),
        torch.tensor(y),
        block,
        is_wide="last_stage" in model,
    )
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
