"""Published figures of TPU chips, which estimates of time are computed from.

Source: the TPU pages of the Cloud documentation, for each chip its peak of bf16 products, its HBM
and that memory's bandwidth, the bandwidth of its links, and the axes of a slice that close to
rings. The clock is the one at which the matrix units reach that peak.
"""

import dataclasses

import jax

from diffussm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX shows it: a chip, on v4 and v5p with both cores, and on TPU7x half a chip.

    Attributes:
        peak_flops: operations a second in bf16.
        hbm_bandwidth: bytes a second between HBM and all cores of a chip.
        link_bandwidth: bytes a second over all links of a chip, one way.
        num_cores: how many cores share the steps of a kernel's grid.
        ring: an axis of a multiple of so many chips closes to a ring.
        cubes: rings are between cubes: an axis closes only where all do.
    """

    name: str
    peak_flops: float
    clock_hz: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    num_cores: int = 1
    ring: int = 16
    cubes: bool = False

    @property
    def usable_bytes(self) -> int:
        """What a program may take: all of HBM."""
        return self.hbm_bytes

    def closes(self, chips: tuple[int, ...], axis: int) -> bool:
        """Whether an axis of a slice of chips [x y z] closes to a ring."""
        return all(n % self.ring == 0 for n in (chips if self.cubes else chips[axis : axis + 1]))


GIB = 2**30
CHIPS = {
    "TPU v4": Chip("v4", 275e12, 1.05e9, 32 * GIB, 1200e9, 300e9, 2, ring=4, cubes=True),
    "TPU v5 lite": Chip("v5e", 197e12, 1.5e9, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 1.75e9, 95 * GIB, 2765e9, 600e9, 2, ring=4, cubes=True),
    "TPU v6 lite": Chip("v6e", 918e12, 1.75e9, 32 * GIB, 1640e9, 400e9),
    # Half of a chip's 2,307 TFLOP/s, 192 GiB, 7,380 GB/s and 600 GB/s; its core alone.
    "TPU7x": Chip("tpu7x", 1153.5e12, 2.2e9, 96 * GIB, 3690e9, 300e9, ring=4, cubes=True),
}


def chip_of(device: jax.Device) -> Chip:
    """The published figures of a device.

    Raises:
        UserError: the table has no chip of its kind.
    """
    if device.device_kind not in CHIPS:
        raise UserError(
            f"config.plan: no figures for {device.device_kind!r}; known are {', '.join(CHIPS)}"
        )
    return CHIPS[device.device_kind]
