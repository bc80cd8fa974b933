"""Caches of latents as training sees them: what is read, and what is refused."""

import json

import numpy as np
import pytest

from diffussm_jax.data import latents, pipeline
from diffussm_jax.data.latent_shards import write_shard
from diffussm_jax.data.latents import LatentSource, cache_folder, record_dtype
from diffussm_jax.errors import UserError
from tests.conftest import merge

LATENTS = {"space": "latents", "image_size": 32, "channels": 3, "num_classes": 3}
NUM_IMAGES = 150
FINGERPRINT = {"data_set": "pictures/1.0.0", "num_images": NUM_IMAGES, "sha256": "0" * 64}


def config_of(tiny_config, tmp_path, **data):
    values = LATENTS | {"name": "pictures", "latents_dir": str(tmp_path)} | data
    return merge(tiny_config, {"data": values})


@pytest.fixture
def moments():
    """[image, mirrored, mean or std, h, w, c]"""
    rng = np.random.default_rng(0)
    return rng.normal(size=(NUM_IMAGES, 2, 2, 4, 4, 4)).astype(np.float16)


@pytest.fixture
def config(tiny_config, tmp_path, moments):
    """A config and the cache that it trains from, in two shards."""
    config = config_of(tiny_config, tmp_path)
    dtype, folder = record_dtype(config), cache_folder(config, "train")
    folder.mkdir(parents=True)
    shards = []
    for number, part in enumerate(np.split(moments, 2)):
        path = folder / f"moments-{number:05d}-of-00002.array_record"
        records = [
            tuple(np.array((index % 3, *side), dtype).tobytes() for side in sides)
            for index, sides in enumerate(part)
        ]
        write_shard(path, iter(records))
        shards.append(json.loads(path.with_suffix(".json").read_text()))
    manifest = latents.shared_fields(config, "train") | {
        "class_names": ["a", "b", "c"],
        "fingerprint": FINGERPRINT,
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return config


def edit(config, **changes):
    path = cache_folder(config, "train") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read(config, moments):
    source = LatentSource(config, "train")
    assert len(source) == NUM_IMAGES
    assert source.facts["class_names"] == ["a", "b", "c"]
    for index in (0, 74, 75, 149):
        for mirrored in (False, True):
            example = source.example(index, mirrored=mirrored)
            mean, std = moments[index, int(mirrored)]
            np.testing.assert_array_equal(example["mean"], mean)
            np.testing.assert_array_equal(example["std"], std)
            assert example["label"] == (index % 75) % 3


def test_in_memory_is_the_same(config, tiny_config, tmp_path):
    kept = config_of(tiny_config, tmp_path, in_memory=True)
    batches = [
        next(pipeline.train_batches(c, pipeline.open_source(c, "train"))) for c in (config, kept)
    ]
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_batches_have_both_mirrors(tiny_config, config, tmp_path, moments):
    flipping = config_of(tiny_config, tmp_path, flip=True)
    source = LatentSource(flipping, "train")
    means = np.concatenate(
        [b["mean"] for _, b in zip(range(20), pipeline.train_batches(flipping, source))]
    )
    sides = [
        sum(any(np.array_equal(m, x) for x in moments[:, side, 0]) for m in means)
        for side in (0, 1)
    ]
    assert sum(sides) == len(means)
    assert min(sides) > 0.35 * len(means)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"image_size": 64}, None),  # another folder
        ({"split": "validation"}, None),
        ({"num_classes": 4}, "config.data.num_classes=3, or 0"),
    ],
)
def test_another_config_is_told_what_differs(tiny_config, config, tmp_path, data, field):
    other = config_of(tiny_config, tmp_path, **data)
    with pytest.raises(UserError, match=field or "has none: .* --mode=encode first"):
        LatentSource(other, other.data.split)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("autoencoder.name", "another"),
        ("autoencoder.scale", 0.5),
        ("data.image_size", 64),
        ("data.name", "other pictures"),
        ("data.channels", 1),
    ],
)
def test_a_manifest_that_does_not_match_names_the_field(config, field, value):
    edit(config, **{field: value})
    with pytest.raises(UserError, match=f"holds latents of {field} = ") as error:
        LatentSource(config, "train")
    assert "\n" not in str(error.value)


def test_a_cache_of_before_labels_were_always_stored_is_refused(config):
    path = cache_folder(config, "train") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["fingerprint"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="labels may be missing: remove .* with --mode=encode"):
        LatentSource(config, "train")


def test_what_is_damaged_is_refused(config):
    folder = cache_folder(config, "train")
    shard = folder / "moments-00001-of-00002.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"moments-00001-.* is missing or damaged: run"):
        LatentSource(config, "train")
    # A bit of one record: the size is right, and the record's own checksum is not.
    damaged = bytearray(data)
    damaged[3000] ^= 1
    shard.write_bytes(damaged)
    source = LatentSource(config, "train")
    with pytest.raises(UserError, match=r"latents \d+ of .*train: "):
        for index in range(len(source)):
            source.example(index, mirrored=False)
            source.example(index, mirrored=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json is damaged: .*; remove"),
        ("[]", "manifest.json is damaged: it is not a JSON object; remove"),
        ("{}", "does not say which images .*: remove"),
        ('{"fingerprint": 3}', "is no manifest of latents: .* is missing; remove"),
    ],
)
def test_a_damaged_manifest_is_named(config, text, message):
    (cache_folder(config, "train") / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        LatentSource(config, "train")


def test_an_unfinished_encoding_is_not_trained_on(config):
    edit(config, shards=[])
    with pytest.raises(UserError, match="not finished: .* --mode=encode"):
        LatentSource(config, "train")


def test_a_label_out_of_range_is_named(config, tiny_config, tmp_path):
    edit(config, class_names=["a", "b"])
    source = LatentSource(config_of(tiny_config, tmp_path, num_classes=2), "train")
    with pytest.raises(UserError, match="label 2 is not below data.num_classes = 2"):
        source.example(2, mirrored=False)
