"""Training by the fused stack: the losses are the loop's, within what bfloat16 changes anyway."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.train import train
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.training.step import compile_train_step
from tests.conftest import merge

NUM_STEPS = 200
BATCH = 4


def config_of(tiny_config, num_steps, **model):
    """The digits with a black edge, so that they are 256 tokens."""
    changes = {
        "model": model,
        "data": {"image_size": 16, "pad": 4},
        "training": {"num_steps": num_steps, "log_every": 1, "sample_every": None},
    }
    return merge(tiny_config, changes)


def losses_on_one_device(tiny_config, seed, **model):
    config = dataclasses.replace(config_of(tiny_config, NUM_STEPS, **model), seed=seed)
    mesh = make_mesh(devices=jax.devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    step = compile_train_step(config, graphdef, abstract_state(config, mesh), mesh)
    state = init_state(config, make_optimizer(config))
    images, labels = load_digits(return_X_y=True)
    images = np.pad(images.reshape(-1, 8, 8, 1) * (255 / 16), ((0, 0), (4, 4), (4, 4), (0, 0)))
    rng, losses = np.random.default_rng(seed), []
    for _ in range(NUM_STEPS):
        chosen = rng.choice(len(images), BATCH)
        batch = {"image": images[chosen].astype(np.uint8), "label": labels[chosen].astype(np.int32)}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.nightly
def test_losses_follow_those_of_the_loop(tiny_config):
    """Three seeds: the distance to the loop in float32 is that of the loop in bfloat16."""
    models = {
        "exact": {"dtype": "float32"},
        "loop": {"dtype": "bfloat16"},
        "kernels": {"dtype": "bfloat16", "stack_implementation": "pallas_tpu"},
    }
    distances = []
    for seed in range(3):
        found = {x: losses_on_one_device(tiny_config, seed, **y) for x, y in models.items()}
        exact = found["exact"]
        assert exact[-40:].mean() < 0.5 * exact[:5].mean()  # they learn
        distances.append([np.sqrt(np.mean((found[x] - exact) ** 2)) for x in ("loop", "kernels")])
    print(f"distance of the losses to float32's, loop and kernels, by seed: {distances}")
    loop, kernels = np.mean(distances, axis=0)
    assert 0 < kernels < 1.25 * loop


def losses_of_run(tiny_config, workdir, num_steps, **model):
    train(config_of(tiny_config, num_steps, **model), workdir)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([x["loss"] for x in map(json.loads, lines) if "loss" in x])


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_implementation(tiny_config, tmp_path):
    undisturbed = losses_of_run(tiny_config, tmp_path / "one", 6)
    for first, second in (("xla", "pallas_tpu"), ("pallas_tpu", "xla")):
        losses_of_run(tiny_config, tmp_path / first, 3, stack_implementation=first)
        resumed = losses_of_run(tiny_config, tmp_path / first, 6, stack_implementation=second)
        np.testing.assert_allclose(resumed, undisturbed, rtol=1e-5)
