"""`--mode=export`: write the EMA weights of a run to a folder to keep or publish.

`workdir/exports.py` describes the files.
"""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffussm_jax.config import Config, ExportConfig, MeshConfig, parsing
from diffussm_jax.config.paths import FilePath
from diffussm_jax.data.names import portable_name
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.evidence import evidence_files
from diffussm_jax.exporting.model_file import model_file
from diffussm_jax.exporting.pipeline import pipeline_files
from diffussm_jax.exporting.publishing import publish, require_pushable
from diffussm_jax.exporting.subfolder import write_subfolder
from diffussm_jax.exporting.web.folder import page_files
from diffussm_jax.files import writing_to
from diffussm_jax.files.hub.address import SCHEME, is_address, is_repository
from diffussm_jax.files.paths import as_path
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.feed import to_host
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.sampling.verification import num_calls
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.data_facts import read_all_facts
from diffussm_jax.workdir.exports import require_export_or_new, write_export
from diffussm_jax.workdir.weights import Weights, load_weights

logger = logging.getLogger(__name__)

# Multiply-adds after which a CPU draws no images to verify the export by: ten minutes of one that
# does 2e10 a second.
MAX_ON_CPU = 1.2e13
_NEEDED = ("sample.autoguidance", "autoencoder.name")  # to draw as the run does


def export(config: Config, workdir: Path) -> None:
    """Write the EMA of the latest checkpoint to `export.folder`.

    By default that is `export` in the work directory. `export.format` says what lies beside them.

    Raises:
        UserError: there is no run or no checkpoint, or the folder holds something else or cannot be
            written.
    """
    layout.require_same_model(workdir, config)
    named = config.export.folder
    folder = as_path(named) if named else workdir / layout.EXPORT_FOLDER
    if is_first():
        require_export_or_new(folder, named=f"config.export.folder: {folder}")
        require_pushable(config.export, folder)
    exported = _without_paths(layout.read_config(workdir), config)
    weights = load_weights(workdir)
    tensors = {name: to_host(x) for name, x in flatten_dict(weights.params, sep=".").items()}
    if not is_first():
        return
    facts, programs = read_all_facts(workdir), _programs(exported, config.export)
    subfolders = _subfolders(config, weights, tensors)
    on_host = Weights(exported, unflatten_dict(tensors, sep="."), weights.step, None)
    drawn = evidence_files(on_host, workdir) if _draws(exported, config.export) else {}
    place = "FOLDER" if config.export.push_to is None else f"{SCHEME}{config.export.push_to}"
    with writing_to(folder, field="config.export.folder"):
        write_export(
            folder, exported, facts, tensors, weights.step, programs, drawn=drawn, place=place
        )
        for name, files in subfolders.items():
            write_subfolder(folder / name, files)
    logger.info("wrote the EMA weights of step %d to %s", weights.step, folder)
    if config.export.push_to is not None:
        publish(config.export, folder, step=weights.step)


def _draws(config: Config, options: ExportConfig) -> bool:
    """Whether the images that --mode=verify compares with are drawn."""
    if options.verify != "auto" or jax.default_backend() != "cpu":
        return options.verify != "never"
    total = multiply_adds(config).total * num_calls(config)
    if total > MAX_ON_CPU:
        logger.warning(
            "no images to verify the export by: they would take %.2g multiply-adds, too many for a "
            "CPU; config.export.verify=always draws them",
            total,
        )
    return total <= MAX_ON_CPU


def _programs(config: Config, options: ExportConfig) -> dict[str, str]:
    """The texts of the files besides those of every export, by name."""
    match options.format:
        case "torch":
            return {layout.PYTORCH_FILE: model_file(config)}
        case _:
            return {}


def _subfolders(
    config: Config, weights: Weights, tensors: dict[str, np.ndarray]
) -> dict[str, dict[str, bytes]]:
    """The files of each folder that an export may have; none where another format is asked for."""
    page, pipeline = {}, {}
    match config.export.format:
        case "web":
            page = page_files(weights._replace(params=unflatten_dict(tensors, sep=".")), config)
        case "diffusers":
            of_run = dataclasses.replace(weights.config, autoencoder=config.autoencoder)
            pipeline = pipeline_files(of_run, tensors, weights.class_names)
    return {layout.PAGE_FOLDER: page, layout.PIPELINE_FOLDER: pipeline}


def _without_paths(config: Config, command: Config) -> Config:
    """A config for other machines: on any devices, and without folders but their names.

    Nor does it say where the export went: who exports it again without a config would push it too.

    The guide's folder stays: without it `sample.cfg_scale` would be the scale of something else.

    Args:
        command: where it names the guide or the autoencoder on the hub, that name is taken.

    Raises:
        UserError: the export is pushed, and one of these is a folder of this machine.
    """
    for field in parsing.field_names(Config):
        value = parsing.get_field(config, field)
        if field in _NEEDED:
            given = parsing.get_field(command, field)
            value = given if given is not None and is_address(given) else value
            if value is not None and _is_local(value) and command.export.push_to is not None:
                raise UserError(
                    f"config.{field}: {value} is a folder of this machine, which those who load "
                    f"from the hub do not have: push it and name it --config.{field}=hf://USER/NAME"
                )
            config = parsing.with_fields(config, {field: value})
        elif parsing.find_type(Config, field) == FilePath | None and not is_address(str(value)):
            config = parsing.with_fields(config, {field: None})
    data = dataclasses.replace(config.data, name=portable_name(config.data.name))
    return dataclasses.replace(config, data=data, mesh=MeshConfig(), export=ExportConfig())


def _is_local(name: str) -> bool:
    return not is_address(name) and (as_path(name).is_dir() or not is_repository(name))
