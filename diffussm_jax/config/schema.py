"""Every field of a run: its type, its default (the paper's) and what it means.

`configs/*.py` override these defaults as a ConfigDict; `from_dict` turns the result, flags included,
back into the frozen dataclasses that the code reads. Standard library only, so that models import
without the tools of training.
"""

import dataclasses
from typing import Literal

# Depth and width: DiT's ladder plus one layer, as the paper does for XL.
SIZES = {"S": (13, 384), "B": (13, 768), "L": (25, 1024), "XL": (29, 1152)}
# Depth, width and heads of DiT (its table 1).
DIT_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: Literal["diffussm", "dit"] = "diffussm"
    depth: int = 29
    width: int = 1152
    patch_size: int = 1  # pixels of a token's side; 1 is the paper's
    position: Literal["sincos2d", "none"] = "sincos2d"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations; parameters are float32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes
    scan_unroll: int = 1  # layers per iteration of the scan; the depth suits small models on CPU
    # Read by diffussm alone:
    m: int = 2  # hourglass ratio: tokens per group
    state_size: int = 64  # N, real states per channel and direction
    direction: Literal["both", "forward"] = "both"
    dt_range: tuple[float, float] = (1e-3, 1e-1)  # log_dt starts uniform between their logarithms
    dt_rate: float = 1.0  # multiplies dt; 0.5 for twice as many tokens as trained on
    share_ssm: bool = False  # one filter for all channels
    gate: bool = False  # adaLN-Zero gate on each block
    ssm_implementation: (
        Literal["scan", "associative_scan", "fft", "chunked", "pallas_tpu"] | None
    ) = None
    # Read by dit alone:
    num_heads: int = 16  # of its attention


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    num_steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["eps", "v", "x0"] = "eps"
    variance: Literal["learned_range", "fixed_small", "fixed_large"] = "learned_range"
    clip_x0: bool = False  # clamp x0 to [-1, 1] while sampling, for pixels


