"""Checkpoints: placed on any mesh, kept by rule, and never read when damaged."""

import dataclasses
import itertools
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from diffussm_jax import train as train_lib
from diffussm_jax.config import CheckpointConfig, MeshConfig, from_dict
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import init_state
from diffussm_jax.workdir import integrity
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.record import make_record, warn_of_other_versions
from diffussm_jax.workdir.retention import kept_steps
from tests.conftest import merge
from tests.fuzz.one_line import files_of
from tests.saved_runs import abstract, assert_equal, restored

# TensorStore answers to a read that has failed when nobody waits any more.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_record_says_where_the_run_is_and_what_made_it(trained, tiny_config):
    record = restored(from_dict(tiny_config), trained).record
    assert record["step"] == 6
    assert record["examples"] == 6 * 16
    assert record["config"]["model"]["width"] == 16
    assert record["versions"]["jax"] == jax.__version__
    assert record["eval_loss"] > 0
    assert restored(from_dict(tiny_config), trained, step=3).record["eval_loss"] is None


def test_other_versions_of_what_orders_the_data_are_warned_of(tiny_config, caplog):
    record = make_record(from_dict(tiny_config), 3)
    warn_of_other_versions(record)
    warn_of_other_versions(record | {"versions": {}})  # as before they were recorded
    assert not caplog.text
    warn_of_other_versions(record | {"versions": record["versions"] | {"grain": "0.1.0"}})
    assert "step 3 was made with grain 0.1.0, and this is " in caplog.text


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WAYS = {
    "truncated": truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "bit-flipped": flip_bit,
    "missing": Path.unlink,
}


@pytest.mark.parametrize("way", WAYS)
def test_damage_of_any_file_is_found(way, trained, tmp_path):
    newest = trained / "checkpoints" / "6"
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        copy = epath.Path(tmp_path / str(file).replace("/", "_"))
        shutil.copytree(newest, copy)
        assert integrity.find_damage(copy) is None
        WAYS[way](Path(copy / file))
        damage = integrity.find_damage(copy)
        assert damage is not None
        assert str(file) in damage or file.name == integrity.MANIFEST_FILE


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    way, trained, tiny_config, tmp_path, caplog
):
    config = from_dict(tiny_config)
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "6"
    WAYS[way](newest / "state" / "manifest.ocdbt")
    assert restored(config, tmp_path).record["step"] == 3
    text = f"checkpoint {newest} is damaged (state/manifest.ocdbt"
    assert text in caplog.text
    with pytest.raises(UserError, match=f"{newest} is damaged: state/manifest.ocdbt"):
        restored(config, tmp_path, step=6)


def test_training_goes_on_from_the_one_before_and_comes_to_the_same_end(
    trained, tiny_config, tmp_path, caplog
):
    config = from_dict(tiny_config)
    shutil.copytree(trained, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    truncate(folder / "6" / "state" / "_METADATA")
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    with caplog.at_level(logging.INFO):
        train_lib.train(config, tmp_path / "run")
    assert "resuming from step 3" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6", "6.damaged"]
    assert_equal(restored(config, tmp_path / "run").state, restored(config, trained).state)


def empty_arrays(folder: Path) -> None:
    for path in (folder / "state" / "ocdbt.process_0" / "d").iterdir():
        path.write_bytes(b"")


def another_step(folder: Path) -> None:
    path = folder / "record" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 7}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (empty_arrays, "cannot be read: "),
        (lambda folder: (folder / "record" / "record.json").write_text("{}"), "has no step"),
        (another_step, "its record has another step"),
    ],
    ids=["arrays", "record", "step"],
)
def test_what_cannot_be_read_is_damaged_whatever_its_checksums_say(
    spoil, reason, trained, tiny_config, tmp_path, caplog
):
    """As two runs in one folder have left it."""
    config = from_dict(tiny_config)
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "6"
    spoil(newest)
    (newest / "manifest.json").unlink()
    integrity.write_manifest(epath.Path(newest))
    before = sorted(files_of(newest).values())
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        assert checkpoints.resume(abstract(config)).record["step"] == 3
    assert f"checkpoint {newest} is damaged (" in caplog.text
    assert reason in caplog.text
    aside = tmp_path / "checkpoints" / "6.damaged"
    assert sorted(files_of(aside).values()) == before
    assert not newest.exists()


