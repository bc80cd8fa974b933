"""The fields of the network, which models read."""

import dataclasses
from typing import Literal

# Depth and width by size: DiT's sizes with one layer more, as the paper has for XL. The paper
# studies S, L and XL of widths 384, 768 and 1152 and no B: its L is as wide as B here.
SIZES = {"S": (13, 384), "B": (13, 768), "L": (25, 1024), "XL": (29, 1152)}
# Depth, width and number of heads of DiT by size (its table 1).
DIT_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
# Blocks of each stage and outermost width of FCDM and DiCo by size, as in their released code.
FCDM_SIZES = {
    "S": ((2, 4, 8, 4, 2), 128),
    "B": ((2, 4, 8, 4, 2), 256),
    "L": ((2, 4, 8, 4, 2), 512),
    "XL": ((3, 6, 12, 6, 3), 512),
}
DICO_SIZES = {
    "S": ((5, 4, 4, 4, 4), 128),
    "B": ((5, 4, 4, 4, 4), 256),
    "L": ((9, 8, 9, 8, 9), 352),
    "XL": ((9, 9, 10, 9, 9), 416),
}
SSMImplementation = Literal["scan", "associative_scan", "fft", "chunked", "pallas_tpu"]
StackImplementation = Literal["xla", "pallas_tpu"]
AttentionImplementation = Literal["xla", "flash"]
MixerName = Literal["attention", "s4d", "delta_conv", "convnext", "dico"]
DeltaGate = Literal["scaled", "released", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: DiffuSSM, or DiT's blocks around attention or another mixer."""

    name: Literal["diffussm", "dit"] = "diffussm"
    depth: int = 29  # blocks, where `levels` is None
    width: int = 1152  # channels of a token; with `levels`, those of the outermost stages
    patch_size: int = 1  # side of a token in pixels or latent positions; the paper's is 1
    position: Literal["sincos2d", "none"] = "sincos2d"  # position code added to the tokens
    # Multiplies positions, or (rows, columns): 0.5 gives twice as many tokens the codes of half.
    position_scale: float | tuple[float, float] = 1.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations; parameters are float32
    # Of x, to which each block adds its output, as in the paper's mixed precision.
    residual_dtype: Literal["bfloat16", "float32"] = "float32"
    # Which activations the backward pass recomputes to save memory: none, all but those of matrix
    # products (dots), or all of a block (full).
    remat: Literal["none", "dots", "full"] = "none"
    # Blocks per iteration of the loop over blocks. The whole depth suits small models on a CPU.
    scan_unroll: int = 1

    # Fields of DiffuSSM, and all but m and gate of DiT's mixer s4d.
    m: int = 2  # hourglass ratio: tokens per group
    state_size: int = 64  # N: real numbers in the state of a channel and direction
    direction: Literal["both", "forward"] = "both"  # in which the SSM runs over the tokens
    dt_range: tuple[float, float] = (1e-3, 1e-1)  # initial dt, log-uniform between the two
    # Multiplies dt; 0.5 suits rows of twice as many tokens as were trained on. The mixer s4d may
    # have two: of scans along rows, and of those along columns.
    dt_rate: float | tuple[float, float] = 1.0
    share_ssm: bool = False  # whether all channels share the parameters of one SSM
    gate: bool = False  # whether each block's output has adaLN-Zero's gate
    # How the SSM is computed; None takes what is fastest on the device.
    ssm_implementation: SSMImplementation | None = None
    # How the blocks are computed: as XLA compiles them, or by TPU kernels for the complete stack;
    # None takes what is fastest on the device. The kernels recompute no product but under
    # remat = full, and have no scan_unroll.
    stack_implementation: StackImplementation | None = None

    # Fields of DiT; DiffuSSM ignores them.
    mixer: MixerName = "attention"  # what moves information between tokens
    # The mixers of a few layers, repeated over the depth, in place of `mixer`.
    mixers: tuple[MixerName, ...] | None = None
    # Of s4d: orders in which the tokens are scanned, along rows, along columns, or each.
    scan_orders: Literal["rows", "columns", "both"] = "both"
    # Side of the kernels of delta_conv, convnext and dico; None takes 13, 7 and 3, their authors'.
    kernel_size: int | None = None
    # Of delta_conv: by how much each stage of the pyramid shrinks the grid of tokens.
    pyramid: tuple[int, ...] = (1, 2)
    # Of delta_conv: by what one half of the channels is multiplied. It is the other half, scaled by
    # 1 / sqrt(channels) as the paper says or by sqrt(channels) as the released code does, or the
    # sigmoid of the other half, as in the released PixArt models.
    delta_gate: DeltaGate = "scaled"
    # Of convnext: whether it is modulated behind its convolution, as FCDM is, and not before it.
    modulate_convolved: bool = False
    num_heads: int = 16  # of attention; with `levels`, those of the outermost stages
    mlp_ratio: int = 4  # hidden units of a block's MLP a channel; 0 leaves the MLP out, as FCDM
    # Blocks of each stage of a U, an odd number of stages, as 2,4,8,4,2: up to the middle one each
    # has half the grid and twice the width and the heads of the one before, and then back. None is
    # one stack of `depth` blocks.
    levels: tuple[int, ...] | None = None
    # Of `levels`: whether the last stage has the width of the first, and a convolution follows, as
    # in FCDM, or twice that width and the conditions of the level below, as in DiCo.
    last_stage: Literal["narrow", "wide"] = "narrow"
    # How attention is computed: as XLA compiles it, or by a kernel that writes no scores, which is
    # JAX's on TPUs and cuDNN's on GPUs; None takes the kernel where it runs and is faster.
    attention_implementation: AttentionImplementation | None = None

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return self.depth if self.levels is None else sum(self.levels)

    @property
    def num_levels(self) -> int:
        """The number of grids of tokens, each of half the height and width of the one before."""
        return 1 if self.levels is None else (len(self.levels) + 1) // 2

    @property
    def pattern(self) -> tuple[MixerName, ...]:
        """The mixers of the first layers of a DiT, which those of the others repeat."""
        return (self.mixer,) if self.mixers is None else self.mixers

    @property
    def has_ssm(self) -> bool:
        """Whether layers scan the tokens by an SSM, whose steps are dt."""
        return self.name == "diffussm" or "s4d" in self.pattern

    @property
    def scans_both(self) -> bool:
        """Whether a layer's SSM scans the tokens along rows and along columns."""
        return self.name == "dit" and self.scan_orders == "both"

    @property
    def has_positions(self) -> bool:
        """Whether the tokens are told where they are."""
        return self.position != "none"
