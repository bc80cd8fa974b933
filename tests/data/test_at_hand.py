"""Whose images are these? What latents and a run were made from, and what is there now."""

import json
import os
import shutil

import pytest

from diffussm_jax.data.latents import cache_folder
from diffussm_jax.data.pipeline import open_source
from diffussm_jax.encode import encode
from diffussm_jax.train import set_up, train
from tests.command_line import read
from tests.data.test_sources import write_image
from tests.fuzz.one_line import error_of

CLASSES, PER_CLASS = ("cat", "dog"), 3


def config_of(root, folder, *more):
    """What the command line makes of a folder of photographs in latents."""
    config, _ = read(
        "--config=configs/photos.py",
        f"--config.data.name=folder:{folder}",
        f"--config.data.data_dir={root}/tfds",
        f"--config.autoencoder.name={root}/autoencoder",
        "--config.autoencoder.factor=2",
        "--config.autoencoder.batch_size=1",
        "--config.data.image_size=16",
        "--config.data.num_classes=2",
        f"--workdir={root}/run",
        *more,
    )
    return config


@pytest.fixture(scope="module")
def encoded_once(tiny_autoencoder, tmp_path_factory):
    """A folder `A/images` whose latents were encoded by a command without classes."""
    root = tmp_path_factory.mktemp("encoded")
    shutil.copytree(tiny_autoencoder, root / "autoencoder")
    for label, name in enumerate(CLASSES):
        for index in range(PER_CLASS):
            write_image(root / "A/images" / name / f"{index}.png", 10 * label + index)
    flags = "--config.data.num_classes=0", "--config.sample.cfg_scale=1.0", "--mode=encode"
    encode(config_of(root, root / "A/images", *flags))
    return root


@pytest.fixture
def encoded(encoded_once, tmp_path):
    """A copy of that folder and of what was encoded, to write into."""
    return shutil.copytree(encoded_once, tmp_path / "encoded")


@pytest.fixture
def folder(encoded, tmp_path):
    """A copy that has the name and the times of the folder that was encoded."""
    return shutil.copytree(encoded / "A/images", tmp_path / "images")


def test_the_true_label_is_stored_also_where_the_encoding_had_no_classes(encoded, folder):
    source = open_source(config_of(encoded, folder), "train")
    labels = [int(source.example(i, mirrored=False)["label"]) for i in range(len(source))]
    assert labels == [0, 0, 0, 1, 1, 1]
    assert source.facts["class_names"] == list(CLASSES)


def replace_all(folder):
    for path in folder.rglob("*.png"):
        write_image(path, 99)


CHANGES = {
    "another folder": (replace_all, "6 changed (cat/0.png)"),
    "added": (lambda f: write_image(f / "cat" / "new.png"), "1 added (cat/new.png)"),
    "removed": (lambda f: (f / "dog" / "1.png").unlink(), "1 removed (dog/1.png)"),
    "moved": (
        lambda f: (f / "dog" / "1.png").rename(f / "cat" / "9.png"),
        "1 added (cat/9.png), 1 removed (dog/1.png)",
    ),
    "renamed": (lambda f: (f / "cat").rename(f / "bird"), "3 added (bird/0.png), 3 removed (cat"),
    "swapped": (
        lambda f: [(f / a).rename(f / b) for a, b in (("cat", "x"), ("dog", "cat"), ("x", "dog"))],
        "6 changed (cat/0.png)",
    ),
}

QUICK = {"another folder", "added", "swapped"}


@pytest.mark.parametrize(
    "change", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CHANGES]
)
def test_a_changed_folder_is_not_trained_on_by_its_old_latents(encoded, folder, change):
    make, difference = CHANGES[change]
    make(folder)
    line = error_of(lambda: train(config_of(encoded, folder), encoded / "run"))
    assert "config.data.name: the images of" in line
    assert difference in line
    assert "remove that folder and encode again" in line
    assert not (encoded / "run").exists()


def test_two_folders_of_one_name_do_not_share_latents(encoded, folder):
    replace_all(folder)
    line = error_of(lambda: encode(config_of(encoded, folder)))
    assert "6 changed (cat/0.png); restore them, change config.data.latents_dir to keep" in line


