"""A model's samples as data: latents as a cache, and pictures in folders of their classes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.data.latents import encoded_from
from diffussm_jax.data.pipeline import open_source
from diffussm_jax.errors import UserError
from diffussm_jax.sample import sample
from diffussm_jax.sampling.images import save_pngs
from diffussm_jax.sampling.model import load, params_sha256
from tests.teachers import VALUES, values_with, write_teacher

CLIPPED = VALUES | {"diffusion": VALUES["diffusion"] | {"clip_x0": True}}
LATENTS = {"name": "of_nowhere", "space": "latents", "image_size": 64, "channels": 3}


@pytest.mark.slow
def test_samples_are_a_cache_of_latents(tmp_path):
    folder = tmp_path / "model"
    params = jax.tree.map(jnp.asarray, write_teacher(folder, data=LATENTS))
    options = {"num": 20, "seed": 3, "outputs": ("latents",)}
    config = from_dict(values_with(CLIPPED, data=LATENTS, sample=options))
    sample(config, folder)
    latents_dir = folder / "samples" / "latents"
    (manifest,) = latents_dir.rglob("manifest.json")
    facts = json.loads(manifest.read_text())
    assert facts["drawn"]["model"]["params.sha256"] == params_sha256(params)
    assert facts["drawn"]["sample"]["seed"] == 3
    assert facts["drawn"]["sample"]["sampler"] == "ddim"

    student = from_dict(values_with(VALUES, data=LATENTS | {"latents_dir": str(latents_dir)}))
    source = open_source(student, "train")
    assert len(source) == 20
    assert encoded_from(source) is None
    drawn = load(folder, config=config, latents=True).sample(num=20, seed=3)
    for index in range(20):
        example = source.example(index, mirrored=index % 2 == 1)
        assert example["label"] == index % 10
        np.testing.assert_allclose(example["mean"], drawn[index], rtol=1e-3, atol=1e-2)
        assert not example["std"].any()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sample": {"outputs": ("latents", "grid")}, "data": LATENTS}, r"be \('latents',\) alone"),
        ({"sample": {"outputs": ("latents",)}}, "where data.space is latents"),
        ({"sample": {"outputs": ("classes",)}, "data": {"num_classes": 0}}, "not have 'classes'"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(values_with(VALUES, **sections))


def test_pictures_lie_in_folders_in_the_order_of_their_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    labels = np.array([10, 2, 2, 0])
    folder = tmp_path / "classes"
    save_pngs([images[:3], images[3:]], folder, labels=labels, num_classes=11)
    save_pngs([images], folder, labels=labels, num_classes=11)  # replaces its own
    assert sorted(x.name for x in folder.iterdir()) == [f"{label:02d}" for label in range(11)]
    for index, label in enumerate(labels):
        with Image.open(folder / f"{label:02d}" / f"{index:06d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), images[index])
    (folder / "mine").mkdir()
    with pytest.raises(UserError, match="mine"):
        save_pngs([images], folder, labels=labels, num_classes=11)
