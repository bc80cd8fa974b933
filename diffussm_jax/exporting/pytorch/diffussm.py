"""DiffuSSM: blocks of bidirectional S4D layers with an hourglass, without attention."""

import functools

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import BACKBONES, Config, Grid
from diffussm_jax.exporting.pytorch.isotropic import Isotropic
from diffussm_jax.exporting.pytorch.layers import Modulation, gelu, modulate, sincos2d
from diffussm_jax.exporting.pytorch.s4d import S4D


class GroupedLinear(nn.Module):
    """A dense layer for each of the m tokens of a group: [b l i] -> [b j m o]."""

    def __init__(self, num_members: int, num_inputs: int, num_outputs: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(num_members, num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_members, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, *self.kernel.shape[:2])  # b j m i
        return torch.einsum("bjmi,mio->bjmo", x, self.kernel) + self.bias


class Block(nn.Module):
    """The gated bidirectional SSM block of the paper's figure 2."""

    def __init__(self, config: Config):
        super().__init__()
        model = config["model"]
        d, m = model["width"], model["m"]
        num_directions = 2 if model["direction"] == "both" else 1
        self.modulation = Modulation(d, 3 if model["gate"] else 2)
        self.w0 = nn.Linear(d, d)
        self.w_up = nn.Linear(d, m * d)
        self.ssm = S4D(model, d, [model["dt_rate"]])
        self.w_down = GroupedLinear(m, num_directions * d, 2 * d // m)
        self.w1 = nn.Linear(d, 2 * d)
        self.w2 = nn.Linear(2 * d, 2 * d)
        self.w3 = nn.Linear(2 * d, d)
        self.m = m

    def forward(self, x: Tensor, c: Tensor, grid: Grid) -> Tensor:
        b, j, d = x.shape
        shift, scale, *gate = self.modulation(c)
        i = modulate(x, shift, scale)  # b j d
        u = gelu(self.w_up(gelu(self.w0(i)))).reshape(b, j * self.m, d)  # b l d
        y = self.ssm(u).reshape(b, j * self.m, -1)  # b l r*d
        i_down = gelu(self.w_down(y)).reshape(b, j, 2 * d)
        o = self.w3(gelu(self.w2(i_down)) * gelu(self.w1(i)))  # b j d
        return x + (gate[0] * o if gate else o)


def make_diffussm(config: Config) -> Isotropic:
    model = config["model"]
    m, d, scale = model["m"], model["width"], model["position_scale"]
    return Isotropic(
        config,
        group_size=m,
        num_blocks=model["depth"],
        position=functools.partial(sincos2d, group_size=m, num_features=d, scale=scale),
        make_block=lambda: Block(config),
    )


BACKBONES["diffussm"] = make_diffussm
