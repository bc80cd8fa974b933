"""A run that goes on with other data than it began with: refused by name, or told."""

import json
import shutil

import pytest

from diffussm_jax.data.pipeline import open_source
from diffussm_jax.train import set_up, train
from diffussm_jax.workdir.data_facts import DATA_FILE
from tests.command_line import read
from tests.conftest import merge
from tests.data.test_sources import write_image
from tests.fuzz.one_line import error_of, files_of


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder of images and a run in pixels that began with it, as if it had saved step 3."""
    root = tmp_path_factory.mktemp("begun")
    for index, name in enumerate(("cat/0", "cat/1", "dog/0", "dog/1")):
        write_image(root / "images" / f"{name}.png", index)
    set_up(*command(root))
    (root / "run" / "checkpoints" / "3").mkdir(parents=True)
    return root


@pytest.fixture
def run(begun, tmp_path):
    """A copy to change, with the files' times."""
    return shutil.copytree(begun, tmp_path / "begun")


def command(root, *more):
    return read(
        "--config=configs/digits.py",
        f"--config.data.name=folder:{root}/images",
        f"--config.data.data_dir={root}/tfds",
        f"--workdir={root}/run",
        "--config.data.image_size=8",
        "--config.data.num_classes=2",
        "--config.data.eval_split=train",
        "--config.model.depth=1",
        "--config.model.width=16",
        "--config.training.batch_size=8",
        *more,
    )


def change_facts(root, **changes):
    """Change data.json, as if the run had begun with other data."""
    path = root / "run" / DATA_FILE
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: x for name, x in facts.items() if x is not None}))


def renamed(root):
    (root / "images" / "cat").rename(root / "images" / "bird")


CHANGES = {
    "added": (lambda r: write_image(r / "images/cat/2.png"), "1 added (cat/2.png)"),
    "removed": (lambda r: (r / "images/dog/1.png").unlink(), "1 removed (dog/1.png)"),
    "changed": (lambda r: write_image(r / "images/dog/1.png", 9), "1 changed (dog/1.png)"),
    "classes renamed": (renamed, "2 added (bird/0.png), 2 removed (cat/0.png)"),
    "class names": (
        lambda r: change_facts(r, class_names=["cat", "cow"]),
        "class 1 was 'cow' and is 'dog'",
    ),
    "more classes": (
        lambda r: change_facts(r, class_names=["cat", "dog", "emu"]),
        "class 2 was 'emu' and is None",
    ),
    "not the images": (
        lambda r: change_facts(
            r, fingerprint={"data_set": "pets/1.0.0", "num_images": 4, "sha256": "0" * 64}
        ),
        "4 as then, but not the same",
    ),
}


QUICK = {"added", "class names"}


@pytest.mark.parametrize(
    "change", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CHANGES]
)
def test_what_changes_labels_or_the_order_is_refused_by_name(run, change):
    make, difference = CHANGES[change]
    make(run)
    config, workdir = command(run, "--config.data.eval_split=train[:50%]")
    before = files_of(run)
    line = error_of(lambda: train(config, workdir))
    assert difference in line
    assert f"--workdir={workdir}" in line
    assert f"in a new --workdir with --config.training.init_from={workdir}" in line
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("name", "then"), [("num_images", 7), ("crop", "the middle"), ("autoencoder.sha256", "0" * 64)]
)
def test_latents_that_were_made_in_another_way_are_refused(run, name, then, monkeypatch):
    """Facts of latents, which an open source of pixels does not have."""
    source = open_source(command(run)[0], "train")
    source.facts |= {name: "as now"}
    monkeypatch.setattr("diffussm_jax.train.open_source", lambda *_: source)
    change_facts(run, **{name: then})
    assert f"{name} was {then!r} and is 'as now'" in error_of(lambda: train(*command(run)))


def test_what_may_differ_is_told_and_data_json_stays(begun, run, caplog):
    change_facts(run, source="folder:images of before")
    before = (run / "run" / DATA_FILE).read_bytes()
    with caplog.at_level("INFO", "diffussm_jax"):
        set_up(*command(run, "--config.data.eval_split=train[:50%]"))
    moved = f"'folder:{begun}/images' at the last start and is 'folder:{run}/images'"
    assert f"data.name was {moved}" in caplog.text
    assert "data.eval_split was 'train' at the last start" in caplog.text
    assert "source was 'folder:images of before' and is 'folder:images, 4 images'" in caplog.text
    assert (run / "run" / DATA_FILE).read_bytes() == before


@pytest.mark.parametrize("lost", [lambda p: p.unlink(), lambda p: p.write_text("{}")])
def test_a_run_that_does_not_say_its_images_goes_on_and_says_them_from_then_on(run, lost, caplog):
    path = run / "run" / DATA_FILE
    whole = path.read_bytes()
    lost(path)
    with caplog.at_level("INFO", "diffussm_jax"):
        set_up(*command(run))
    assert "data.json does not say which images the run began with" in caplog.text
    assert path.read_bytes() == whole


def test_restored_images_are_gone_on_with(run):
    path = run / "images" / "cat" / "1.png"
    data = path.read_bytes()
    path.unlink()
    assert "1 removed" in error_of(lambda: train(*command(run)))
    path.write_bytes(data)
    set_up(*command(run))


def test_a_run_that_saved_nothing_begins_with_what_is_there(run):
    shutil.rmtree(run / "run" / "checkpoints")
    write_image(run / "images/cat/2.png")
    set_up(*command(run))
    assert json.loads((run / "run" / DATA_FILE).read_text())["fingerprint"]["num_images"] == 5


def test_a_run_of_a_tfds_data_set_that_was_prepared_anew(trained, tiny_config, tmp_path):
    """Another order, or other images, under the same name and version."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    facts = json.loads((workdir / DATA_FILE).read_text())
    facts["fingerprint"]["sha256"] = "0" * 64
    (workdir / DATA_FILE).write_text(json.dumps(facts))
    line = error_of(lambda: train(merge(tiny_config, {}), workdir))
    assert "1498 images (digits/1.0.0) as then, but others or in another order" in line
