"""S4D over a sequence: a recurrence, or a convolution with its filter by FFT."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class S4D(nn.Module):
    """A filter for each channel, of one direction or of both: [b l d] -> [b l r d].

    y_l = 2 Re sum_n g_n sum_{s<=l} exp(p_n (l - s)) u_s + skip u_l, and backward from the end.

    Outside training, where no gradients are asked for, what depends on the parameters alone is
    kept from call to call until `train` or `eval`.

    Attributes:
        form: how it is computed, "fft" or "recurrence"; the values are the same.
    """

    def __init__(self, model: dict[str, Any], num_channels: int, dt_rates: list[float]):
        super().__init__()
        r = 2 if model["direction"] == "both" else 1
        d, n = 1 if model["share_ssm"] else num_channels, model["state_size"] // 2
        self.log_dt = nn.Parameter(torch.empty(r, d))
        self.log_neg_a_re = nn.Parameter(torch.empty(r, d, n))
        self.a_im = nn.Parameter(torch.empty(r, d, n))
        self.b = nn.Parameter(torch.empty(r, d, n, 2))
        self.c = nn.Parameter(torch.empty(r, d, n, 2))
        self.skip = nn.Parameter(torch.empty(r, d))
        self.dt_rates = [rate for rate in dt_rates for _ in range(num_channels // len(dt_rates))]
        self.form = "fft"
        self.kept: dict[tuple, Callable[[Tensor], Tensor]] = {}

    def forward(self, u: Tensor) -> Tensor:
        key = (self.form, u.shape[1], u.device)
        if self.training or torch.is_grad_enabled():
            apply = self.operator(u.shape[1])
        else:
            apply = self.kept[key] = self.kept.get(key) or self.operator(u.shape[1])
        y = apply(u.float()) + u[:, :, None] * self.skip
        return y.to(u.dtype)

    def operator(self, length: int) -> Callable[[Tensor], Tensor]:
        """What filters sequences of a length."""
        poles, gains = self.discretize()
        if self.form == "recurrence":
            return functools.partial(recur, torch.exp(poles), gains)
        return functools.partial(convolve, spectra(poles, gains, length))

    def discretize(self) -> tuple[Tensor, Tensor]:
        """The complex poles and gains [r d n] by zero-order hold."""
        a = torch.complex(-torch.exp(self.log_neg_a_re), self.a_im)
        dt = torch.exp(self.log_dt) * self.log_dt.new_tensor(self.dt_rates)
        poles = dt[..., None] * a
        b_c = torch.view_as_complex(self.b) * torch.view_as_complex(self.c)
        return poles, b_c * torch.expm1(poles) / a

    def train(self, mode: bool = True) -> "S4D":
        self.kept.clear()
        return super().train(mode)


def recur(decay: Tensor, gains: Tensor, u: Tensor) -> Tensor:
    """Token by token: x_l = exp(p) x_{l-1} + u_l,  y_l = 2 Re(g . x_l)."""
    num_directions = len(decay)
    inputs = torch.stack([u, u.flip(1)][:num_directions], dim=2)  # b l r d
    x = torch.zeros(1, 1, 1, 1, dtype=decay.dtype, device=u.device)
    outputs = []
    for u_l in inputs.unbind(1):
        x = decay * x + u_l[..., None]  # b r d n
        outputs.append(2 * (gains * x).sum(dim=-1).real)
    y = torch.stack(outputs, dim=1).unbind(2)
    return torch.stack([y[0], *(backward.flip(1) for backward in y[1:])], dim=2)


def spectra(poles: Tensor, gains: Tensor, length: int) -> Tensor:
    """The spectra [f r d] of the filters K[l] = 2 Re(g . exp(p l)), padded to twice the length."""
    powers, decay = torch.ones_like(poles)[..., None], torch.exp(poles)[..., None]  # r d n l
    while powers.shape[-1] < length:
        powers = torch.cat([powers, powers * decay], dim=-1)
        decay = decay * decay
    kernel = 2 * torch.einsum("rdn,rdnl->lrd", gains, powers[..., :length]).real
    spectrum = torch.fft.rfft(kernel, 2 * length, dim=0)
    # The conjugate mirrors the filter of the direction that begins at the end.
    return torch.stack([spectrum[:, 0], *(x.conj() for x in spectrum.unbind(1)[1:])], dim=1)


def convolve(spectrum: Tensor, u: Tensor) -> Tensor:
    """Convolve a sequence with each direction's filter."""
    length = u.shape[1]
    product = torch.fft.rfft(u, 2 * length, dim=1)[:, :, None] * spectrum
    return torch.fft.irfft(product, 2 * length, dim=1)[:, :length]
