"""`training.teacher`: the trained network that a student learns from."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path
from diffussm_jax.models.levels import stream_widths
from diffussm_jax.training.state import TrainState, abstract_model
from diffussm_jax.training.step import TrainStep, compile_train_step
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.data_facts import read_all_facts
from diffussm_jax.workdir.same_process import OF_THE_PROCESS, require_same
from diffussm_jax.workdir.weights import load_weights, naming, params_sha256

logger = logging.getLogger(__name__)

SHA256 = "teacher_sha256"  # of its parameters, among the facts of a run's data.json
_FIELD = "config.training.teacher"


class Teacher(NamedTuple):
    """A network as a student's run computes it, and its EMA parameters on the run's mesh."""

    config: Config
    graphdef: nnx.GraphDef
    params: dict
    sha256: str


def open_teacher(config: Config, mesh: Mesh, workdir: Path) -> Teacher | None:
    """Load the teacher of a config; None where it has none. Every process must call it.

    Raises:
        UserError: there are no such weights, they are damaged or of another task, or the run in
            the work directory began with others.
    """
    folder = config.training.teacher
    if folder is None:
        return None
    taught = read_teacher_config(config)
    graphdef, _ = abstract_model(taught, mesh)
    with naming(_FIELD):
        weights = load_weights(folder, mesh=mesh)
    logger.info("the teacher is the EMA of step %d of %s", weights.step, folder)
    digest = params_sha256(weights.params)
    _require_same_as_before(workdir, digest)
    return Teacher(taught, graphdef, weights.params, digest)


def read_teacher_config(config: Config) -> Config:
    """The config of the teacher, as the student's run computes it: with its dtypes, as is fastest.

    Raises:
        UserError: it cannot be read, or the teacher's task is not the student's.
    """
    with naming(_FIELD):
        folder = as_path(str(config.training.teacher))
        teacher = layout.read_config(folder)
    fields = [*OF_THE_PROCESS, "diffusion.variance", "data.space"]
    if config.data.space == "latents":
        fields.append("autoencoder.scale")
    if all("attention" in c.model.pattern and c.model.name == "dit" for c in (config, teacher)):
        fields.append("model.num_heads")  # no shape tells it
    named = f"{_FIELD}: {config.training.teacher}"
    require_same(config, teacher, fields, named=named, mend="a teacher has the same task")
    if config.distill.features:
        _require_same_streams(config, teacher, named)
    model = dataclasses.replace(
        teacher.model,
        dtype=config.model.dtype,
        residual_dtype=config.model.residual_dtype,
        remat="none",  # it has no backward pass
        ssm_implementation=None,
        stack_implementation=None,
        attention_implementation=None,
    )
    return dataclasses.replace(teacher, model=model)


def _require_same_streams(config: Config, teacher: Config, named: str) -> None:
    """Raise UserError naming the first block whose streams differ, or the field that tells it."""
    fields = ["model.levels", "model.width", "model.patch_size"]
    if config.model.levels is None:
        fields.append("model.depth")
    if "diffussm" in (config.model.name, teacher.model.name):
        fields += ["model.name", "model.m"]
    mend = "config.distill.features compares streams of one shape"
    require_same(config, teacher, fields, named=named, mend=mend)
    if config.model.levels is None:
        return
    ours, theirs = (stream_widths(c.model) for c in (config, teacher))
    for number in config.distill.blocks or range(1, len(ours) + 1):
        here, there = ours[number - 1], theirs[number - 1]
        if here != there:
            raise UserError(
                f"{named} holds a run whose stream has width {there} after block {number}, and "
                f"that of the model has {here} (model.last_stage): leave the block out of "
                f"config.distill.blocks; {mend}"
            )


def in_the_loss(config: Config, teacher: Teacher | None) -> tuple[nnx.GraphDef | None, dict | None]:
    """The structure and the parameters of a teacher that the loss has a term of, or None and None.

    A teacher may give nothing but what its student begins with.
    """
    if teacher is None or not config.distill.is_compared:
        return None, None
    return teacher.graphdef, teacher.params


def compile_step(
    config: Config,
    graphdef: nnx.GraphDef,
    abstract: TrainState,
    mesh: Mesh,
    teacher: Teacher | None,
) -> TrainStep:
    """The jitted train step of a run, of its state and a batch."""
    structure, params = in_the_loss(config, teacher)
    step = compile_train_step(config, graphdef, abstract, mesh, structure)
    return functools.partial(step, teacher_params=params)


def _require_same_as_before(workdir: Path, sha256: str) -> None:
    before = read_all_facts(workdir).get(SHA256) if layout.holds_run(workdir) else None
    if before not in (None, sha256):
        raise UserError(
            f"{_FIELD}: the run in --workdir={workdir} began with another teacher (sha256 "
            f"{str(before)[:12]}, now {sha256[:12]}): name that one again, or use another work "
            "directory"
        )
