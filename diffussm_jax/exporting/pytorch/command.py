"""The command line of a model.py."""

import argparse
import sys
from pathlib import Path

import torch

from diffussm_jax.exporting.pytorch.files import grid, write_png
from diffussm_jax.exporting.pytorch.model import load, to_uint8


def main() -> None:
    """Draw images into one picture, or latents into a file of PyTorch's."""
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
    named = {name: getattr(arguments, name) for name in ("steps", "sampler", "cfg_scale")}
    options = {name: value for name, value in named.items() if value is not None}
    model = load(s4d=arguments.s4d).to(arguments.device)
    is_latent = model.config["data"]["space"] == "latents"
    out = arguments.out or Path("latents.pt" if is_latent else "samples.png")
    try:
        classes = [int(y) for y in arguments.classes.split(",")] if arguments.classes else None
        if is_latent and out.suffix != ".pt":
            raise ValueError("--out must end in .pt: this model draws latents, to be decoded")
        images = model.sample(classes, num=arguments.num, seed=arguments.seed, **options).cpu()
    except ValueError as error:
        sys.exit(f"error: {error}")
    if out.suffix == ".pt":
        torch.save(images, out)
    else:
        write_png(out, grid(to_uint8(images)))
    sys.stdout.write(f"wrote {out}\n")


if __name__ == "__main__":
    main()
