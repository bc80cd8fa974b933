"""Published figures of GPUs, and the description of one by which XLA compiles for it.

Sources: NVIDIA's data sheets of the H100 SXM5, H200 SXM, A100 (80 GB SXM and 40 GB SXM), L4 and T4
and its white papers on Turing, Ampere, Hopper and Ada (GeForce RTX 4090); limits of a compute
capability are from the CUDA C++ programming guide. The memory is what the driver shows. Peaks are
of dense products in bf16 with sums in float32, without sparsity. The T4 has no matrix units for
bf16: its peak here is that of fp16, and XLA multiplies bf16 there in float32.
"""

import dataclasses
import os

import jax

from diffussm_jax.errors import UserError

MOST = 8  # cards of one host, among which the links below are

_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One card.

    Attributes:
        name: what JAX calls the kind of device.
        num_cores: its streaming multiprocessors.
        peak_flops: operations a second in bf16.
        bandwidth: bytes a second between memory and card.
        link_bandwidth: bytes a second from a card to the others, one way: NVLink's or PCIe's.
        capability: major and minor.
        shared_memory_kib: of a multiprocessor; a block may take 1 KiB less, and on Turing all.
        threads_per_core: that a multiprocessor holds.
        fpus_per_core: of float32.
    """

    name: str
    num_cores: int
    peak_flops: float
    memory_bytes: int
    bandwidth: float
    link_bandwidth: float
    l2_bytes: int
    clock_ghz: float
    capability: tuple[int, int]
    shared_memory_kib: int
    threads_per_core: int
    fpus_per_core: int

    @property
    def usable_bytes(self) -> int:
        """What JAX takes of the memory, by the environment variable that also rules a run."""
        return int(memory_fraction() * self.memory_bytes)

    def describe(self) -> str:
        """The card as XLA's `GpuTargetConfigProto`, in its text form."""
        major, minor = self.capability
        reserved_kib = 1 if major >= 8 else 0
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            runtime_version {{ major: 12 minor: 8 patch: 0 }}
            dnn_version_info {{ major: 9 minor: 7 patch: 0 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.num_cores}
              fpus_per_core: {self.fpus_per_core}
              threads_per_core_limit: {self.threads_per_core}
              threads_per_block_limit: 1024
              threads_per_warp: 32
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              shared_memory_per_core: {self.shared_memory_kib * 1024}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {(self.shared_memory_kib - reserved_kib) * 1024}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.l2_bytes}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory_bytes}
            }}
            """


_HOPPER = ((9, 0), 228, 2048, 128)
_AMPERE = ((8, 0), 164, 2048, 64)
_ADA = ((8, 9), 100, 1536, 128)
_TURING = ((7, 5), 64, 1024, 64)
_MIB = 2**20
GPUS = {
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        132, 989e12, 81559 * _MIB, 3350e9, 450e9, 50 * _MIB, 1.98, *_HOPPER,
    ),
    "h200": Gpu(
        "NVIDIA H200", 132, 989e12, 143771 * _MIB, 4800e9, 450e9, 50 * _MIB, 1.98, *_HOPPER
    ),
    "a100-80": Gpu(
        "NVIDIA A100-SXM4-80GB",
        108, 312e12, 81920 * _MIB, 2039e9, 300e9, 40 * _MIB, 1.41, *_AMPERE,
    ),
    "a100-40": Gpu(
        "NVIDIA A100-SXM4-40GB",
        108, 312e12, 40960 * _MIB, 1555e9, 300e9, 40 * _MIB, 1.41, *_AMPERE,
    ),
    "l4": Gpu("NVIDIA L4", 58, 121e12, 23034 * _MIB, 300e9, 32e9, 48 * _MIB, 2.04, *_ADA),
    "t4": Gpu("Tesla T4", 40, 65e12, 15360 * _MIB, 320e9, 16e9, 4 * _MIB, 1.59, *_TURING),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090",
        128, 165e12, 24564 * _MIB, 1008e9, 32e9, 72 * _MIB, 2.52, *_ADA,
    ),
}  # fmt: skip


def memory_fraction() -> float:
    """The part of a card's memory that JAX takes at its start and never exceeds.

    Raises:
        UserError: the environment variable that sets it is not a number from 0 to 1.
    """
    name, value = next(((x, os.environ[x]) for x in _FRACTION if os.environ.get(x)), ("", "0.75"))
    try:
        fraction = float(value)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{name} must be a part of a card's memory, as 0.9, got {value!r}")
    return fraction


def is_gpus(topology: str) -> bool:
    """Whether a topology names one of these cards, as "h100:8" does."""
    return topology.partition(":")[0] in GPUS


def read_topology(topology: str) -> tuple[Gpu, int]:
    """The card of a topology, and how many of them.

    Raises:
        UserError: after the colon there is no number of cards that one host has.
    """
    name, _, number = topology.partition(":")
    if not number.isdecimal() or not 1 <= int(number) <= MOST:
        raise UserError(
            f"config.plan.topology must be a card and how many of one host, {name}:1 to "
            f"{name}:{MOST}, got {topology!r}"
        )
    return GPUS[name], int(number)


def gpu_of(device: jax.Device) -> Gpu:
    """The published figures of a device."""
    return next(gpu for gpu in GPUS.values() if gpu.name == device.device_kind)
