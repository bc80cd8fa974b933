"""A training run as a user has it: its files, its end, its interruption."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict, to_json
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.log import JsonlWriter
from diffussm_jax.training.objective import clean_example
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.training.step import make_train_step
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.checkpoints import Checkpoints
from tests.conftest import merge
from tests.saved_runs import assert_equal


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_state(config, workdir, step=None):
    mesh = make_mesh(config.mesh)
    abstract = abstract_state(config, mesh)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoints.restore(abstract, step=step).state


def test_a_run_leaves_its_files(trained, tiny_config):
    assert layout.read_config(trained) == from_dict(tiny_config)
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["3", "6"]
    assert [p.name for p in trained.glob("samples/step_*")] == ["step_0000006.png"]
    assert list(trained.glob("events.out.tfevents.*"))
    events = read_metrics(trained)
    assert {e["step"] for e in events if "loss" in e} >= {2, 4, 6}
    assert [e["step"] for e in events if "eval_loss" in e] == [4, 6]
    assert {"mse", "vlb", "grad_norm"} <= events[0].keys()


def test_a_finished_run_says_so_and_does_nothing(trained, tiny_config, caplog):
    before = sorted(p.stat().st_mtime_ns for p in (trained / "checkpoints").rglob("*"))
    with caplog.at_level("INFO", "diffussm_jax"):
        train_lib.train(from_dict(tiny_config), trained)
    assert "is done: step 6 of 6" in caplog.text
    assert before == sorted(p.stat().st_mtime_ns for p in (trained / "checkpoints").rglob("*"))


def test_an_interrupted_run_goes_on_to_the_same_end(trained, tiny_config, tmp_path):
    config = from_dict(tiny_config)
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # torn by the kill
    train_lib.train(config, tmp_path / "run")
    assert_equal(read_state(config, tmp_path / "run"), read_state(config, trained))
    steps = [e["step"] for e in read_metrics(tmp_path / "run") if "loss" in e]
    assert steps == sorted(set(steps)), "a step was logged twice"
    assert steps[-1] == 6


@pytest.mark.slow
def test_8_devices_equal_1(trained, tiny_config, tmp_path, monkeypatch):
    """The fixture ran on eight devices; a run on one differs by the order of sums alone."""
    config = from_dict(tiny_config)
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(train_lib, "make_mesh", lambda config: one)
    train_lib.train(config, tmp_path / "run")
    eight, alone = read_state(config, trained), read_state(config, tmp_path / "run")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), alone.ema, eight.ema
    )


def test_the_state_has_one_type_from_the_first_step_on(tiny_config):
    """A weakly typed parameter would compile the train step a second time."""
    config = from_dict(tiny_config)
    optimizer = make_optimizer(config)
    graphdef, _ = abstract_model(config)
    step = make_train_step(config, graphdef, optimizer)
    before = jax.eval_shape(lambda: init_state(config, optimizer))
    batch = {"image": jnp.zeros((16, 8, 8, 1), jnp.uint8), "label": jnp.zeros(16, jnp.int32)}
    after, _ = jax.eval_shape(step, before, batch)
    jax.tree.map(
        lambda a, b: (
            (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
            or pytest.fail(f"{a} {b}")
        ),
        before,
        after,
    )


def test_one_step_is_adam_on_the_gradient_and_ema_follows(tiny_config):
    config = merge(tiny_config, {"training": {"ema_decay": 0.9}})
    optimizer = make_optimizer(config)
    graphdef, _ = abstract_model(config)
    step = jax.jit(make_train_step(config, graphdef, optimizer))
    state = jax.jit(lambda: init_state(config, optimizer))()
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 1)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, 16), jnp.int32),
    }
    first, metrics = step(state, batch)
    again, _ = step(state, batch)
    assert_equal(first, again)
    assert int(first.step) == 1
    assert metrics["grad_norm"] > 0
    # The head starts at zero, so the prediction is zero and the squared error is that of the noise.
    assert 0.8 < metrics["mse"] < 1.2
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, state.params)
    np.testing.assert_allclose(moved["head"]["kernel"], config.optimizer.learning_rate, rtol=1e-2)
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.ema, first.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first.ema, expected)
    later, _ = step(first, batch)
    assert not np.array_equal(later.params["head"]["kernel"], first.params["head"]["kernel"])


def test_latents_are_drawn_from_their_moments_and_scaled(tiny_config):
    config = merge(tiny_config, {"data": {"space": "latents", "image_size": 512, "channels": 3}})
    shape = (64, 64, 4)
    example = {"mean": jnp.full(shape, 3, jnp.float16), "std": jnp.full(shape, 0.5, jnp.float16)}
    x0 = clean_example(config, jax.random.key(0), example) / config.autoencoder.scale
    error = 0.5 / np.sqrt(x0.size)
    assert abs(x0.mean() - 3) < 4 * error
    assert abs(x0.std() - 0.5) < 4 * error
    pixels = {"image": jnp.array([[[0], [255]]], jnp.uint8)}
    x0 = clean_example(merge(tiny_config, {}), jax.random.key(0), pixels)
    np.testing.assert_array_equal(x0, [[[-1], [1]]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"depth": 3}}, r"model.depth = 2, but this config has 3"),
        (
            {"diffusion": {"prediction": "v"}},
            r"diffusion.prediction = 'eps', but this config has 'v'",
        ),
    ],
)
def test_a_work_directory_of_another_model_is_refused(trained, tiny_config, changes, message):
    with pytest.raises(UserError, match=message):
        train_lib.train(merge(tiny_config, changes), trained)
    assert layout.read_config(trained) == from_dict(tiny_config)


def test_a_checkpoint_of_another_model_names_the_parameter(trained, tiny_config, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = merge(tiny_config, {"model": {"width": 32}})
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    with pytest.raises(
        UserError, match=r"checkpoints/6 is of another model: blocks/.* is \(2, .*config"
    ):
        train_lib.train(config, tmp_path / "run")


def test_how_a_model_is_computed_may_change(trained, tiny_config, caplog):
    config = merge(tiny_config, {"model": {"remat": "full", "scan_unroll": 2}})
    with caplog.at_level("INFO", "diffussm_jax"):
        train_lib.train(config, trained)
    assert "is done" in caplog.text
    train_lib.train(from_dict(tiny_config), trained)


def test_devices_must_divide_the_batch(tiny_config, tmp_path):
    with pytest.raises(
        UserError, match="training.batch_size must be a multiple of the 8 devices of .*, got 12"
    ):
        train_lib.train(merge(tiny_config, {"training": {"batch_size": 12}}), tmp_path)


def test_metrics_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 5, "loss": 2.0}\n{"step"')
    writer = JsonlWriter(path, start_step=4)
    writer.write_scalars(5, {"loss": 1.5})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 5, "loss": 1.5}]
