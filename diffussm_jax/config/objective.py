"""The fields that say what is learned: the process, and guidance that is folded into the model."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The process from images to noise, and what the network predicts (docs/objectives.md)."""

    # gaussian is DDPM's; flow is the straight path of flow matching; mean_flow learns its average
    # velocity over an interval, and so draws images in one call.
    process: Literal["gaussian", "flow", "mean_flow"] = "gaussian"
    # v is the velocity along the path: eps - x0 of a flow, sqrt(a) eps - sqrt(1 - a) x0 of DDPM's.
    prediction: Literal["eps", "v", "x0"] = "eps"
    # Whether sampling clamps predictions of x0 to [-1, 1]; training never does, and a mean flow
    # predicts none.
    clip_x0: bool = False
    # How the times to train at are drawn: sigmoid of N(time_mean, time_std^2), or uniform ones
    # moved towards noise.
    time_sampling: Literal["uniform", "logit_normal", "shifted"] = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    # Of an example's loss: Min-SNR's, or 1 / (mean square error + 1e-3)^adaptive_power.
    weighting: Literal["none", "min_snr", "adaptive"] = "none"
    min_snr_gamma: float = 5.0
    adaptive_power: float = 1.0

    # Fields of the gaussian process; the flows ignore the first two.
    num_steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"  # of the noise
    # Of the reverse process: learned between two bounds, or fixed at the lower or the upper one.
    # A flow has none.
    variance: Literal["learned_range", "fixed_small", "fixed_large", "none"] = "learned_range"

    # Of mean_flow: the share of examples that learn an average, over r < t; the others have r = t.
    share_r_below_t: float = 0.5

    @property
    def told_loss(self) -> str:
        """The loss that tells how training goes: with adaptive weights `loss` is always near 1."""
        return "mse" if self.weighting == "adaptive" else "loss"


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """Guidance that training folds into the model, so that sampling calls it once a step."""

    scale: float = 1.0  # the scale of classifier-free guidance that it amounts to; 1 is none
    # Makes the scale an input of the model, between 1 and this, which sample.cfg_scale chooses.
    max_scale: float | None = None
    max_noise: float = math.inf  # guided at noise levels sigma / alpha up to this
    start_step: int = 0  # training steps of the plain loss that come first

    @property
    def is_folded(self) -> bool:
        """Whether there is any."""
        return self.scale != 1 or self.max_scale is not None


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What a student learns from `training.teacher` (docs/distillation.md)."""

    # Weights of two terms of the loss: the mean square error to the teacher's output, its variance
    # included, and the relative one to its residual stream.
    output: float = 1.0
    features: float = 0.0
    # Blocks after which the streams are compared, counted from 1; None is after every block.
    blocks: tuple[int, ...] | None = None
    # Whether each block is compared on the teacher's stream before it, not on the student's own.
    teacher_forcing: bool = False
    train: Literal["mixers", "all"] = "all"  # what gets updates
    all_after: int | None = None  # updates after which `mixers` becomes `all`; None: never

    @property
    def is_compared(self) -> bool:
        """Whether the loss has a term of the teacher."""
        return self.output > 0 or self.features > 0