@dataclasses.dataclass(frozen=True)
class DataConfig:
    # A TFDS data set, `lsun/<category>`, or `folder:<path>`, whose sub-folders are the classes.
    name: str = "digits"
    space: Literal["pixels", "latents"] = "pixels"
    image_size: int = 8  # side of the centre crop
    channels: int = 1  # of the image; latents take theirs from the autoencoder
    num_classes: int = 10  # 0 trains without labels
    split: str = "train"  # or a slice, as train[1%:]
    eval_split: str | None = "test"  # held out for the evaluation loss
    data_dir: str | None = None  # of prepared data sets; None is TFDS's own default
    latents_dir: str | None = None  # of cached latents; None is `latents` in data_dir
    shard_size: int = 1000  # images per file of cached latents
    flip: bool = True  # random horizontal flips
    on_error: Literal["fail", "skip"] = "fail"  # skip allows 1 % of bad records
    workers: int | None = None  # threads that read and decode; None: one a core, up to 16
    in_memory: bool = False  # keep all records in memory, on every host


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    # A folder with config.json and safetensors in the layout of diffusers, or a hub id.
    name: str = "stabilityai/sd-vae-ft-ema"
    factor: int = 8  # pixels per latent position and side
    channels: int = 4
    scale: float = 0.18215  # multiplies latents, to unit variance
    dtype: Literal["bfloat16", "float32"] = "float32"  # of its activations
    batch_size: int = 16  # images per call and device


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # linear from 0, then constant
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # never on SSM parameters
    ssm_lr_multiplier: float = 1.0  # learning rate of SSM parameters over that of the others
    grad_clip: float | None = None  # global norm


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    num_steps: int = 400_000
    batch_size: int = 256  # over all devices
    num_microbatches: int = 1  # parts of a batch whose gradients are added up
    ema_decay: float = 0.9999
    # Relative widths (sigma_rel of EDM2) of power-function averages, whose snapshots make any other width afterwards.
    ema_lengths: tuple[float, ...] = ()
    ema_snapshot_every: int = 10_000
    label_dropout: float = 0.1  # share of examples trained without their label
    log_every: int = 100
    eval_every: int = 5_000  # steps between losses on the held-out split
    eval_batches: int = 8
    sample_every: int | None = 10_000  # steps between sample grids; None draws none
    evaluate_every: int | None = None  # steps between scores, by `evaluate`
    # A work directory or an export whose EMA the run begins from; only a label table may have another shape.
    init_from: str | None = None
    # Where the loss or the gradient is not finite: skip drops the update of that step.
    on_nonfinite: Literal["stop", "skip"] = "skip"
    max_nonfinite: int = 10  # dropped updates in a row that stop the run
    spike_threshold: float | None = 10.0  # robust deviations of a loss above the median that warn
    # Seconds without a finished step that end the process; the first may take half an hour more, to compile.
    watchdog_seconds: float | None = 3600.0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 5_000
    keep: int = 3  # newest checkpoints that are kept; besides them
    keep_every: int | None = None  # those of every so many steps, a multiple of `every`
    keep_best: bool = True  # and that of the lowest evaluation loss
    timeout: float = 1800.0  # seconds that a save may take in the background


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 in one of them takes what the others leave."""

    data: int = -1  # the batch is split over it
    fsdp: int = 1  # so are the batch, parameters, EMA and optimizer state
    sequence: int = 1  # and the tokens of each example


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    topology: str = "v5e:4x4"
    topologies: tuple[str, ...] | None = None  # several, to compare
    num_slices: int = 1


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    num: int = 64
    batch_size: int = 64  # images drawn at once, over all devices
    # Images of a device's call of the model, whatever batch_size: then no image depends on batch or devices by one bit.
    microbatch: int | None = None
    sampler: Literal["ddpm", "ddim", "dpm_solver++", "heun"] = "ddpm"
    steps: int = 250
    eta: float = 0.0  # noise of DDIM
    cfg_scale: float = 1.0  # 1 is no guidance
    cfg_channels: int | None = None  # guided channels; None is all, DiT's released code guides 3
    cfg_interval: tuple[float, float] | None = (
        None  # guided noise levels sigma / alpha; None is all
    )
    # A work directory or export of a worse version of the model, guided away from instead of from no label.
    autoguidance: str | None = None
    labels: Literal["random", "balanced", "list"] = (
        "balanced"  # every class in turn; list: of `classes`
    )
    classes: tuple[int, ...] | None = None  # asked for in turn by labels = list
    ema: bool = True
    ema_length: float | None = None  # relative width of an average made of the run's snapshots
    outputs: tuple[Literal["grid", "npz", "png"], ...] = ("grid", "npz")
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    # Replaces fields of `sample`, as evaluation/presets.py says; None samples as `sample` says.
    preset: Literal["paper", "dit_guided", "fast"] | None = None
    name: str | None = None  # of the result's file; None is the preset's, or `default`
    # Or module:function, from uint8 images [b h w c] to {"pool": [b d]} (evaluation/features.py).
    features: str = "inception"  # pixels, classifier
    weights: str | None = None  # Inception's: what convert.inception wrote
    reference: str | None = None  # npz in ADM's form; None is what refstats left
    reference_images: int = 10_000  # that refstats keeps, for precision and recall
    images: str | None = None  # an npz or a folder to score instead of the model's
    batch_size: int = 64  # images of a call of the extractor, over all devices
    training_num: int = 1000  # images of a score during training


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    folder: str | None = None  # None is `export` in the work directory


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    # Folder of compiled programs, for the next start; None is JAX_COMPILATION_CACHE_DIR, or none.
    compilation_cache_dir: str | None = None
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    plan: PlanConfig = PlanConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    @property
    def grid(self) -> tuple[int, int, int]:
        """(h, w, c) of what the model denoises: the image, or its latent."""
        if self.data.space == "pixels":
            return self.data.image_size, self.data.image_size, self.data.channels
        side = self.data.image_size // self.autoencoder.factor
        return side, side, self.autoencoder.channels

    @property
    def num_tokens(self) -> int:
        """Tokens of an image: patches of the grid."""
        height, width, _ = self.grid
        return height * width // self.model.patch_size**2
