"""A work directory: everything about one run.

config.json             the resolved config, written before the first step
data.json               the names of the classes, and what the data was made of
checkpoints/<step>/     Orbax
metrics.jsonl           one line per log event; TensorBoard events beside it
samples/                grids of the training run and what --mode=sample draws
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from diffussm_jax import config as config_lib
from diffussm_jax.config import Config
from diffussm_jax.errors import UserError

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"


def begin(workdir: Path, config: Config) -> None:
    """Create a work directory for a run, or accept the one that the run already has. Every process must call it.

    Raises:
        UserError: it cannot be written, holds a run of another model, or is not one for all processes.
    """
    path = workdir / CONFIG_FILE
    if path.exists():
        require_same_model(workdir, config)
    if jax.process_index() == 0:
        _create(workdir)
        write_atomically(path, config_lib.to_json(config))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("work directory")
    if not path.exists():
        raise UserError(
            f"--workdir={workdir} is another folder on process {jax.process_index()} than on process 0: all need "
            "one that they share"
        )


def _create(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror}"
        ) from error


def read_config(workdir: Path) -> Config:
    """The config that a run was started with.

    Raises:
        UserError: there is no run in `workdir`, or its config.json is damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        return config_lib.from_dict(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"--workdir={workdir} holds no run ({CONFIG_FILE} is missing)"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} is damaged or of another version: {error}") from error


def write_data_facts(workdir: Path, facts: dict[str, Any]) -> None:
    """Keep what a source says of itself beside the run that learns from it."""
    write_atomically(workdir / DATA_FILE, json.dumps(facts, indent=1) + "\n")


def read_data_facts(workdir: Path) -> dict[str, Any]:
    """What `write_data_facts` kept; nothing where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / DATA_FILE
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: it holds {facts!r}; remove it")
    return facts


def require_same_model(workdir: Path, config: Config) -> None:
    """Raise UserError if the run in `workdir` has a model or process other than the config's."""
    saved = read_config(workdir)
    for section in ("model", "diffusion"):
        ours, theirs = (
            dataclasses.asdict(getattr(c, section)) for c in (config, saved)
        )
        for name in ours:
            if ours[name] != theirs[name] and (section, name) not in _FREE_FIELDS:
                raise UserError(
                    f"--workdir={workdir} holds a run with {section}.{name} = {theirs[name]!r}, but this "
                    f"config has {ours[name]!r}: use its config or another work directory"
                )


# How a model is computed, not which model it is.
_FREE_FIELDS = {
    ("model", "remat"),
    ("model", "scan_unroll"),
    ("model", "ssm_implementation"),
    ("diffusion", "clip_x0"),
}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
