"""Sizes of a kernel call, chosen for the chip and the shape."""

import dataclasses
from typing import Any

from diffussm_jax.ops.pallas_tpu.block import HALF, LANES, SUBLANES
from diffussm_jax.shapes import SSM, ceil_div

MAX_CHANNELS = 16  # of a grid step; more make the program longer and no faster
SPILLED = 100 * 1024  # floats that the compiler spills from a channel's tables
MIN_ROWS = 32  # of states that go through a recurrence side by side


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a kernel call is cut; `tiling_for` has the measured choices.

    Attributes:
        chunk_size: tokens T of a chunk, a multiple of 128.
        channels: channels of a grid step; 0 takes as many as fit, up to 16.
        interleave: channels whose recurrences run side by side; 0 fills the pipeline.
        strided_roll: whether the chip can roll each row of a register by one more (v5e and later).
        vmem_bytes: what a kernel may use of the chip's VMEM.
        interpret: run as plain JAX operations, anywhere; `pltpu.InterpretParams` looks for races.
    """

    chunk_size: int = 128
    channels: int = 0
    interleave: int = 0
    strided_roll: bool = True
    vmem_bytes: int = 100 * 2**20
    interpret: Any = False


# By `jax.Device.device_kind`. A core has 16 MiB of VMEM on v4, 64 on v5p and tpu7x, 128 on v5e and
# v6e.
TILINGS = {
    "TPU v4": Tiling(strided_roll=False, vmem_bytes=15 * 2**20),
    "TPU v5 lite": Tiling(),
    "TPU v5": Tiling(vmem_bytes=50 * 2**20),
    "TPU v6 lite": Tiling(),
    "TPU7x": Tiling(vmem_bytes=50 * 2**20),
}


def tiling_for(device_kind: str) -> Tiling:
    """The measured choice for a kind of chip; an unknown kind gets what runs on the smallest."""
    return TILINGS.get(device_kind, TILINGS["TPU v4"])


def refusal(tiling: Tiling, u: Any, ssm: SSM) -> str | None:
    """The reason why the kernels cannot run arrays of these shapes, or None if they can."""
    r, _, n, _ = ssm.poles.shape
    if n > HALF // r:
        return (
            f"poles {ssm.poles.shape} have more than the {HALF // r} pairs that pallas_tpu takes; "
            "take 'chunked'"
        )
    needed = _channel_bytes(tiling, u, r)
    if not tiling.channels and needed > tiling.vmem_bytes:
        return (
            f"u {u.shape} is too long for pallas_tpu: one channel of it needs {needed} bytes of "
            f"VMEM, {tiling.vmem_bytes} are there; take implementation 'chunked' or a smaller batch"
        )
    return None


def fit(tiling: Tiling, u: Any, ssm: SSM) -> Tiling:
    """Fill in for these shapes what the tiling leaves open.

    Raises:
        ValueError: they do not fit.
    """
    if reason := refusal(tiling, u, ssm):
        raise ValueError(reason)
    fitting = int(tiling.vmem_bytes / _channel_bytes(tiling, u, ssm.poles.shape[0]))
    most = min(fitting, MAX_CHANNELS, u.shape[2])
    channels = tiling.channels or 1 << (most.bit_length() - 1)
    rows = _padded_batch(u.shape[0])
    interleave = tiling.interleave or min(channels, max(1, MIN_ROWS // rows))
    return dataclasses.replace(tiling, channels=channels, interleave=interleave)


def _channel_bytes(tiling: Tiling, u: Any, r: int) -> float:
    """VMEM of one channel in the backward kernel, with a tenth to spare."""
    t = tiling.chunk_size
    b = _padded_batch(u.shape[0])
    rows = b * ceil_div(u.shape[1], t)
    # u, du and dy twice, since a block is read while another is used, and scratch.
    blocks = 2 * (2 + r) * rows * t * u.dtype.itemsize
    floats = 3 * rows * LANES + r * t * t + 2 * t * LANES
    floats += 256 * LANES + 8 * b * LANES  # powers, small outputs, states
    floats += SPILLED
    return 1.1 * (blocks + 4 * floats)


def _padded_batch(b: int) -> int:
    return b + -b % SUBLANES
