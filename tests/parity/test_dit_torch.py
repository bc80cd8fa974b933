"""DiT against the published architecture in PyTorch: random weights, through the converter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.convert.dit import convert
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir.weights import load_export

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
from torch import nn

DEPTH, WIDTH, HEADS, PATCH, SIDE, CLASSES = 12, 384, 6, 2, 8, 10  # DiT-S/2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * (d // HEADS) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


def norm(x):
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, c):
        s1, k1, g1, s2, k2, g2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + g1 * self.attn(norm(x) * (1 + k1) + s1)
        return x + g2 * self.mlp(norm(x) * (1 + k2) + s2)


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(4, WIDTH, PATCH, stride=PATCH)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t):
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding_table = nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, y):
        return self.embedding_table(y)


class FinalLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, PATCH * PATCH * 8)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(norm(x) * (1 + scale) + shift)


def sincos_table():
    """As the released code forms it: x before y, sines before cosines."""
    y, x = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    frequencies = 10_000.0 ** -(np.arange(WIDTH // 4) / (WIDTH / 4))
    halves = [np.outer(axis.ravel(), frequencies) for axis in (x, y)]
    table = np.concatenate([part(half) for half in halves for part in (np.sin, np.cos)], axis=1)
    return torch.tensor(table[None], dtype=torch.float32)


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.x_embedder, self.t_embedder = PatchEmbed(), TimestepEmbedder()
        self.y_embedder, self.final_layer = LabelEmbedder(), FinalLayer()
        self.pos_embed = nn.Parameter(sincos_table(), requires_grad=False)
        self.blocks = nn.ModuleList([Layer() for _ in range(DEPTH)])

    def forward(self, x, t, y):
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).reshape(-1, SIDE, SIDE, PATCH, PATCH, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 8, SIDE * PATCH, SIDE * PATCH)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Their model, and the export made of its file."""
    torch.manual_seed(0)
    model = DiT().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("dit")
    torch.save(model.state_dict(), folder / "DiT.pt")
    convert(folder / "DiT.pt", folder / "export")
    return model, folder / "export"


def test_outputs_are_those_of_the_released_architecture(released):
    theirs, folder = released
    config, params, _, _ = load_export(folder)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    graphdef, _ = abstract_model(config)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, SIDE * PATCH, SIDE * PATCH, 4)).astype(np.float32)
    t, y = np.array([3, 870]), np.array([7, CLASSES])
    with torch.no_grad():
        nchw = torch.tensor(x).permute(0, 3, 1, 2)
        expected = theirs(nchw, torch.tensor(t), torch.tensor(y))
    expected = expected.permute(0, 2, 3, 1).numpy()
    model = jax.jit(lambda params, *x: nnx.merge(graphdef, params)(*x))
    actual = model(params, *map(jnp.asarray, (x, t, y)))
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)
