"""The process of DDPM and its samplers: ancestral, DDIM, DPM-Solver++(2M) and Heun's.

In the equations x = alpha x0 + sigma eps. A step leads from t to s = t - 1, where alpha_t^2 =
alpha_bar_t and sigma_t^2 = 1 - alpha_bar_t; the image has alpha = 1 and sigma = 0.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffussm_jax.exporting.pytorch.process import PROCESSES, START, Denoiser, Noise, read_sampler


class Estimate(NamedTuple):
    """What the network says of p(x_s | x_t)."""

    mean: Tensor
    log_variance: Tensor | float
    x0: Tensor
    eps: Tensor


class Schedule(NamedTuple):
    """Tables over the steps of a process, in float64; `timesteps` count those of the full one."""

    alpha_bar: Tensor
    timesteps: list[int]

    @property
    def alpha_bar_prev(self) -> Tensor:
        return torch.cat([torch.ones(1).double(), self.alpha_bar[:-1]])

    @property
    def betas(self) -> Tensor:
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @property
    def posterior_variance(self) -> Tensor:
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    def alphas_and_sigmas(self, t: int) -> tuple[float, float, float, float]:
        """alpha_t, sigma_t, alpha_s and sigma_s of a step."""
        of_t, of_s = float(self.alpha_bar[t]), float(self.alpha_bar_prev[t])
        return math.sqrt(of_t), math.sqrt(1 - of_t), math.sqrt(of_s), math.sqrt(1 - of_s)


def full_schedule(name: str, num_steps: int) -> Schedule:
    """The "linear" betas of DDPM, or the "cosine" ones of improved DDPM."""
    if name == "linear":
        scale = 1000 / num_steps
        betas = linspace(scale * 1e-4, min(scale * 0.02, 0.999), num_steps)
    else:
        time = torch.arange(num_steps + 1).double() / num_steps
        alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return Schedule(torch.cumprod(1 - betas, dim=0), list(range(num_steps)))


def linspace(start: float, end: float, num: int) -> Tensor:
    return start + torch.arange(num).double() * ((end - start) / max(num - 1, 1))


def respaced(schedule: Schedule, num_steps: int, spacing: str) -> Schedule:
    """Keep some of the steps: at "even" distances, "trailing" or of "sigma" as EDM has them."""
    num_full = len(schedule.timesteps)
    if not 1 <= num_steps <= num_full:
        raise ValueError(f"steps must be in 1 .. {num_full}, got {num_steps}")
    last = num_full - 1
    if spacing == "trailing" or num_steps == 1:
        places = linspace(0, last, num_steps + 1)[1:]
    elif spacing == "even":
        places = linspace(0, last, num_steps)
    else:
        places = places_of_sigma(schedule, num_steps)
    # Where rounding puts two on one step, the later ones move up, and down again from the last.
    order = torch.arange(num_steps)
    rising = torch.cummax(places.round().long() - order, dim=0).values + order
    kept = torch.minimum(rising, last - order.flip(0))
    return Schedule(schedule.alpha_bar[kept], [schedule.timesteps[i] for i in kept.tolist()])


def places_of_sigma(schedule: Schedule, num_steps: int) -> Tensor:
    """Where the noise levels sigma / alpha lie that EDM's eq. 5 spaces with rho = 7."""
    levels = torch.sqrt(1 / schedule.alpha_bar - 1)
    low, high = float(levels[0]), min(float(levels[-1]), 80.0)
    roots = linspace(low ** (1 / 7), high ** (1 / 7), num_steps)
    logs, wanted = torch.log(levels), 7 * torch.log(roots)
    after = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
    share = (wanted - logs[after - 1]) / (logs[after] - logs[after - 1])
    return (after - 1 + share).clamp(0, len(logs) - 1)


