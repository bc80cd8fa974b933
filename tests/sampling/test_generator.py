"""What an image depends on, and what it does not: batches, devices, outputs."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from diffussm_jax.config import SampleConfig, from_dict
from diffussm_jax.diffusion.samplers import START, image_noise
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import make_mesh, replicated
from diffussm_jax.sampling import generator
from diffussm_jax.sampling.inputs import image_keys, image_labels
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.training.state import init_params
from diffussm_jax.workdir.weights import Weights
from tests.conftest import TINY_MODEL

# Processes that keep noisy images in 0 .. 255.
GAUSSIAN = {"num_steps": 20, "schedule": "cosine", "prediction": "v", "variance": "fixed_small"}
MEAN_FLOW = {"process": "mean_flow", "prediction": "v", "variance": "none"}


def random_weights(seed: int, process=GAUSSIAN, **sections) -> Weights:
    """A tiny model without a layer of zeros."""
    values = {"model": TINY_MODEL, "diffusion": process, "sample": {"steps": 4}, "seed": seed}
    config = from_dict(values | sections)
    leaves, structure = jax.tree.flatten(jax.jit(lambda: init_params(config))())
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return Weights(config, jax.tree.unflatten(structure, moved), 0, None)


@pytest.fixture(scope="module")
def weights():
    return random_weights(0)


def load_on_devices(weights, num_devices: int) -> TrainedModel:
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    params = jax.device_put(weights.params, replicated(mesh))
    return TrainedModel(weights._replace(params=params), Path("unused"), mesh)


def draw_on(weights, num_devices: int, **options):
    model = load_on_devices(weights, num_devices)
    common = {"num": 64, "steps": 4, "labels": "random", "cfg_scale": 1.5} | options
    images, labels = model.generator.draw(model.params, SampleConfig(**common))
    assert images.std() > 20
    assert np.mean((images == 0) | (images == 255)) < 0.7
    return images.astype(int), labels


def test_a_model_that_is_told_its_guidance_is_called_once_and_obeys():
    """One call for an image, on one device as on two; the scale is an argument of sampling."""
    euler = {"sampler": "euler", "steps": 1, "num": 16}
    told = random_weights(0, MEAN_FLOW, sample=euler, guidance={"max_scale": 8.0})
    layer = told.params["guidance_scale"]["out"]
    layer["kernel"] = 100 * layer["kernel"]  # random weights hardly look at one condition
    one, _ = draw_on(told, 1, **euler)
    two, _ = draw_on(told, 2, **euler)
    np.testing.assert_allclose(one, two, atol=1)
    strong, _ = draw_on(told, 1, **euler | {"cfg_scale": 8.0})
    assert np.abs(strong - one).mean() > 1
    model = load_on_devices(told, 1)
    with pytest.raises(UserError, match="cfg_scale must be between 1 and guidance.max_scale"):
        model.sample(num=1, cfg_scale=9.0)


def test_labels_by_mode():
    indices = np.arange(20_000)
    options = SampleConfig(labels="random", seed=3)
    labels = image_labels(options, 10, indices)
    counts = np.bincount(labels, minlength=10)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000 * 0.9)
    np.testing.assert_array_equal(labels[70:90], image_labels(options, 10, indices[70:90]))
    other = image_labels(dataclasses.replace(options, seed=4), 10, indices)
    assert np.mean(labels == other) < 0.15
    balanced = image_labels(SampleConfig(), 10, indices[:25])
    np.testing.assert_array_equal(balanced, np.arange(25) % 10)
    listed = SampleConfig(labels="list", classes=(7, 1, 7))
    np.testing.assert_array_equal(image_labels(listed, 10, indices[2:6]), [7, 7, 1, 7])
    assert image_labels(SampleConfig(), 0, indices) is None


def test_keys_labels_and_noise_are_the_same_in_any_batch():
    options = SampleConfig(labels="random")

    def draw(indices):
        keys = image_keys(0, indices)
        first, later = (image_noise(keys, t, (8, 8, 4)) for t in (START, 17))
        return jax.random.key_data(keys), first, later

    whole = jax.jit(draw)(np.arange(64))
    labels = image_labels(options, 10, np.arange(64))
    run = jax.jit(draw)
    for size in (1, 8):
        parts = [np.arange(start, start + size) for start in range(0, 64, size)]
        for arrays, expected in zip(zip(*map(run, parts)), whole, strict=True):
            assert np.concatenate(arrays).tobytes() == np.asarray(expected).tobytes()
        by_parts = np.concatenate([image_labels(options, 10, part) for part in parts])
        assert by_parts.tobytes() == labels.tobytes()


def test_batch_and_devices_change_no_image(weights):
    """Labels are equal and pixels within one level of uint8, by batches of 1, 8 and 64 images."""
    images, labels = draw_on(weights, 8, batch_size=64)
    for num_devices, batch_size in ((1, 1), (2, 8), (1, 64)):
        others, other_labels = draw_on(weights, num_devices, batch_size=batch_size)
        np.testing.assert_array_equal(other_labels, labels)
        assert np.abs(others - images).max() <= 1


TILES = {"wrap": "xy", "steps": 20}


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "heun"},
        pytest.param(TILES | {"sampler": "ddpm"}, marks=pytest.mark.slow),
        pytest.param(TILES | {"window_overlap": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_with_one_microbatch_not_one_bit_changes(weights, options):
    same = {"microbatch": 8} | options
    images, _ = draw_on(weights, 1, batch_size=1, **same)
    for num_devices, batch_size in ((2, 8), (8, 64)):
        others, _ = draw_on(weights, num_devices, batch_size=batch_size, **same)
        np.testing.assert_array_equal(others, images)


def test_autoguidance_moves_images_unless_the_guide_is_the_model(weights, monkeypatch):
    options = {"num": 8, "microbatch": 8, "autoguidance": "there", "cfg_scale": 2.0}
    plain, _ = draw_on(weights, 1, num=8, microbatch=8, cfg_scale=1.0)
    for guide, is_same in ((weights, True), (random_weights(1), False)):
        monkeypatch.setattr(generator, "load_weights", lambda folder, mesh: guide)  # noqa: B023
        guided, _ = draw_on(weights, 1, **options)
        assert (np.abs(guided - plain).max() <= 1) == is_same


def test_a_guide_of_another_process_is_refused(weights, trained):
    with pytest.raises(UserError, match="sample.autoguidance: .* diffusion.schedule = 'linear'"):
        draw_on(weights, 1, autoguidance=str(trained))


def test_the_job_of_a_model_is_what_its_images_depend_on(weights, tmp_path):
    """Another seed draws again; another batch size, number or output does not."""
    model = load_on_devices(weights, 8)
    options = SampleConfig(num=8, batch_size=8, steps=2)
    first = model.sample_to(tmp_path, options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(files) == 1
    larger = dataclasses.replace(options, batch_size=16, outputs=("png",))
    assert model.sample_to(tmp_path, larger).facts == first.facts
    assert {path: path.stat().st_mtime_ns for path in files} == files
    other = model.sample_to(tmp_path, dataclasses.replace(options, seed=1))
    assert other.facts["sample"]["seed"] == 1
    assert {path: path.stat().st_mtime_ns for path in files} != files
