"""The numbers of a page's steps, against the samplers that they stand for."""

import json
import subprocess
from pathlib import Path
from shutil import which

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.diffusion import create_process, create_sampler
from diffussm_jax.diffusion.guidance import within
from diffussm_jax.diffusion.samplers import START, image_noise
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.web import folder
from diffussm_jax.exporting.web.recipe import require_drawable, step_counts, steps
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.workdir.weights import Weights

SHAPE = (4, 4, 1)
FLOW = {"process": "flow", "variance": "none"}
CASES = {
    "ddim_eps": ({"prediction": "eps"}, {"sampler": "ddim"}),
    "ddim_v_clipped": ({"prediction": "v", "clip_x0": True}, {"sampler": "ddim"}),
    "ddim_x0_cosine": ({"prediction": "x0", "schedule": "cosine"}, {"sampler": "ddim"}),
    "ddim_learned": ({"variance": "learned_range"}, {"sampler": "ddim"}),
    "dpm": ({"prediction": "v"}, {"sampler": "dpm_solver++"}),
    "interval": ({"prediction": "v"}, {"sampler": "ddim", "cfg_interval": (0.3, 4.0)}),
    "flow": (FLOW | {"prediction": "v"}, {"sampler": "euler"}),
    "flow_x0": (FLOW | {"prediction": "x0", "clip_x0": True}, {"sampler": "euler"}),
    "flow_shifted": (
        FLOW | {"prediction": "v", "time_sampling": "shifted", "time_shift": 3.0},
        {"sampler": "euler", "cfg_interval": (0.3, 4.0)},
    ),
    "mean_flow": (
        {"process": "mean_flow", "variance": "none", "prediction": "v", "clip_x0": True},
        {"sampler": "euler"},
    ),
}


def predict(x, told, strength):
    """A network's stand-in: smooth, and another at each time and strength."""
    return np.sin(1.3 * x + 0.1 * told) * strength + 0.2 * x


def drawn(config, num_steps, x):
    """What a page draws, by the equations that recipe.py gives."""
    before = None
    is_clipped = folder.is_clipped(config)
    for step in steps(config, num_steps):
        prediction = predict(x, sum(step.told), 1.5 if step.is_guided else 1.0)
        x0 = step.x0_from_x * x - step.x0_from_prediction * prediction
        x0 = np.clip(x0, -1, 1) if is_clipped else x0
        last = x0 if before is None else before
        x = step.x_from_x * x + step.x_from_x0 * (x0 + step.extrapolation * (x0 - last))
        before = x0
    return x


def sampled(config, num_steps, keys):
    """What the sampler draws in JAX."""

    def network(strength):
        def denoise(x, t, y):
            told = jnp.asarray(t, jnp.float32).reshape(len(t), -1).sum(1)[:, None, None, None]
            output = jnp.sin(1.3 * x + 0.1 * told) * strength + 0.2 * x
            if config.diffusion.variance == "learned_range":
                return jnp.concatenate([output, jnp.cos(x)], axis=-1)
            return output

        return denoise

    interval = config.sample.cfg_interval or (-1.0, np.inf)
    process = create_process(config.diffusion)
    denoiser = within(interval, network(1.5), network(1.0), process)
    options = config.sample.__class__(sampler=config.sample.sampler, steps=num_steps)
    return create_sampler(config.diffusion, options)(denoiser, keys, None, shape=SHAPE)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("case", CASES)
def test_a_page_draws_as_the_sampler_does(case, num_steps):
    diffusion, sample = CASES[case]
    given = {"num_steps": 100, "variance": "fixed_small", "clip_x0": False} | diffusion
    config = from_dict({"diffusion": given, "sample": sample | {"steps": num_steps}})
    keys = image_keys(3, jnp.arange(4))
    noise = np.asarray(image_noise(keys, START, SHAPE), np.float64)
    theirs = np.asarray(jax.jit(lambda: sampled(config, num_steps, keys))())
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(drawn(config, num_steps, noise) / scale, theirs / scale, atol=1e-4)


def test_the_numbers_of_steps_fit_the_process():
    def counts(diffusion, **sample):
        return step_counts(from_dict({"diffusion": diffusion, "sample": sample}))

    assert counts({"num_steps": 15}, sampler="ddim", steps=7) == [5, 7, 10]
    mean_flow = {"process": "mean_flow", "variance": "none", "prediction": "v"}
    assert counts(mean_flow, sampler="euler", steps=1) == [1, 2, 4]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"sample": {"sampler": "ddpm"}}, "config.sample.sampler = 'ddpm'"),
        ({"sample": {"sampler": "ddim", "eta": 0.5}}, "config.sample.eta = 0.5"),
        ({"sample": {"sampler": "ddim", "wrap": "x"}}, "config.sample.wrap = 'x'"),
        ({"sample": {"sampler": "ddim", "image_size": 12}}, "config.sample.image_size = 12"),
        ({"data": {"space": "latents", "image_size": 64}}, "config.data.space = 'latents'"),
    ],
)
def test_what_a_page_cannot_draw_is_named(changes, named):
    data = {"image_size": 8, "channels": 1} | changes.get("data", {})
    with pytest.raises(UserError, match=named):
        require_drawable(from_dict(changes | {"data": data}))


def test_a_page_names_a_folder_of_images_without_its_path():
    config = from_dict({"data": {"name": "folder:/home/ann/secret/cats", "num_classes": 0}})
    facts = folder.page_facts(Weights(config, {}, 1, None), config)
    assert facts["name"] == "DiffuSSM on cats"
    assert "ann" not in json.dumps(facts)


@pytest.mark.skipif(which("node") is None, reason="node, which reads the scripts, is missing")
@pytest.mark.parametrize("name", [name for name in folder.SOURCES if name.endswith(".js")])
def test_the_scripts_are_javascript(name, tmp_path):
    module = tmp_path / Path(name).with_suffix(".mjs")
    module.write_text((Path(folder.__file__).parent / "page" / name).read_text())
    command = ["node", "--check", str(module)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
