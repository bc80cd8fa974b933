"""The command line of a model.py."""

import argparse
import sys
from pathlib import Path

import torch

from diffussm_jax.exporting.pytorch.files import grid, png
from diffussm_jax.exporting.pytorch.model import Model, load, to_uint8


def main() -> None:
    """Draw images into one picture, or latents into a file of PyTorch's.

    A mistake ends it in one line, with exit code 2.
    """
    parser = argparse.ArgumentParser(description="Draw images from the model beside this file.")
    parser.add_argument("--num", type=int, help="images to draw")
    parser.add_argument("--classes", help="their classes in turn, as 0,1; every class by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the sampler; the run's by default")
    parser.add_argument("--sampler", help="the run's by default")
    parser.add_argument("--cfg-scale", type=float, help="strength of guidance; 1 is none")
    parser.add_argument("--s4d", choices=["fft", "recurrence"], default="fft")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a .png of all images, or a .pt of the tensor")
    arguments = parser.parse_args()
    try:
        out = draw_to_file(arguments)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.write(f"wrote {out}\n")


def draw_to_file(arguments: argparse.Namespace) -> Path:
    """Draw as the command says, and give the file.

    Raises:
        ValueError: an argument is none of the model's.
        OSError: a file cannot be read or written.
    """
    named = {name: getattr(arguments, name) for name in ("steps", "sampler", "cfg_scale")}
    options = {name: value for name, value in named.items() if value is not None}
    model = on_device(load(s4d=arguments.s4d), arguments.device)
    is_latent = model.config["data"]["space"] == "latents"
    out = arguments.out or Path("latents.pt" if is_latent else "samples.png")
    suffixes = [".pt"] if is_latent else [".png", ".pt"]
    if out.suffix not in suffixes:
        what = "latents, to be decoded" if is_latent else "images"
        raise ValueError(f"--out must end in {' or '.join(suffixes)}: this model draws {what}")
    classes = [int(y) for y in arguments.classes.split(",")] if arguments.classes else None
    images = model.sample(classes, num=arguments.num, seed=arguments.seed, **options).cpu()
    with out.open("wb") as file:
        if out.suffix == ".pt":
            torch.save(images, file)
        else:
            file.write(png(grid(to_uint8(images))))
    return out


def on_device(model: Model, name: str) -> Model:
    """Move a model; a ValueError names a device that is not here."""
    try:
        return model.to(name)
    except (AssertionError, RuntimeError) as error:  # PyTorch's, without CUDA and without a GPU
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
