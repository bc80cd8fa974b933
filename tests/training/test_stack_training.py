"""Training by the fused stack: the losses are the loop's, within what bfloat16 changes anyway."""

import dataclasses
import json

import numpy as np
import pytest

from diffussm_jax.train import train
from tests.conftest import merge

NUM_STEPS = 200


def losses(tiny_config, workdir, num_steps=NUM_STEPS, **model):
    """The loss of every step; the digits have a black edge, so that they are 256 tokens."""
    config = merge(
        tiny_config,
        {
            "model": {"width": 32} | model,
            "data": {"image_size": 16, "pad": 4},
            "training": {
                "num_steps": num_steps,
                "batch_size": 16,
                "log_every": 1,
                "eval_every": 1000,
                "sample_every": None,
            },
        },
    )
    train(dataclasses.replace(config, seed=int(workdir.name)), workdir)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([x["loss"] for x in map(json.loads, lines) if "loss" in x])


@pytest.mark.slow
@pytest.mark.nightly
def test_losses_follow_those_of_the_loop(tiny_config, tmp_path):
    """Three seeds: the distance to the loop in float32 is that of the loop in bfloat16."""
    distances = []
    for seed in range(3):
        runs = {
            "exact": {"dtype": "float32"},
            "loop": {"dtype": "bfloat16"},
            "kernels": {"dtype": "bfloat16", "stack_implementation": "pallas_tpu"},
        }
        found = {
            name: losses(tiny_config, tmp_path / name / str(seed), **model)
            for name, model in runs.items()
        }
        assert found["exact"].shape == (NUM_STEPS,)
        assert found["exact"][-20:].mean() < 0.5 * found["exact"][:5].mean()  # they learn
        distances.append([np.sqrt(np.mean((found[x] - found["exact"]) ** 2)) for x in runs])
    _, loop, kernels = np.mean(distances, axis=0)
    print(np.array(distances))
    assert kernels < 1.5 * loop


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_implementation(tiny_config, tmp_path):
    undisturbed = losses(tiny_config, tmp_path / "one" / "0", num_steps=6)
    for first, second in (("xla", "pallas_tpu"), ("pallas_tpu", "xla")):
        workdir = tmp_path / first / "0"
        losses(tiny_config, workdir, num_steps=3, stack_implementation=first)
        resumed = losses(tiny_config, workdir, num_steps=6, stack_implementation=second)
        np.testing.assert_allclose(resumed, undisturbed, rtol=1e-5)
