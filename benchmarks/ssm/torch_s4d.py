"""S4D's reference formula in PyTorch: Gu et al. 2022, listing 1, and its FFT convolution."""

import torch

from benchmarks.ssm.arguments import Raw


def s4d(
    u: torch.Tensor,
    log_dt: torch.Tensor,
    log_neg_a_re: torch.Tensor,
    a_im: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor,
) -> torch.Tensor:
    """Apply both directions to u [b l d]: [b l 2d], forward outputs first, in u's precision."""
    length = u.shape[1]
    dt_a, gains = discretize(log_dt, log_neg_a_re, a_im, b, c)
    powers = torch.exp(dt_a[..., None] * torch.arange(length, dtype=u.dtype))
    kernels = 2 * torch.einsum("rhn,rhnl->rhl", gains, powers).real
    x = u.transpose(1, 2)
    outputs = []
    for kernel, direct, backward in zip(kernels, skip, (False, True)):
        source = x.flip(-1) if backward else x
        spectrum = torch.fft.rfft(source, n=2 * length)
        y = torch.fft.irfft(spectrum * torch.fft.rfft(kernel, n=2 * length))
        y = y[..., :length]
        outputs.append((y.flip(-1) if backward else y) + x * direct[:, None])
    return torch.cat(outputs, dim=1).transpose(1, 2)


def discretize(
    log_dt: torch.Tensor,
    log_neg_a_re: torch.Tensor,
    a_im: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The poles dt A and the gains B C (exp(dt A) - 1) / A, complex."""
    a = torch.complex(-torch.exp(log_neg_a_re), a_im)
    dt_a = a * torch.exp(log_dt)[..., None]
    b_c = torch.view_as_complex(b) * torch.view_as_complex(c)
    return dt_a, b_c * (torch.exp(dt_a) - 1) / a


def tensors(raw: Raw, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The arrays as leaves that take gradients."""
    return [torch.tensor(x, dtype=dtype, requires_grad=True) for x in raw]
