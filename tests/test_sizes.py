"""Rectangles, and models at other sizes than they were trained at."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffussm_jax
from benchmarks.sizes import read_size, real_digits, score
from configs import common
from diffussm_jax.config import Config, MeshConfig, from_dict, to_json
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.data.latents import LatentSource, cache_folder
from diffussm_jax.data.transforms import centre_crop
from diffussm_jax.encode import encode
from diffussm_jax.errors import UserError
from diffussm_jax.evaluate import evaluate
from diffussm_jax.evaluation.classifier import find_or_train
from diffussm_jax.export import export
from diffussm_jax.models.layers import sincos2d
from diffussm_jax.ops.s4d import discretize, s4d
from diffussm_jax.parallel.mesh import check_rows, make_mesh
from diffussm_jax.refstats import refstats
from diffussm_jax.sample import sample
from diffussm_jax.train import train
from tests.conftest import merge


@pytest.mark.parametrize(
    ("text", "size", "grid"),
    [("16", 16, (16, 16, 1)), ("8,16", (8, 16), (8, 16, 1)), ("(16, 16)", 16, (16, 16, 1))],
)
def test_a_size_is_one_number_or_two(text, size, grid):
    config = from_dict({}, {"data.image_size": text, "sample.image_size": text})
    assert config.data.image_size == config.sample.image_size == size
    assert config.grid == grid
    assert from_dict(json.loads(to_json(config))) == config


@pytest.mark.parametrize("size", [16, (8, 16)])
def test_a_config_file_gives_either(size):
    values = common.get_config()
    values.data.image_size = size
    assert from_dict(values.to_dict()).data.image_size == size


LATENTS = {"data.space": "latents", "data.image_size": "64"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.image_size": "8,16,3"}, "config.data.image_size must be int or a tuple of 2"),
        ({"data.image_size": "8x16"}, "config.data.image_size must be int or a tuple of 2"),
        ({"data.image_size": "8,0"}, "config.data.image_size must be positive"),
        ({"data.image_size": "3,5"}, "config.model.m must divide the 15 tokens of a 3 x 5 grid"),
        ({"data.image_size": "16,8", "data.pad": "4"}, "config.data.pad must leave pixels"),
        (LATENTS | {"data.image_size": "64,100"}, "config.data.image_size must be a multiple"),
        ({"sample.image_size": "0"}, "config.sample.image_size must be positive"),
        (LATENTS | {"sample.image_size": "60"}, "config.sample.image_size must be a multiple"),
        ({"sample.image_size": "3,5"}, "sample.image_size must be .* model.m = 2 would have to"),
        (
            {"model.patch_size": "2", "sample.image_size": "8,9"},
            "sample.image_size must be .* model.patch_size = 2 would have to divide both sides",
        ),
        (
            {"model.name": "dit", "model.mixer": "delta_conv", "sample.image_size": "9"},
            r"sample.image_size must be .* model.pyramid = \(1, 2\) would have to divide the 9 x 9",
        ),
        ({"model.dt_rate": "1,0.5"}, "config.model.dt_rate must be one number for .*'diffussm'"),
        (
            {"sample.image_size": "16", "inspect.distance": True},
            "config.sample.image_size must be None where inspect.distance is True",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_dict({}, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "rule", "rate"),
    [
        ({}, "none", 2.0),
        ({}, "width", 0.5),
        ({}, "pixels", 0.25),
        ({}, "axis", 0.5),
        ({}, None, 0.25),
        ({"name": "dit", "mixer": "s4d"}, None, (0.5, 1.0)),
        ({"name": "dit", "mixer": "s4d", "scan_orders": "rows"}, None, 0.25),
        ({"name": "dit", "mixer": "s4d"}, "width", 0.5),
    ],
)
def test_what_becomes_of_dt(model, rule, rate):
    """From 8 x 8 to twice the height and four times the width."""
    values = {"model": model | {"dt_rate": 2.0}, "sample": {"image_size": (16, 32)}}
    config = merge(values, {"sample": values["sample"] | {"dt_rule": rule}})
    drawn = as_drawn(config.sample, config)
    assert drawn.model.dt_rate == rate
    assert drawn.data.image_size == (16, 32)
    assert drawn.model.position_scale == (0.5, 0.25)
    extended = merge(values, {"sample": values["sample"] | {"position": "extend"}})
    assert as_drawn(extended.sample, extended).model.position_scale == 1


def test_at_its_own_size_a_model_stays_as_it_is():
    config = from_dict({"sample": {"image_size": 8, "position": "extend", "dt_rule": "width"}})
    assert as_drawn(config.sample, config) is config
    assert as_drawn(Config().sample, config) is config


def test_interpolated_positions_lie_evenly_among_the_trained_ones():
    trained = sincos2d(4, 6, 1, 32)
    np.testing.assert_array_equal(sincos2d(4, 6, 1, 32, scale=(1.0, 1.0)), trained)
    grid = np.asarray(trained).reshape(4, 6, 32)
    fine = np.asarray(sincos2d(8, 6, 1, 32, scale=(0.5, 1.0))).reshape(8, 6, 32)
    slowest, coarse = fine[:, 0, 15], grid[:, 0, 15]  # a sine that rises with the row
    assert (np.diff(slowest) > 0).all()
    np.testing.assert_allclose(slowest.reshape(4, 2).mean(1), coarse, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(fine[0, :, 16:], grid[0, :, 16:])  # columns stay as they were


def test_a_signal_held_for_two_tokens_gives_the_held_outputs_at_half_the_steps():
    """What dt_rate is for; channels have their own, and the last stays at the trained pace."""
    rng = np.random.default_rng(0)
    log_dt = jnp.asarray(rng.uniform(-4, -2, (1, 4)), jnp.float32)
    re, im = jnp.full((1, 4, 3), np.log(0.5), jnp.float32), jnp.ones((1, 4, 1)) * jnp.arange(3.0)
    b, c = jnp.asarray(rng.normal(size=(2, 1, 4, 3, 2)), jnp.float32)
    layer = log_dt, re, im, b, c, jnp.zeros((1, 4))
    u = jnp.asarray(rng.normal(size=(1, 32, 4)), jnp.float32)
    rates = jnp.array([0.5, 0.5, 0.5, 1.0])
    coarse = s4d(u, discretize(*layer), direction="forward")
    fine = s4d(u.repeat(2, axis=1), discretize(*layer, dt_rate=rates), direction="forward")[:, 1::2]
    np.testing.assert_allclose(fine[..., :3], coarse[..., :3], rtol=1e-4, atol=1e-5)
    assert not np.allclose(fine[..., 3], coarse[..., 3], atol=1e-2)


@pytest.mark.parametrize("sides", [(4, 12), (12, 4), (8, 8)])
def test_a_crop_to_any_shape_is_the_centre(sides):
    gradient = np.tile(np.arange(64, dtype=np.uint8)[:, None], (1, 64))
    crop = centre_crop(Image.fromarray(gradient), sides)
    assert crop.shape == (*sides, 1)
    height, width = sides
    assert abs(crop.mean() - 31.5) < 1
    span = 64 * min(1, height / width)  # rows of the picture that the crop shows
    assert abs(np.ptp(crop.astype(float)) - span * (1 - 1 / height)) < 3


def test_the_runs_own_classifier_knows_one_size(tmp_path):
    with pytest.raises(UserError, match="knows images of data.image_size = 8 alone: leave"):
        find_or_train(from_dict({"sample": {"image_size": 16}}), tmp_path)


def test_a_mesh_must_divide_the_rows_that_are_drawn():
    config = from_dict({"model": {"m": 1}, "sample": {"image_size": (9, 8)}})
    with pytest.raises(UserError, match="mesh.sequence must divide the 9 rows of tokens, got 2"):
        check_rows(as_drawn(config.sample, config), make_mesh(MeshConfig(sequence=2)))


def test_noise_is_what_averages_take_away():
    images, labels = real_digits((16, 8), 50)
    assert score(images, labels) == "98%, 0.00"
    noisy = np.where(np.arange(16)[:, None, None] % 2 == 1, images, 0).astype(np.uint8)
    assert float(score(noisy, labels).split(", ")[1]) > 0.3
    assert read_size("8,16") == read_size("8x16") == (8, 16)


@pytest.mark.slow
def test_rectangles_through_training_sampling_and_scores(tiny_config, tmp_path):
    """Digits of 8 x 16, and then drawn at 16 x 8; an export draws the same."""
    values = {"data": {"image_size": (8, 16)}, "evaluate": {"features": "pixels"}}
    config = merge(tiny_config, values)
    train(config, tmp_path / "run")
    for size in (None, (16, 8)):
        drawn = merge(tiny_config, values | {"sample": {"image_size": size}})
        sample(drawn, tmp_path / "run")
        with np.load(tmp_path / "run" / "samples" / "samples.npz") as file:
            assert file["arr_0"].shape == (10, *(size or (8, 16)), 1)
        refstats(drawn, tmp_path / "run")
        evaluate(drawn, tmp_path / "run")
    folder = str(tmp_path / "weights")
    export(merge(tiny_config, values | {"export": {"folder": folder}}), tmp_path / "run")
    assert "from 8 x 16 images" in (tmp_path / "weights" / "README.md").read_text()
    options = {"classes": [1, 2], "image_size": (16, 8)}
    models = (diffussm_jax.load(path) for path in (tmp_path / "run", folder))
    first, second = (model.sample(**options) for model in models)
    assert first.shape == (2, 16, 8, 1)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_latents_of_rectangles(tiny_config, tiny_autoencoder, tmp_path):
    data = {
        "space": "latents",
        "channels": 3,
        "image_size": (8, 16),
        "split": "train[:20]",
        "eval_split": None,
        "latents_dir": str(tmp_path / "latents"),
    }
    vae = {"name": str(tiny_autoencoder), "factor": 2, "batch_size": 1}
    config = merge(tiny_config, {"data": data, "autoencoder": vae, "training": {"num_steps": 2}})
    encode(config)
    encode(config)  # finished, and of the same size
    assert cache_folder(config, "train").parent.name == "digits-8x16"
    assert LatentSource(config, "train[:20]").example(0, mirrored=True)["mean"].shape == (4, 8, 4)
    train(config, tmp_path / "run")
    images = diffussm_jax.load(tmp_path / "run").sample([3], image_size=(16, 8))
    assert images.shape == (1, 16, 8, 3)