class Gaussian:
    """DDPM's process, as a model of a config's diffusion section draws from it."""

    def __init__(self, diffusion: dict[str, Any]):
        self.diffusion = diffusion
        self.full = full_schedule(diffusion["schedule"], diffusion["num_steps"])

    def draw(self, denoise: Denoiser, noise: Noise, options: dict[str, Any]) -> Tensor:
        step, spacing = read_sampler(SAMPLERS, options["sampler"])
        schedule = respaced(self.full, options["steps"], spacing)
        x, x0 = noise(START), None
        for t in reversed(range(options["steps"])):
            run = Step(self, schedule, denoise, noise, options["eta"], t)
            x, x0 = step(run, x, x0)
        return x

    def estimate(self, denoise: Denoiser, schedule: Schedule, x_t: Tensor, t: int) -> Estimate:
        """Call the network once."""
        alpha, sigma, alpha_s, sigma_s = schedule.alphas_and_sigmas(t)
        output = denoise(x_t, [schedule.timesteps[t]], sigma / alpha)
        output, log_variance = self.split(schedule, output, t)
        match self.diffusion["prediction"]:
            case "eps":
                x0 = (x_t - sigma * output) / alpha
            case "v":
                x0 = alpha * x_t - sigma * output
            case _:
                x0 = output
        if self.diffusion["clip_x0"]:
            x0 = x0.clamp(-1, 1)
        eps, beta = (x_t - alpha * x0) / sigma, float(schedule.betas[t])
        c_x0 = alpha_s * beta / sigma**2
        c_x = math.sqrt(1 - beta) * sigma_s**2 / sigma**2
        return Estimate(c_x0 * x0 + c_x * x_t, log_variance, x0, eps)

    def split(self, schedule: Schedule, output: Tensor, t: int) -> tuple[Tensor, Tensor | float]:
        """The prediction, and the log variance of p(x_s | x_t)."""
        variances = schedule.posterior_variance
        lowest = variances[max(t, 1)] if len(variances) > 1 else schedule.betas[0]
        low, high = math.log(lowest), math.log(schedule.betas[t])
        if self.diffusion["variance"] == "learned_range":
            output, interpolation = output.chunk(2, dim=1)
            weight = (interpolation + 1) / 2
            return output, weight * high + (1 - weight) * low
        return output, low if self.diffusion["variance"] == "fixed_small" else high


class Step(NamedTuple):
    """A step at t, and what it is made with."""

    process: Gaussian
    schedule: Schedule
    denoise: Denoiser
    noise: Noise
    eta: float
    t: int

    def estimate(self, x_t: Tensor, t: int) -> Estimate:
        return self.process.estimate(self.denoise, self.schedule, x_t, t)


def ddpm(step: Step, x_t: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ancestral sampling (DDPM, algorithm 2)."""
    p = step.estimate(x_t, step.t)
    if step.t == 0:
        return p.mean, p.x0
    log_variance = torch.as_tensor(p.log_variance)
    return p.mean + torch.exp(0.5 * log_variance) * step.noise(step.t), p.x0


def ddim(step: Step, x_t: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Implicit sampling (DDIM, eq. 12 and 16); `eta` is its noise."""
    p = step.estimate(x_t, step.t)
    _, _, alpha_s, sigma_s = step.schedule.alphas_and_sigmas(step.t)
    std = step.eta * math.sqrt(step.schedule.posterior_variance[step.t])
    x_s = alpha_s * p.x0 + math.sqrt(max(sigma_s**2 - std**2, 0)) * p.eps
    return (x_s + std * step.noise(step.t) if step.eta else x_s), p.x0


def dpm_solver_pp(step: Step, x_t: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M), whose first and last steps are of first order (its algorithm 2)."""
    p, t = step.estimate(x_t, step.t), step.t
    alpha_t, sigma_t, alpha_s, sigma_s = step.schedule.alphas_and_sigmas(t)
    x0 = p.x0
    if before is not None and t > 0:
        alpha, sigma, _, _ = step.schedule.alphas_and_sigmas(t + 1)
        log_snr = math.log(alpha_t / sigma_t)
        h_before = log_snr - math.log(alpha / sigma)
        x0 = x0 + (math.log(alpha_s / sigma_s) - log_snr) / (2 * h_before) * (x0 - before)
    return sigma_s / sigma_t * x_t + (alpha_s - sigma_s * alpha_t / sigma_t) * x0, p.x0


def heun(step: Step, x_t: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Heun's method with two calls (EDM, algorithm 1); the last step is Euler's."""
    p = step.estimate(x_t, step.t)
    alpha_t, sigma_t, alpha_s, sigma_s = step.schedule.alphas_and_sigmas(step.t)
    c_x, c_eps = alpha_s / alpha_t, sigma_s - alpha_s * sigma_t / alpha_t
    euler = c_x * x_t + c_eps * p.eps
    if step.t == 0:
        return euler, p.x0
    q = step.estimate(euler, step.t - 1)
    return c_x * x_t + c_eps * (p.eps + q.eps) / 2, p.x0


# The samplers, and how the steps are spaced that each keeps of the full process.
SAMPLERS = {
    "ddpm": (ddpm, "even"),
    "ddim": (ddim, "even"),
    "dpm_solver++": (dpm_solver_pp, "trailing"),
    "heun": (heun, "sigma"),
}
PROCESSES["gaussian"] = Gaussian
