"""Every field of a run: its type, its default (the paper's) and what it means.

`configs/*.py` override these defaults as a ConfigDict; `from_dict` turns the result, flags
included, back into the frozen dataclasses that the code reads. Only the standard library is
imported, so that models import without the tools of training.
"""

import dataclasses
from typing import Literal

from diffussm_jax.config.editing import EditConfig
from diffussm_jax.config.images import AutoencoderConfig, DataConfig
from diffussm_jax.config.network import ModelConfig
from diffussm_jax.config.objective import DiffusionConfig, DistillConfig, GuidanceConfig
from diffussm_jax.config.paths import FilePath
from diffussm_jax.config.sizes import Size, shortest


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    # Muon takes the kernels of the blocks, at AdamW's rates; AdamW keeps all other parameters.
    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    # After the warmup: constant, half a cosine to 0 at training.num_steps, or constant and then
    # linear to 0 over the last decay_steps.
    schedule: Literal["constant", "cosine", "warmup_stable_decay"] = "constant"
    warmup_steps: int = 0  # steps of a linear rise from 0
    decay_steps: int = 0  # of warmup_stable_decay
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 0.0  # never applied to SSM parameters
    ssm_lr_multiplier: float = 1.0  # SSM parameters learn at learning_rate times this
    grad_clip: float | None = None  # largest global norm of the gradient; None does not clip


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The training run: its length, its batches, and what is done along the way."""

    num_steps: int = 400_000
    batch_size: int = 256  # over all devices
    num_microbatches: int = 1  # parts of a batch, computed in turn; gradients are added up
    ema_decay: float = 0.9999  # of the average of the parameters, per step
    # Relative widths (sigma_rel of EDM2) of power-function averages that are kept besides. Their
    # snapshots make an average of any other width after training.
    ema_lengths: tuple[float, ...] = ()
    ema_snapshot_every: int = 10_000  # steps between snapshots of these averages
    label_dropout: float = 0.1  # share of examples that are trained without their label
    log_every: int = 100  # steps between lines of the log
    # Where losses, scores and sample grids go besides the log: metrics.jsonl (no grids), events
    # for TensorBoard, and Weights & Biases, whose project is that of WANDB_PROJECT.
    loggers: tuple[Literal["jsonl", "tensorboard", "wandb"], ...] = ("jsonl", "tensorboard")
    eval_every: int = 5_000  # steps between losses on the held-out split
    eval_batches: int = 8  # batches of such a loss
    sample_every: int | None = 10_000  # steps between sample grids; None draws none
    evaluate_every: int | None = None  # steps between scores, as `evaluate` says; None has none
    # A work directory or an export whose EMA weights the run begins with. Only a label table may
    # have another shape.
    init_from: FilePath | None = None
    # A work directory or an export to learn from, as `distill` says. The run begins with what its
    # EMA weights have in common with this model, unless init_from is given.
    teacher: FilePath | None = None
    # What is done about a loss or gradient that is not finite; skip drops the step's update.
    on_nonfinite: Literal["stop", "skip"] = "skip"
    max_nonfinite: int = 10  # dropped updates in a row that stop the run
    # A loss this many robust deviations above the median of recent ones is reported; None: never.
    spike_threshold: float | None = 10.0
    # Seconds without a finished step that end the process; None waits for ever. The first step
    # has half an hour more, to compile.
    watchdog_seconds: float | None = 3600.0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which of them are kept."""

    every: int = 5_000  # steps between saves
    keep: int = 3  # the newest that are kept
    keep_every: int | None = None  # also keeps those of every so many steps, a multiple of `every`
    keep_best: bool = True  # whether that of the lowest evaluation loss is kept too
    timeout: float = 1800.0  # seconds that a save may take in the background


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 in one of them takes what the others leave."""

    data: int = -1  # splits the batch
    fsdp: int = 1  # splits the batch, and also parameters, EMA and optimizer state
    sequence: int = 1  # splits the tokens of each example


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The TPU slice or the GPUs that `--mode=plan` compiles for, and whether it searches."""

    topology: str = "v5e:4x4"  # kind and shape of a slice, or a card and how many, as h100:8
    topologies: tuple[str, ...] | None = None  # several instead, to compare
    num_slices: int = 1
    # Whether to look for the mesh (data and fsdp), model.remat and training.num_microbatches that
    # train fastest. All else stays as it is configured.
    search: bool = False
    # Batch sizes to choose from, for a run of as many images; None keeps training.batch_size.
    # Another batch is another training: its steps and learning rate are for you to choose.
    search_batch_sizes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The images to draw and how to draw them."""

    num: int = 64
    batch_size: int = 64  # images drawn at once, over all devices
    # Images in a device's call of the model, whatever batch_size is. With it no bit of an image
    # depends on the batch or on the devices; None calls the model with all that a device draws.
    microbatch: int | None = None
    # Height and width in pixels, or the side of a square; None is data.image_size. Of another size
    # than the model learnt from, `position` and `dt_rule` say how it is carried over.
    image_size: Size | None = None
    # Whether position codes are stretched over the new size, or count on beyond those of training.
    position: Literal["interpolate", "extend"] = "interpolate"
    # By which ratio of the trained size to this one dt is multiplied: that of the widths, of the
    # numbers of pixels, or in a scan along rows that of the widths and along columns that of the
    # heights. None takes axis where a model scans along both, and pixels where it does not.
    dt_rule: Literal["none", "width", "pixels", "axis"] | None = None
    # The first four are of the gaussian process; flows have euler, euler_maruyama and heun, a
    # mean flow euler alone.
    sampler: Literal["ddpm", "ddim", "dpm_solver++", "heun", "euler", "euler_maruyama"] = "ddpm"
    steps: int = 250
    eta: float = 0.0  # noise of DDIM: 0 is deterministic
    # Noise of euler_maruyama: SiT's diffusion coefficient D(t) of this form.
    sde: Literal["sigma", "constant", "decreasing", "increasing_decreasing"] = "sigma"
    # Strength of guidance; 1 is none. A model that is told its scale gets it, and is called once.
    cfg_scale: float = 1.0
    cfg_channels: int | None = None  # channels that are guided; None is all, DiT's code guides 3
    # Noise levels sigma / alpha, (low, high), between which steps are guided; None guides all.
    cfg_interval: tuple[float, float] | None = None
    # A work directory or an export of a worse version of the model. Guidance then leads away from
    # its prediction instead of away from the prediction without label.
    autoguidance: FilePath | None = None
    # Edges that meet, so that images are tiles: those along x, left and right, and along y.
    wrap: Literal["x", "y", "xy"] | None = None
    # Draws in windows of the trained size and averages their predictions: the least share of a
    # window that the next one covers. None calls the model with the whole image.
    window_overlap: float | None = None
    # Of activations while sampling; None is that of the run.
    dtype: Literal["bfloat16", "float32"] | None = None
    # Balanced takes every class in turn, list the `classes` below in turn.
    labels: Literal["random", "balanced", "list"] = "balanced"
    classes: tuple[int, ...] | None = None
    ema: bool = True  # whether to draw with the EMA parameters, not with those of the last step
    ema_length: float | None = None  # draws with the average of this width, made from snapshots
    # `classes` are PNGs in a folder of each class; `latents`, alone, are not decoded. Both are data
    # to train on (docs/distillation.md).
    outputs: tuple[Literal["grid", "npz", "png", "classes", "latents"], ...] = ("grid", "npz")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None:
            object.__setattr__(self, "image_size", shortest(self.image_size))

    @property
    def closed(self) -> tuple[bool, bool]:
        """Whether the bottom of an image meets its top, and the right side its left."""
        return "y" in (self.wrap or ""), "x" in (self.wrap or "")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What `--mode=evaluate` scores, and against which reference."""

    # Replaces fields of `sample` as evaluation/presets.py says; None samples as `sample` says.
    preset: Literal["paper", "paper_guided", "dit_guided", "fast"] | None = None
    name: str | None = None  # of the file of results; None is the preset's, or `default`
    # inception, pixels, classifier, or module:function from uint8 images [b h w c] to
    # {"pool": [b d]} (evaluation/features.py).
    features: str = "inception"
    # File of Inception's weights that convert.inception wrote, or the classifier.safetensors of
    # another run, so that scores compare. None: the work directory's own classifier.
    weights: FilePath | None = None
    reference: FilePath | None = None  # npz in ADM's form; None is what refstats wrote
    reference_images: int = 10_000  # whose features refstats keeps, for precision and recall
    images: FilePath | None = None  # npz or folder to score; None scores the model's
    batch_size: int = 64  # images in a call of the extractor, over all devices
    training_num: int = 1000  # images of a score during training


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What `--mode=export` writes, and where."""

    # torch adds a model.py that draws from the export with PyTorch alone (docs/pytorch.md).
    # diffusers adds a folder, diffusers, that DiTPipeline opens, of a DiT of latents.
    # web adds a folder, web, with a page that draws in browsers (docs/web.md).
    format: Literal["jax", "torch", "diffusers", "web"] = "jax"
    folder: FilePath | None = None  # None is `export` in the work directory
    # USER/NAME of a repository on the Hugging Face hub, which gets the export as one commit and is
    # made where it is not there (docs/hub.md).
    push_to: str | None = None
    push_public: bool = False  # whether a repository that is new is public
    push_dry_run: bool = False  # whether to say only what would be pushed
    # Whether to draw the images that --mode=verify compares with. auto leaves them out where a CPU
    # would take long.
    verify: Literal["auto", "always", "never"] = "auto"


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """What `--mode=inspect` looks at."""

    num: int = 8  # images, of the held-out split, or drawn by the model where its data is not here
    noise_levels: tuple[float, ...] = (0.1, 1.0, 10.0)  # sigma / alpha of the noised images
    layers: tuple[int, ...] | None = None  # numbers from 0; None is all of them
    # Tokens whose influence on all others is measured, evenly spaced; all where there are no more.
    tokens: int = 64
    probes: int = 4  # random directions in each token's features that are measured
    window: int = 3  # side, in tokens, of the square around a token whose attention is summed
    channels: int = 6  # S4D filters of a layer that are drawn, from the shortest to the longest
    perturb: bool = True  # whether to measure the error without a layer's mixing
    # Whether to measure the Frechet distance without it too, which draws evaluate.training_num
    # images twice for each layer.
    distance: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: all that it depends on besides the code and the data."""

    seed: int = 0
    # Folder of compiled programs, for the next start; None is JAX_COMPILATION_CACHE_DIR, or none.
    compilation_cache_dir: FilePath | None = None
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    distill: DistillConfig = DistillConfig()
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
    inspect: InspectConfig = InspectConfig()
    edit: EditConfig = EditConfig()

    @property
    def grid(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of what the model denoises: an image, or its latent."""
        height, width = self.data.sides
        if self.data.space == "pixels":
            return height, width, self.data.channels
        factor = self.autoencoder.factor
        return height // factor, width // factor, self.autoencoder.channels

    @property
    def token_grid(self) -> tuple[int, int]:
        """The rows and columns of tokens of an image."""
        height, width, _ = self.grid
        return height // self.model.patch_size, width // self.model.patch_size

    @property
    def drawn_size(self) -> Size | None:
        """The size of images that are drawn; None where it is that of `data.image_size`."""
        size = self.sample.image_size
        return None if size == self.data.image_size else size

    @property
    def decay_start(self) -> int | None:
        """The number of steps after which the learning rate falls; None if it stays."""
        if self.optimizer.schedule == "cosine":
            return self.optimizer.warmup_steps
        if self.optimizer.schedule == "warmup_stable_decay":
            return self.training.num_steps - self.optimizer.decay_steps
        return None

    @property
    def num_tokens(self) -> int:
        """The number of tokens of an image: patches of its grid."""
        rows, columns = self.token_grid
        return rows * columns

    @property
    def conditions(self) -> tuple[str, ...]:
        """The scalars that the model is told, in their order: the names of their embeddings."""
        is_mean_flow = self.diffusion.process == "mean_flow"
        is_told_scale = self.guidance.max_scale is not None
        return ("timestep", *["interval"] * is_mean_flow, *["guidance_scale"] * is_told_scale)