def test_where_none_is_whole_nothing_is_made_anew(trained, tiny_config, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for step in ("3", "6"):
        (folder / step / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train_lib.train(from_dict(tiny_config), tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]


def test_a_checkpoint_of_before_b_was_trained_is_refused(trained, tiny_config, tmp_path):
    config = from_dict(tiny_config)
    state = restored(config, trained).state
    params = jax.tree.map(lambda x: x, state.params)
    del params["blocks"]["ssm"]["b"]
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        checkpoints.save(1, dataclasses.replace(state, params=params), make_record(config, 1))
        checkpoints.wait()
    with pytest.raises(UserError, match=r"blocks/ssm/b is missing there and .* the version of"):
        restored(config, tmp_path)


@pytest.mark.slow
def test_a_first_save_that_was_killed_is_made_again(trained, tiny_config, tmp_path):
    """Between Orbax's end and the manifest; the same without its mark would be damage."""
    shutil.copytree(trained, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / "6")
    (folder / "3" / "manifest.json").unlink()
    (folder / "3.saving").touch()
    config = from_dict(tiny_config)
    assert restored(config, tmp_path / "run") is None
    train_lib.train(config, tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]
    assert_equal(restored(config, tmp_path / "run").state, restored(config, trained).state)


WIDE = {"model": {"width": 64, "state_size": 16}}  # enough to be split


@pytest.mark.slow
def test_a_checkpoint_is_restored_onto_any_mesh(tiny_config, tmp_path):
    """8 devices, replicated -> 4 by fsdp -> 1 -> 8 by both; and as bfloat16."""
    config = merge(tiny_config, WIDE)
    meshes = [
        make_mesh(MeshConfig(**axes), jax.devices()[:num])
        for num, axes in ((8, {}), (4, {"data": 1, "fsdp": 4}), (1, {}), (8, {"fsdp": 2}))
    ]
    optimizer, first = make_optimizer(config), abstract(config, meshes[0])
    state = jax.jit(
        lambda: init_state(config, optimizer),
        out_shardings=jax.tree.map(lambda a: a.sharding, first),
    )()
    original = jax.device_get(state)
    for step, mesh in enumerate(meshes[1:], 1):
        target = abstract(config, mesh)
        with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
            checkpoints.save(step, state, make_record(config, step))
            checkpoints.wait()
            state = checkpoints.restore(target).state
        assert_equal(jax.device_get(state), original)
        places = jax.tree.map(lambda a, b: a.sharding == b.sharding, state, target)
        assert all(jax.tree.leaves(places))
    halves = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, jnp.bfloat16 if a.dtype == jnp.float32 else a.dtype, sharding=a.sharding
        ),
        target,
    )
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        ema = checkpoints.restore(halves).state.ema
    assert_equal(ema, jax.tree.map(lambda a: a.astype(jnp.bfloat16), original.ema))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"keep": 1, "keep_best": False}, {7}),
        ({"keep": 1}, {2, 7}),
        ({"keep": 2, "keep_every": 3, "keep_best": False}, {3, 6, 7}),
        ({"keep": 9}, {1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_the_rule_of_what_is_kept(rules, expected):
    losses = {1: 0.9, 2: 0.3, 3: None, 5: 0.4}
    assert kept_steps(range(1, 8), losses, CheckpointConfig(**rules)) == expected


def test_what_is_kept(tiny_config, tmp_path):
    """The newest two, those of every fourth step, and the best."""
    rules = {"keep": 2, "keep_every": 4}
    config = merge(tiny_config, {"checkpoint": rules})
    state = {"params": {"a": jnp.zeros(3)}}
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 5: 0.4}
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        for step in range(1, 8):
            eval_losses = {"eval_loss": losses[step]} if step in losses else {}
            checkpoints.save(step, state, make_record(config, step, eval_losses))
            checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 6, 7]


TIMED = {"images_per_second", "input_wait"}


@pytest.mark.slow
def test_a_report_begun_before_the_save_is_what_it_would_have_been(
    tiny_config, tmp_path, monkeypatch
):
    """Told to stop at step 3, where a report is of 4 steps."""
    few = {"training": {"log_every": 4}, "checkpoint": {"every": 100}}
    config = merge(tiny_config, few)
    train_lib.train(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        turns = itertools.count(1)
        patch.setattr(PreemptionNotice, "reached", lambda self: next(turns) == 3)
        with pytest.raises(Preempted, match="step 3 of 6 is saved"):
            train_lib.train(config, tmp_path / "stopped")
    train_lib.train(config, tmp_path / "stopped")
    straight, stopped = (
        [
            {k: v for k, v in json.loads(line).items() if k not in TIMED}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("straight", "stopped")
    )
    assert straight == stopped
    assert [line["step"] for line in straight if "loss" in line] == [4, 6]
