"""The model: its network, and what draws images with it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import BACKBONES, Config, grid_of
from diffussm_jax.exporting.pytorch.files import read_safetensors
from diffussm_jax.exporting.pytorch.process import PROCESSES, Denoiser

FOLDER = Path(__file__).parent
# Fields of the sample section of config.json that `Model.sample` takes as options.
OPTIONS = ("steps", "sampler", "eta", "sde", "cfg_scale", "cfg_channels", "cfg_interval")


class Model(nn.Module):
    """The network of a config, which `forward` calls, and the sampler of its process."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.network = BACKBONES[config["model"]["name"]](config)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The prediction [b o h w] for x_t [b c h w], what is told of times [b k], classes [b]."""
        return self.network(x_t, t, y)

    @torch.no_grad()
    def sample(
        self,
        classes: Sequence[int] | None = None,
        *,
        num: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        noise: Callable[[int], Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Draw an image for each class, or `num` images.

        Args:
            classes: taken in turn where `num` is larger; None takes every class in turn.
            seed: image i is a function of the seed, of i, its class and the options alone.
            noise: replaces the seed: gives normal noise [num c h w] for a step, first for START.
            **options: `steps`, `sampler`, `cfg_scale` ...; others than in config.json.

        Returns:
            float32 [num c h w]: images in [-1, 1], or latents as their decoder takes them.

        Raises:
            ValueError: an option or a class is none of the model's, or a number out of range.
        """
        if unknown := options.keys() - OPTIONS:
            raise ValueError(f"{min(unknown)} is none of {', '.join(OPTIONS)}")
        options = {name: self.config["sample"][name] for name in OPTIONS} | options
        if num is None:
            num = len(classes) if classes is not None else self.config["sample"]["num"]
        if num < 1 or not 0 <= seed < 2**31:
            raise ValueError(f"num must be above 0, seed in 0 .. 2**31 - 1, got {num} and {seed}")
        labels, batches = self.labels(classes, num), range(0, num, num if noise else batch_size)
        images = []
        for start in batches:
            indices = range(start, min(start + batches.step, num))
            y = None if labels is None else labels[start : indices.stop]
            denoise = guided(self, y, options)
            process = PROCESSES[self.config["diffusion"]["process"]](self.config["diffusion"])
            images.append(process.draw(denoise, noise or self.noise(seed, indices), options))
        is_latent = self.config["data"]["space"] == "latents"
        return torch.cat(images) / (self.config["autoencoder"]["scale"] if is_latent else 1)

    def labels(self, classes: Sequence[int] | None, num: int) -> Tensor | None:
        """The classes of the images, in turn; None where the model knows none."""
        num_classes = self.config["data"]["num_classes"]
        known = range(num_classes)
        if any(y not in known for y in classes or ()):
            raise ValueError(f"classes must be in 0 .. {num_classes - 1}, got {classes}")
        if not num_classes:
            return None
        in_turn = torch.tensor(classes or known, device=self.device)
        return in_turn[torch.arange(num, device=self.device) % len(in_turn)]

    def noise(self, seed: int, indices: range) -> Callable[[int], Tensor]:
        """Noise that is the same on every device: it is drawn on the CPU, for each image alone."""
        generators = [torch.Generator().manual_seed((seed << 32) + i) for i in indices]
        shape = grid_of(self.config)

        def draw(step: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(
                self.device
            )

        return draw

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def guided(model: Model, y: Tensor | None, options: dict[str, Any]) -> Denoiser:
    """The network with guidance: of a model that is told the scale, or classifier-free."""
    is_told_scale = model.config["guidance"]["max_scale"] is not None
    null_label = model.config["data"]["num_classes"]
    low, high = options["cfg_interval"] or (-1.0, float("inf"))

    def denoise(x_t: Tensor, told: list[float], level: float) -> Tensor:
        scale = options["cfg_scale"] if low < level <= high else 1.0
        told = [*told, 4 / scale] if is_told_scale else told
        t = torch.tensor(told, device=x_t.device).expand(len(x_t), -1).float()
        if y is None or is_told_scale or scale == 1:
            return model(x_t, t, y)
        labels = torch.cat([y, torch.full_like(y, null_label)])
        conditional, without = model(torch.cat([x_t, x_t]), torch.cat([t, t]), labels).chunk(2)
        channels = options["cfg_channels"] or x_t.shape[1]  # of a variance: the conditional one's
        c, u = conditional[:, :channels], without[:, :channels]
        return torch.cat([u + scale * (c - u), conditional[:, channels:]], dim=1)

    return denoise


def load(folder: str | Path = FOLDER, *, s4d: str = "fft") -> Model:
    """The model of an export, on the CPU.

    Args:
        s4d: how S4D layers are computed, "fft" or "recurrence".
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tensors = read_safetensors(Path(folder) / "model.safetensors")
    with torch.device("meta"):
        model = Model(config)
    names = model.network.state_dict()
    model.network.load_state_dict({n: parameter(n, tensors) for n in names}, assign=True)
    for module in model.modules():
        if hasattr(module, "form"):
            module.form = s4d
    return model.eval()


def parameter(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """A parameter of the network from the tensors of an export.

    There the blocks of a stack are one tensor, whose first axis counts them, and a kernel's last
    axis is its output's.
    """
    parts = name.split(".")
    tensor = tensors[".".join(x for x in parts if not x.isdigit()).replace(".weight", ".kernel")]
    for part in parts:
        if part.isdigit():
            tensor = tensor[int(part)]
    if parts[-1] == "weight":
        tensor = tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
    return tensor.contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """Images [b c h w] in [-1, 1] as uint8 [b h w c]."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
