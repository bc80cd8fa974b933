"""Rules of the config, and every shipped config file."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from diffussm_jax.config import Config, from_dict, to_json
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.training.state import abstract_model

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = [path.stem for path in sorted(CONFIGS.glob("*.py"))]


def load(name, *argument):
    return from_dict(importlib.import_module(f"configs.{name}").get_config(*argument).to_dict())


@pytest.mark.parametrize("name", FILES)
def test_every_config_builds_and_runs_abstractly(name):
    config = load(name)
    graphdef, params = abstract_model(config)
    x = jax.ShapeDtypeStruct((2, *config.grid), jnp.float32)
    y = jax.ShapeDtypeStruct((2,), jnp.int32) if config.data.num_classes else None
    t = jax.ShapeDtypeStruct((2, len(config.conditions)), jnp.float32)
    out = jax.eval_shape(lambda p, x, t, y: nnx.merge(graphdef, p)(x, t, y), params, x, t, y)
    learned = config.diffusion.variance == "learned_range"
    assert out.shape == (*x.shape[:3], x.shape[3] * (1 + learned))


# Those of small images, and those of other objectives than the paper's.
OWN_RECIPES = {
    "common",
    "digits",
    "distill_digits",
    "fashion_mnist",
    "flow256",
    "mean_flow256",
    "one_step",
    "photos",
    "textures",
}


@pytest.mark.parametrize("name", [f for f in FILES if f not in OWN_RECIPES])
def test_the_papers_configs_keep_the_papers_recipe(name):
    config = load(name)
    assert config.diffusion.num_steps == 1000
    assert (config.diffusion.schedule, config.diffusion.prediction) == ("linear", "eps")
    assert config.diffusion.variance == "learned_range"
    assert config.optimizer == Config().optimizer
    assert config.optimizer.learning_rate == 1e-4
    assert config.optimizer.weight_decay == 0
    assert config.training.batch_size == 256
    assert config.training.ema_decay == 0.9999
    assert config.training.label_dropout == 0.1
    assert (config.sample.sampler, config.sample.steps) == ("ddpm", 250)


def test_config_arguments():
    assert load("lsun256").data.name == "lsun/church_outdoor"
    assert load("lsun256", "bedroom").data.name == "lsun/bedroom"
    assert load("imagenet256", "B").model.width == 768
    assert load("imagenet256").grid == (32, 32, 4)
    assert load("imagenet512").grid == (64, 64, 4)
    with pytest.raises(ValueError, match="church or bedroom"):
        load("lsun256", "kitchen")


@pytest.mark.parametrize("name", FILES)
def test_json_gives_the_config_back(name):
    config = load(name)
    assert from_dict(json.loads(to_json(config))) == config


def test_defaults_are_the_dataclasses():
    assert load("common") == Config() == from_dict({})


MEAN_FLOW = {"process": "mean_flow", "prediction": "v", "variance": "none"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"detph": 3}}, "no field 'model.detph'; did you mean 'model.depth'"),
        ({"learning_rate": 3}, "no field 'learning_rate'; did you mean 'optimizer.learning_rate'"),
        ({"model": 3}, "config.model is a section of fields, got 3"),
        ({"model": {"depth": "3"}}, "config.model.depth must be int, got '3'"),
        ({"model": {"depth": 3.0}}, "config.model.depth must be int, got 3.0"),
        ({"model": {"depth": True}}, "config.model.depth must be int, got True"),
        ({"model": {"gate": 1}}, "config.model.gate must be bool, got 1"),
        (
            {"model": {"dtype": "float16"}},
            "config.model.dtype must be one of 'bfloat16', 'float32'",
        ),
        (
            {"model": {"ssm_implementation": "cuda"}},
            "config.model.ssm_implementation must be .* or None",
        ),
        ({"optimizer": {"betas": (0.9,)}}, "config.optimizer.betas must be"),
        ({"optimizer": {"grad_clip": "1"}}, "config.optimizer.grad_clip must be float or None"),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "config.optimizer.learning_rate must be positive",
        ),
        ({"optimizer": {"learning_rate": -1.0}}, "config.optimizer.learning_rate must be positive"),
        ({"training": {"batch_size": 0}}, "config.training.batch_size must be positive"),
        ({"training": {"ema_decay": 1.0}}, "config.training.ema_decay must be below 1"),
        ({"model": {"m": 3}}, "config.model.m must divide the 64 tokens"),
        ({"model": {"patch_size": 3}}, "config.model.patch_size must divide both sides"),
        ({"data": {"pad": 4}}, "config.data.pad must leave pixels of data.image_size = 8 between"),
        ({"data": {"space": "latents", "pad": 1}}, "config.data.pad must be 0 where data.space is"),
        ({"model": {"width": 18}}, "config.model.width must be a multiple of 4"),
        ({"model": {"state_size": 7}}, "config.model.state_size must be even"),
        ({"model": {"dt_range": (0.1, 0.01)}}, "config.model.dt_range"),
        (
            {"data": {"space": "latents", "image_size": 100}},
            "config.data.image_size must be a multiple",
        ),
        ({"sample": {"steps": 2000}}, "config.sample.steps must be at most"),
        (
            {"sample": {"cfg_scale": 2.0}, "data": {"num_classes": 0}},
            "config.sample.cfg_scale must be 1",
        ),
        ({"sample": {"classes": (3, 10), "labels": "list"}}, "config.sample.classes must be below"),
        ({"sample": {"classes": (3,)}}, "config.sample.labels must be .list."),
        ({"sample": {"autoguidance": "x"}}, "config.sample.cfg_scale must not be 1"),
        ({"sample": {"cfg_interval": (1.0, 1.0)}}, "config.sample.cfg_interval must be"),
        (
            {"diffusion": {"process": "mean_flow"}},
            "config.diffusion.variance must be 'none' under .* got 'learned_range'",
        ),
        (
            {"diffusion": {"process": "flow", "variance": "none"}},
            "config.sample.sampler must be euler, heun, euler_maruyama under .* got 'ddpm'",
        ),
        ({"diffusion": {"variance": "none"}}, "config.diffusion.variance must be learned_range"),
        (
            {"diffusion": MEAN_FLOW | {"prediction": "eps"}},
            "config.diffusion.prediction must be 'v' under .* got 'eps'",
        ),
        (
            {"diffusion": MEAN_FLOW | {"weighting": "min_snr"}},
            "config.diffusion.weighting must be none or adaptive",
        ),
        (
            {"diffusion": MEAN_FLOW, "sample": {"sampler": "heun"}},
            "config.sample.sampler must be euler under .* got 'heun'",
        ),
        (
            {"diffusion": MEAN_FLOW | {"share_r_below_t": 1.5}},
            "config.diffusion.share_r_below_t must be at most 1",
        ),
        (
            {"guidance": {"scale": 1.5}, "data": {"num_classes": 0}},
            "config.guidance.scale must be left out where",
        ),
        (
            {"guidance": {"max_scale": 4.0}, "training": {"label_dropout": 0.0}},
            "config.guidance.max_scale must be left out where",
        ),
        (
            {"guidance": {"scale": 2.0}, "sample": {"cfg_scale": 1.5}},
            "config.sample.cfg_scale must be 1 where guidance.scale is given",
        ),
        (
            {"diffusion": {"time_sampling": "shifted"}},
            "config.diffusion.time_shift must differ from 1 where",
        ),
        (
            {"diffusion": MEAN_FLOW, "sample": {"sampler": "euler", "cfg_interval": (0.1, 2.0)}},
            "config.sample.cfg_interval must be None under",
        ),
        ({"guidance": {"scale": 0.5}}, "config.guidance.scale must be at least 1"),
        ({"distill": {"all_after": 5}}, "config.distill.all_after must be None where"),
        (
            {"training": {"teacher": "x"}, "distill": {"features": 1.0, "blocks": (1, 30)}},
            "config.distill.blocks must be different numbers up to 29, the number",
        ),
        (
            {"training": {"teacher": "x"}, "distill": {"train": "mixers"}},
            "config.distill.train must be 'all' for model.name = 'diffussm'",
        ),
        ({"guidance": {"scale": 2.0, "max_scale": 4.0}}, "config.guidance.scale must be 1 where"),
        ({"sample": {"window_overlap": 0.5}}, "config.sample.window_overlap must be None where"),
        (
            {"sample": {"window_overlap": 0.5, "image_size": (16, 4)}},
            "config.sample.image_size must hold a window of data.image_size = 8",
        ),
        (
            {"sample": {"window_overlap": 1.0, "wrap": "x"}},
            "config.sample.window_overlap must be below 1",
        ),
        ({"sample": {"wrap": "x", "steps": 19}}, "config.sample.steps must be at least 20 where"),
        (
            {"sample": {"wrap": "x"}, "inspect": {"distance": True}},
            "config.sample.wrap must be None where inspect.distance is True",
        ),
        (
            {"guidance": {"max_scale": 4.0}, "sample": {"cfg_scale": 5.0}},
            "config.sample.cfg_scale must be between 1 and guidance.max_scale = 4.0",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(values)
    assert "\n" not in str(error.value)
