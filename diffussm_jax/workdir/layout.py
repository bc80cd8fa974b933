"""A work directory: everything about one run.

config.json             the resolved config, written before the first step
data.json               what the images are and the names of their classes, written when it begins
checkpoints/<step>/     what a run resumes from
metrics.jsonl           one line per log event; TensorBoard events beside it
wandb.json, wandb/      the run at Weights & Biases, where it is one of the loggers
samples/                grids of the training run and what --mode=sample draws
edit/                   what --mode=edit makes of images
inspect/                what --mode=inspect measures and draws
.lock                   names the process that trains here, while it does
"""

import json
from pathlib import Path
from typing import Any

import jax

from diffussm_jax.config import Config, from_dict, parsing, to_json
from diffussm_jax.data.names import portable_name
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_text
from diffussm_jax.parallel.distributed import is_first, wait_for_all

CONFIG_FILE = "config.json"
CHECKPOINTS_FOLDER = "checkpoints"
EXPORT_FOLDER = "export"  # where --mode=export writes by default
EXPORT_FILE, WEIGHTS_FILE = "export.json", "model.safetensors"  # of an export
PYTORCH_FILE = "model.py"  # of an export, where it was asked for
PAGE_FOLDER = "web"  # likewise
PIPELINE_FOLDER = "diffusers"  # likewise
# Of an export too: what it draws, and how (sampling/verification.py); a picture for its model card.
EVIDENCE_FILE = "verify.json"
VERIFY_FILES = (EVIDENCE_FILE, "verify.png", "verify.safetensors")
PICTURE_FILE = "samples.png"
# What modes other than training write into a run or an export.
OUTPUTS = ("edit", "evaluation", "inspect", "plan.json", "samples", "search.json")

# Fields and complete sections that may change while a run stays the same run: how and where it is
# computed, where its files are, what is logged, kept, measured and drawn. A change of any other
# field is refused.
MAY_DIFFER = frozenset(
    {
        "compilation_cache_dir",
        "model.remat",
        "model.scan_unroll",
        "model.ssm_implementation",
        "model.stack_implementation",
        "model.attention_implementation",
        "diffusion.clip_x0",  # of samples
        "data.eval_split",
        "data.data_dir",
        "data.parquet_cache_gb",
        "data.latents_dir",
        "data.shard_size",  # of an encoding
        "data.cache_gb",
        "data.cache_dir",
        "data.max_pixels",
        "data.on_error",
        "data.workers",
        "data.in_memory",
        "autoencoder.name",  # by the checksum of its weights
        "autoencoder.dtype",
        "autoencoder.batch_size",
        "training.num_steps",
        "training.num_microbatches",
        "training.log_every",
        "training.loggers",
        "training.eval_every",
        "training.eval_batches",
        "training.sample_every",
        "training.evaluate_every",
        "training.on_nonfinite",
        "training.max_nonfinite",
        "training.spike_threshold",
        "training.watchdog_seconds",
        "checkpoint",
        "mesh",
        "plan",
        "sample",
        "evaluate",
        "export",
        "inspect",
        "edit",
    }
)

# Beginnings of the names of fields that say what the model is, and what it draws.
OF_THE_MODEL = (
    "model.",
    "diffusion.",
    "guidance.",
    "data.space",
    "data.image_size",
    "data.pad",
    "data.channels",
    "data.num_classes",
    "autoencoder.",
)


def begin(workdir: Path, config: Config) -> None:
    """Create a work directory for a run, or accept the one it already has.

    Every process must call it.

    Raises:
        UserError: it cannot be written, holds another run, or is not shared by all processes.
    """
    path = workdir / CONFIG_FILE
    if holds_run(workdir):
        require_same_run(workdir, config)
    if is_first():
        _create(workdir, config)
    wait_for_all("work directory")
    if not path.exists():
        raise UserError(
            f"--workdir={workdir} is another folder on process {jax.process_index()} than on "
            "process 0: all need one that they share"
        )


def _create(workdir: Path, config: Config) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CONFIG_FILE, to_json(config))
    except (OSError, ValueError) as error:  # a ValueError: a NUL in the name
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def holds_run(workdir: Path) -> bool:
    """Whether a work directory holds a run to go on with.

    A run that saved nothing starts over, so that a mistake in its first config can be mended.
    """
    return (workdir / CONFIG_FILE).exists() and has_checkpoint(workdir)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, complete or not."""
    return any((folder / name).exists() for name in (EXPORT_FILE, WEIGHTS_FILE))


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has saved anything that it can go on from."""
    return bool(_saved_steps(workdir))


def _saved_steps(workdir: Path) -> list[int]:
    folder = workdir / CHECKPOINTS_FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdigit()]


def read_config(workdir: Path) -> Config:
    """Read the config that a run was started with.

    Raises:
        UserError: there is no run in `workdir`, or its config.json is damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"--workdir={workdir} holds no run ({CONFIG_FILE} is missing)") from error
    # A UserError is a ValueError; so are damaged JSON and text.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or of another version: {error}") from error


def require_same_model(workdir: Path, config: Config) -> None:
    """Raise UserError if the run in `workdir` has another model, or one of other images or classes.

    The dtypes of activations may differ, because those of the run are taken.
    """
    names = [n for n in parsing.field_names(Config) if n.startswith(OF_THE_MODEL)]
    _require_same(workdir, config, [n for n in names if not n.endswith("dtype")])


def require_same_run(workdir: Path, config: Config) -> None:
    """Raise UserError naming the first field that differs in the run in `workdir` and may not.

    A change of `training.num_steps` moves the end of the learning rate's decay, so it must come
    before the decay has begun.
    """
    _require_same(workdir, config, parsing.field_names(Config))
    saved, step = read_config(workdir), max(_saved_steps(workdir), default=0)
    starts = [c.decay_start for c in (saved, config) if c.decay_start is not None]
    ours, theirs = config.training.num_steps, saved.training.num_steps
    if ours != theirs and step > min(starts, default=step):
        raise UserError(
            f"--workdir={workdir} holds a run with training.num_steps = {theirs}, but this config "
            f"has {ours!r}, with which the learning rate of the {step} steps made would have been "
            f"another (optimizer.schedule = {config.optimizer.schedule!r}): use its value, or "
            f"remove the checkpoints after step {min(starts)}"
        )


def may_differ(field: str) -> bool:
    """Whether a run goes on under a config with another value of the dotted `field`."""
    return field in MAY_DIFFER or field.split(".")[0] in MAY_DIFFER


def _require_same(workdir: Path, config: Config, fields: list[str]) -> None:
    saved = read_config(workdir)
    for field in fields:
        ours, theirs = (parsing.get_field(c, field) for c in (config, saved))
        if not may_differ(field) and not _is_same(field, ours, theirs):
            raise UserError(
                f"--workdir={workdir} holds a run with {field} = {theirs!r}, but this config has "
                f"{ours!r}: use its config, or another work directory "
                "(--config.training.init_from begins from the weights of this one)"
            )


def _is_same(field: str, ours: Any, theirs: Any) -> bool:
    if field == "data.name":  # a folder of images may lie elsewhere
        ours, theirs = portable_name(ours), portable_name(theirs)
    if field == "training.teacher":  # by the checksum of its weights
        ours, theirs = ours is None, theirs is None
    return ours == theirs
