"""What does one large image take on this machine, in time and memory?

python -m benchmarks.large_image runs/digits --size 128 --steps 10

Draws one image at a size that the model was not trained at, and prints the seconds of a step and
the process's peak of memory. Where the compiler's account of the program is more than `--limit`
GiB, nothing is drawn, and that is printed.
"""

import argparse
import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffussm_jax
from benchmarks.sizes import read_size
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.training.state import abstract_model

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--size", type=read_size, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=float, default=3.0, help="GiB")
    parser.add_argument("--picture", type=Path)
    flags = parser.parse_args()
    model = diffussm_jax.load(flags.workdir)
    options = dataclasses.replace(
        model.config.sample, num=1, image_size=flags.size, steps=flags.steps
    )
    config, mesh = as_drawn(options, model.config), make_mesh(devices=jax.local_devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    program: Any = sampling_program(config, graphdef, mesh, options)  # jitted
    arguments = model.params, None, 0, np.array([0], np.int32), np.array([3], np.int32)
    compiled = program.lower(*arguments).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes / GIB
    height, width, _ = config.grid
    print(f"{height} x {width}, {config.num_tokens} tokens: the program takes {needed:.2f} GiB")
    if needed > flags.limit:
        print(f"more than {flags.limit:g} GiB: not drawn")
        return
    start = time.perf_counter()
    image = to_uint8(np.asarray(compiled(*arguments)))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(f"{flags.steps} steps in {seconds:.1f} s; peak of the process {peak:.2f} GiB")
    if flags.picture is not None:
        diffussm_jax.save_grid(image, flags.picture)


if __name__ == "__main__":
    main()
