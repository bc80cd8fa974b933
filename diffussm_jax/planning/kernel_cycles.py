"""The compiler's cycles for the Pallas kernels of s4d, which XLA's own estimates leave out.

libtpu writes how each bundle of a kernel uses the chip's units, but only if a flag says so before
it loads; hence a process of its own. A kernel is unrolled, so its bundles before the last
scheduling pass, times the steps of its grid, are its cycles (within 2 % of the compiler's own
figure where that exists).
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from diffussm_jax.shapes import ceil_div

KERNELS = ("s4d_forward", "s4d_backward")


def kernel_cycles(
    topology: str, b: int, l: int, d: int, *, num_pairs: int = 32, dtype: str = "bfloat16"
) -> dict[str, int]:
    """Cycles of one call of each kernel for u [b l d] on one chip, both directions.

    Raises:
        RuntimeError: the kernels do not compile for the chip.
    """
    options = {"b": b, "l": l, "d": d, "num-pairs": num_pairs, "dtype": dtype}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--xla_jf_dump_to={folder}",
            "--xla_jf_dump_llo_text=true",
            "--xla_jf_dump_llo_pass_label_regex=pre-delay",
        ]
        done = subprocess.run(
            [sys.executable, "-m", __name__, topology, *arguments],
            env=os.environ | {"LIBTPU_INIT_ARGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"compiling the kernels failed:\n{done.stderr}")
        steps = json.loads(done.stdout.splitlines()[-1])
        return {name: steps * _bundles(Path(folder), name) for name in KERNELS}


def _bundles(folder: Path, kernel: str) -> int:
    """Count the lines of the table of bundles, whose first column is a number."""
    (path,) = folder.glob(f"*{kernel}*pre-delay_hlo-static*")
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(len(row) == 10 and row[0].isdigit() for row in rows)


def main() -> None:
    """Compile both kernels and write to stdout how many steps of their grid each core takes."""
    import jax

    from diffussm_jax.ops.pallas_tpu import tiling_for
    from diffussm_jax.ops.pallas_tpu.tiling import fit
    from diffussm_jax.ops.s4d import Implementation, abstract_ssm, s4d
    from diffussm_jax.planning import tpu_compiler
    from diffussm_jax.planning.chips import chip_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topology")
    for name in ("b", "l", "d", "num-pairs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    args = parser.parse_args()
    device = tpu_compiler.devices(args.topology)[0]
    u = jax.ShapeDtypeStruct((args.b, args.l, args.d), args.dtype)
    ssm = abstract_ssm(2, args.d, args.num_pairs)
    tiling = fit(tiling_for(device.device_kind), u, ssm)
    implementation = Implementation("pallas_tpu", tiling=tiling)

    def both(*arguments: Any) -> Any:
        y, vjp = jax.vjp(functools.partial(s4d, implementation=implementation), *arguments)
        return y, vjp(y)

    tpu_compiler.compile_for(device, both, u, ssm)
    steps = ceil_div(args.d, tiling.channels)
    sys.stdout.write(f"{ceil_div(steps, chip_of(device).num_cores)}\n")


if __name__ == "__main__":
    main()
