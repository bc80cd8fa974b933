"""What a run writes must not lie among the images that it reads."""

import pytest

from diffussm_jax.data.builders import make_builder
from diffussm_jax.main import MODES
from tests.command_line import read
from tests.data.test_sources import write_image
from tests.fuzz.one_line import error_of


@pytest.fixture
def images(tmp_path):
    for name in ("cat/0.png", "dog/0.png"):
        write_image(tmp_path / "images" / name)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "runs").mkdir()
    (tmp_path / "images" / "runs").symlink_to(tmp_path / "runs")
    return tmp_path / "images"


def arguments(images, *more):
    return (
        "--config=configs/folder256.py",
        f"--config.data.name=folder:{images}",
        f"--workdir={images.parent}/run",
        *more,
    )


@pytest.mark.parametrize("where", ["images", "images/run", "images/cat/a/b", "link/run", "runs/a"])
@pytest.mark.parametrize(
    "flag",
    [
        "--workdir",
        "--config.data.data_dir",
        "--config.data.latents_dir",
        "--config.export.folder",
        "--config.compilation_cache_dir",
    ],
)
def test_a_folder_to_write_to_lies_outside_the_images(images, flag, where):
    path = images.parent / where
    line = error_of(lambda: read(*arguments(images, f"{flag}={path}")))
    assert f"{flag.replace('--config', 'config')}={path} lies in the folder of images" in line


@pytest.mark.parametrize("mode", MODES)
def test_it_is_so_in_every_mode(images, mode):
    flags = f"--mode={mode}", f"--workdir={images}/run"
    assert "--workdir=" in error_of(lambda: read(*arguments(images, *flags)))


def test_the_default_folder_of_prepared_data_lies_outside_too(images, monkeypatch):
    (images / "runs").unlink()
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(images / "tfds"))
    config, _ = read(*arguments(images))
    assert "config.data.data_dir=" in error_of(lambda: make_builder(config.data))


def test_a_run_does_not_learn_from_its_own_samples(images):
    samples = images.parent / "run" / "samples" / "images"
    flag = f"--config.data.name=folder:{samples}"
    assert "its own samples" in error_of(lambda: read(*arguments(images, flag)))


def test_scored_images_do_not_hold_the_run(images):
    run = images.parent / "run"
    flags = "--mode=evaluate", f"--config.evaluate.images={run}"
    assert "--workdir=" in error_of(lambda: read(*arguments(images, *flags)))
    read(*arguments(images, f"--config.evaluate.images={run}/samples/images"))


@pytest.mark.parametrize("where", ["run", "images2/run", "images/../run"])
def test_folders_beside_the_images_are_free(images, where):
    path = images.parent / where
    flags = f"--workdir={path}", f"--config.data.data_dir={path}/tfds"
    _, workdir = read(*arguments(images, *flags))
    assert workdir == path


@pytest.mark.parametrize(
    ("images", "workdir", "is_refused"),
    [
        ("gs://bucket/images", "gs://bucket/images/run", True),
        ("gs://bucket/images", "gs://bucket/runs/images", False),
        ("gs://bucket/images", "gs://other/images/run", False),
        ("images", "gs://bucket/images/run", False),
    ],
)
def test_folders_of_a_bucket_lie_in_each_other_too(images, workdir, is_refused):
    words = (
        "--config=configs/folder256.py",
        f"--config.data.name=folder:{images}",
        f"--workdir={workdir}",
    )
    line = error_of(lambda: read(*words)) if is_refused else None
    if is_refused:
        assert f"--workdir={workdir} lies in the folder of images {images}: " in line
    else:
        assert str(read(*words)[1]) == workdir
