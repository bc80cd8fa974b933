"""A run that stops at non-finite numbers: --mode=replay names the fault that was put there."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict
from diffussm_jax.data.pipeline import open_source
from diffussm_jax.errors import NonFiniteError, UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.replay import replay
from diffussm_jax.training.state import abstract_state
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.dump import dump_at_nonfinite, read_newest
from diffussm_jax.workdir.record import make_record
from tests.conftest import merge
from tests.teachers import write_teacher


def stop_with(tiny_config, trained, workdir, damage, **training):
    """Go on from step 3 of a run after `damage` to its parameters, until it stops."""
    config = merge(tiny_config, {"training": training})
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    abstract = abstract_state(config, make_mesh())
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        state = checkpoints.restore(abstract).state
    shutil.rmtree(workdir / "checkpoints")
    damaged = dataclasses.replace(state, params=damage(state.params))
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        checkpoints.save(3, damaged, make_record(config, 3))
    with pytest.raises(NonFiniteError, match="--mode=replay looks into it") as error:
        train_lib.train(config, workdir)
    return config, error.value


def overflow(params):
    """exp(log_dt) of one channel of layer 1 is infinite."""
    ssm = params["blocks"]["ssm"]
    log_dt = ssm["log_dt"].at[1, 0, 3].set(200.0)
    blocks = params["blocks"] | {"ssm": ssm | {"log_dt": log_dt}}
    return params | {"blocks": blocks}


@pytest.fixture(scope="module")
def stopped_once(tiny_config, trained_once, tmp_path_factory):
    """A run that stopped at step 5 with a dump."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    config, error = stop_with(tiny_config, trained_once, workdir, overflow, max_nonfinite=2)
    assert error.step == 5
    return config, workdir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The same run in a copy, for one test to write into."""
    config, workdir = stopped_once
    return config, shutil.copytree(workdir, tmp_path / "stopped")


def test_the_dump_has_the_step(stopped, trained):
    _, workdir = stopped
    dump = read_newest(workdir)
    assert dump.step == 5
    assert dump.error.startswith("step 5: ")
    assert "loss is nan" in dump.error
    assert dump.batch["image"].shape == (16, 8, 8, 1)
    assert len(np.unique(dump.indices)) == 16
    assert str(dump.indices[0]) in dump.error
    assert not (workdir / "checkpoints" / "6").exists()


@pytest.mark.slow
def test_replay_names_operation_layer_and_parameter(stopped):
    config, workdir = stopped
    replay(config, workdir)
    report = (workdir / "faults" / "step_0000005" / "replay.txt").read_text()
    origin = report.splitlines()[-1]
    assert "`exp` at ops/" in origin
    assert "in iteration 1 (from 0) of 2 of a scan" in origin
    assert "16 of 16 examples have a loss or gradient that is not finite" in report
    (row,) = [r for r in report.splitlines() if "blocks.ssm.log_dt" in r][:1]
    assert row.split()[-1] == "0"  # finite, if large
    assert "200" in row.split()


@pytest.mark.slow
def test_a_parameter_that_is_not_finite_is_named(tiny_config, trained, tmp_path):
    def damage(params):
        kernel = params["head"]["kernel"].at[0, 0].set(jnp.nan)
        return params | {"head": params["head"] | {"kernel": kernel}}

    config, _ = stop_with(tiny_config, trained, tmp_path / "run", damage, on_nonfinite="stop")
    replay(config, tmp_path / "run")
    report = (tmp_path / "run/faults/step_0000004/replay.txt").read_text()
    (row,) = [r for r in report.splitlines() if "head.kernel" in r][:1]
    assert row.split()[-1] == "1"
    assert "`argument` at the call: float32[16, 4] with 1 of 64 not finite" in report


@pytest.mark.slow
def test_a_students_step_is_replayed_beside_its_teacher(tiny_config, tmp_path):
    write_teacher(tmp_path / "teacher")
    student = {"name": "dit", "num_heads": 2, "mixer": "s4d"}
    training = {"teacher": str(tmp_path / "teacher")}
    values = tiny_config | {"model": tiny_config["model"] | student}
    values["training"] = values["training"] | training
    train_lib.train(from_dict(values), tmp_path / "trained")

    def damage(params):
        ssm = params["blocks"]["s4d"]["ssm"]
        ssm = ssm | {"log_dt": ssm["log_dt"].at[1, 0, 3].set(200.0)}
        blocks = params["blocks"] | {"s4d": params["blocks"]["s4d"] | {"ssm": ssm}}
        return params | {"blocks": blocks}

    config, _ = stop_with(
        values, tmp_path / "trained", tmp_path / "run", damage, on_nonfinite="stop"
    )
    replay(config, tmp_path / "run")
    report = (tmp_path / "run/faults/step_0000004/replay.txt").read_text()
    assert "`exp` at ops/" in report.splitlines()[-1]
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"config.training.teacher: .*teacher holds no run"):
        replay(config, tmp_path / "run")


def test_a_dump_is_of_one_run(stopped, tmp_path):
    """Of a run that starts over and stops again: at the same step, or at an earlier one."""
    config, workdir = stopped
    shutil.copytree(workdir / "faults", tmp_path / "faults")
    earlier = tmp_path / "faults" / "step_0000005"
    source = open_source(config, config.data.split)
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_state(config, make_mesh()))
    for step in (5, 4):
        with (
            pytest.raises(NonFiniteError),
            dump_at_nonfinite(config, tmp_path, source, lambda: state),
        ):
            raise NonFiniteError(f"step {step}: again", step=step)
        dump = read_newest(tmp_path)
        assert (dump.step, dump.error) == (step, f"step {step}: again")
        assert [x.name for x in (dump.folder / "checkpoints").iterdir()] == ["0"]
    kept = earlier.with_name("step_0000005.1") / "dump.json"
    assert kept.read_bytes() == (workdir / "faults" / "step_0000005" / "dump.json").read_bytes()


def test_what_cannot_be_replayed_is_said(trained, stopped, tiny_config, tmp_path):
    with pytest.raises(UserError, match="has no faults/"):
        replay(from_dict(tiny_config), trained)
    config, workdir = stopped
    with pytest.raises(UserError, match=r"holds a run with data.num_classes = 10"):
        replay(merge(tiny_config, {"data": {"num_classes": 5}}), workdir)
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/faults/step_0000005/batch.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"step_0000005 is damaged \(") as error:
        replay(config, tmp_path / "run")
    assert "\n" not in str(error.value)
