"""Sampling from a work directory, by mode and from Python."""

import inspect
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffussm_jax
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.errors import UserError
from diffussm_jax.export import export
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.planning import programs
from diffussm_jax.sample import sample
from tests.conftest import merge
from tests.fuzz.one_line import error_of

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def model(trained_once):
    return diffussm_jax.load(trained_once)


def test_sample_writes_a_grid_and_an_npz(trained, tiny_config):
    sample(merge(tiny_config, {}), trained)
    with np.load(trained / "samples" / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (10, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(10))
    assert len(np.unique(images.reshape(10, -1), axis=0)) == 10
    with Image.open(trained / "samples" / "samples.png") as grid:
        assert grid.size == (4 * (10 * 9 - 1), 4 * 8)


def test_the_lines_of_the_readme(trained, tmp_path, monkeypatch):
    """Run as they stand there, on another work directory."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(trained)
    steps = "steps=4"  # the tiny run has 20
    names: dict = {}
    exec(block.replace("steps=50", steps), names)  # noqa: S102
    assert names["images"].shape == (5, 8, 8, 1)
    assert (tmp_path / "pi.png").exists()


@pytest.mark.parametrize(("dtype", "has_bfloat16"), [(None, False), ("bfloat16", True)])
def test_a_float32_run_samples_in_another_precision_where_it_is_asked_for(
    tiny_config, dtype, has_bfloat16
):
    run, inputs = programs.sampler(merge(tiny_config, {"sample": {"dtype": dtype}}), make_mesh())
    assert ("bf16" in run.lower(*inputs).as_text()) == has_bfloat16


def test_the_precision_is_the_runs_unless_the_sampling_says_otherwise(
    trained, tiny_config, model, caplog
):
    config = merge(tiny_config, {"model": {"dtype": "bfloat16"}})
    with caplog.at_level("INFO", "diffussm_jax"):
        same = diffussm_jax.load(trained, config=config)
    assert same.config.model.dtype == "float32"
    assert "--config.sample.dtype=bfloat16" in caplog.text
    exact = model.sample(num=10, sampler="ddpm").astype(int)
    rough = model.sample(num=10, sampler="ddpm", dtype="bfloat16")
    assert np.abs(exact - rough).mean() < 4  # of 255


def test_the_batch_size_changes_no_image(model):
    whole = model.sample(num=10, batch_size=16, sampler="ddpm")
    parts = model.sample(num=10, batch_size=8, sampler="ddpm")
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_seed_class_guidance_and_weights_change_the_images(trained, model):
    base = model.sample(num=8, sampler="ddpm")
    assert np.array_equal(base, model.sample(num=8, sampler="ddpm"))
    assert not np.array_equal(base, model.sample(num=8, sampler="ddpm", seed=1))
    assert model.step == 6
    earlier = diffussm_jax.load(trained, step=3, ema=False)
    assert earlier.step == 3
    same = [
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(earlier.params), strict=True)
    ]
    assert not all(same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "no field 'sample.step'; did you mean 'sample.steps'"),
        ({"classes": [11]}, "sample.classes must be below data.num_classes = 10"),
        ({"classes": [-1]}, "sample.classes must be at least 0"),
        ({"classes": []}, "classes must be a sequence of integers"),
        ({"classes": 3}, "classes must be a sequence of integers, .* got 3"),
        ({"classes": [1.7]}, "classes must be a sequence of integers"),
        ({"classes": ["3"]}, "classes must be a sequence of integers"),
        ({"classes": [True]}, "sample.classes must be a tuple, each item int"),
        ({"classes": "35"}, "classes must be a sequence of integers"),
        ({"classes": np.ones((2, 2), int)}, "classes must be a sequence of integers"),
        ({"classes": [1, 2], "num": 3}, "num = 3 contradicts the 2 classes given"),
        ({"classes": [1, 2], "labels": "random"}, "labels = 'random' contradicts"),
        ({"num": 2.5}, "sample.num must be int"),
        ({"seed": "0"}, "sample.seed must be int"),
        ({"steps": 21}, "sample.steps must be at most diffusion.num_steps = 20"),
    ],
)
def test_wrong_options_are_named(model, options, message):
    sample_unchecked = inspect.unwrap(type(model).sample)  # users have no type checks
    with pytest.raises(ConfigError, match=message):
        sample_unchecked(model, **options)


def test_classes_and_options_may_be_numpys(model):
    base = model.sample(classes=[3, 1, 4], seed=2)
    for classes in (np.array([3, 1, 4], np.uint8), jnp.array([3, 1, 4]), (np.int64(3), 1, 4)):
        assert np.array_equal(base, model.sample(classes=classes, seed=np.int64(2), num=3))


@pytest.mark.parametrize("mode", [sample, export])
@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("data", "num_classes", 20), ("data", "image_size", 16), ("autoencoder", "scale", 0.5)],
)
def test_what_describes_the_model_is_the_runs(mode, section, field, value, trained, tiny_config):
    """Or images of a run of ten classes had labels 15 and 16."""
    config = merge(tiny_config, {section: {field: value}})
    line = error_of(lambda: mode(config, trained))
    assert f"holds a run with {section}.{field} = " in line
    assert f"this config has {value}" in line


def test_what_cannot_be_loaded_is_said(trained, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        diffussm_jax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"there is no environment variable \$NONE"):
        diffussm_jax.load("$NONE/run")
    for step in ("3", 3.0):
        with pytest.raises(UserError, match="step must be an integer"):
            inspect.unwrap(diffussm_jax.load)(trained, step=step)
    with pytest.raises(UserError, match=r"no checkpoint of step 4 in .*; it has \[3, 6\]"):
        diffussm_jax.load(trained, step=4)
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        diffussm_jax.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"dep')
    with pytest.raises(UserError, match="config.json is damaged"):
        diffussm_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("num", "labels", "columns"),
    [
        (500, np.arange(500) % 10, 20),
        (64, None, 8),
        (5, np.zeros(5, np.int32), 3),
        (10, np.arange(10), 10),
    ],
)
def test_grid_columns_hold_whole_periods_of_classes(num, labels, columns, tmp_path):
    images = np.full((num, 40, 40, 3), 7, np.uint8)
    diffussm_jax.save_grid(images, tmp_path / "grid.png", labels=labels, gap=0)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (columns * 40, -(-num // columns) * 40)
        assert grid.getpixel((0, 0)) == (7, 7, 7)