def test_a_run_on_latents_is_not_told_to_encode_again(encoded, folder, tmp_path):
    """Other latents would be other data; they are in the way once the images are back."""
    run, new = tmp_path / "run", folder / "cat" / "new.png"
    config = config_of(encoded, folder)
    set_up(config, run)
    (run / "checkpoints" / "3").mkdir(parents=True)  # as if it had saved step 3
    write_image(new)
    line = error_of(lambda: train(config, run))
    assert "1 added (cat/new.png); restore them to go on with this run, or begin from" in line
    config = config_of(encoded, folder, f"--config.data.latents_dir={tmp_path}/latents")
    encode(config)
    line = error_of(lambda: train(config, run))
    assert "began with other data: 7 images (folder_images_" in line
    assert "restore them to go on with this run" in line
    new.unlink()
    line = error_of(lambda: train(config, run))
    assert "1 removed (cat/new.png); restore them, change config.data.latents_dir" in line


def test_where_nobody_kept_the_list_of_files_the_numbers_are_told(encoded, folder, tmp_path):
    elsewhere = f"--config.data.data_dir={tmp_path}/tfds"
    config = config_of(
        encoded, folder, elsewhere, f"--config.data.latents_dir={encoded}/tfds/latents"
    )
    write_image(folder / "cat" / "0.png", 99)
    run = tmp_path / "run"
    assert "6 as then, but not the same" in error_of(lambda: train(config, run))
    write_image(folder / "cat" / "new.png")
    assert "7 now and 6 then" in error_of(lambda: train(config, run))
    assert not (tmp_path / "tfds").exists()


def test_a_copy_with_other_times_has_the_same_images(encoded, folder, tmp_path, caplog):
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes())
    config = config_of(encoded, folder)
    with caplog.at_level("INFO", "diffussm_jax"):
        assert len(set_up(config, tmp_path / "run").source) == 6
        encode(config)
    assert "reading the 6 images of" in caplog.text


@pytest.mark.parametrize(
    "absent",
    [
        shutil.rmtree,
        lambda f: [shutil.rmtree(x) for x in f.iterdir()],
        lambda f: [x.unlink() for x in f.glob("*/*.png")],  # to free the disk
    ],
    ids=["no folder", "empty", "empty classes"],
)
def test_where_the_folder_is_absent_the_log_says_what_stands_for_it(
    encoded, folder, absent, tmp_path, caplog
):
    absent(folder)
    with caplog.at_level("INFO", "diffussm_jax"):
        assert len(set_up(config_of(encoded, folder), tmp_path / "run").source) == 6
    assert (
        "is not at hand, so it is not compared with the 6 images of folder_images_" in caplog.text
    )


def test_other_images_of_a_tfds_data_set_are_seen_too(encoded, data_dir, tmp_path):
    """The latents of digits, after the digits were prepared in another way."""
    flags = "--config.data.name=digits", f"--config.data.data_dir={data_dir}"
    limited = "--config.data.split=train[:8]", f"--config.data.latents_dir={encoded}/latents"
    classes = "--config.data.num_classes=10", "--mode=encode"
    config = config_of(encoded, "", *flags, *limited, *classes)
    encode(config)
    assert len(open_source(config, config.data.split)) == 8
    path = cache_folder(config, config.data.split) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprint"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    for use in (lambda: train(config, tmp_path / "run"), lambda: encode(config)):
        assert "8 images (digits/1.0.0) as then, but others" in error_of(use)


def test_folders_of_one_name_time_and_size_are_prepared_apart(encoded, folder, tmp_path):
    """Archives leave all files one time, and bitmaps have one size."""
    config = config_of(encoded, folder, "--config.data.space=pixels")
    keys = set()
    for seed in (1, 2):
        path = folder / "cat" / "0.bmp"
        write_image(path, seed)
        os.utime(path, (0, 0))
        keys.add(open_source(config, "train").facts["fingerprint"]["data_set"])
    assert len(keys) == 2
