"""XLA's compiler for GPUs on any Linux machine: JAX's CUDA plug-in compiles for absent cards.

It plans memory as on a card. It times nothing, so it takes default tiles for its products where a
run on a card would try several; that changes neither what the products read nor their number.
"""

import functools
from typing import Any

import jax
from jax.experimental import topologies

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.cuda import cuda_as_compiler, has_cuda_plugin
from diffussm_jax.parallel.settings import find_devices
from diffussm_jax.planning.gpus import read_topology

NO_TILES = "Couldn't find output tile sizes"  # XLA's words


@functools.cache
def devices(topology: str) -> tuple[jax.Device, ...]:
    """The cards of a topology such as "h100:8".

    Raises:
        UserError: the CUDA plug-in is not installed, or the topology has no such number of cards.
    """
    gpu, number = read_topology(topology)
    if not has_cuda_plugin():
        raise UserError(
            f"config.plan.topology {topology!r} needs JAX's CUDA plug-in: `make plan-gpu` makes "
            ".venv-gpu, an environment that has it"
        )
    find_devices()  # before anything else asks JAX for them, which would tell of missing chips
    with cuda_as_compiler():
        description = topologies.get_topology_desc(
            platform="cuda", target_config=gpu.describe(), topology=f"1x1x{number}"
        )
    return tuple(description.devices)


def lower(jitted: Any, *arguments: Any) -> jax.stages.Lowered:
    """Lower a jitted function for the cards that its abstract arguments lie on."""
    return jitted.trace(*arguments).lower(lowering_platforms=("cuda",))


def compile_lowered(lowered: jax.stages.Lowered) -> Any:
    """Compile what `lower` gave.

    Where Triton's default tiles fit no product of the program, all its products are cuBLAS's.
    """
    with cuda_as_compiler():
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if NO_TILES not in str(error):
                raise
            return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
