"""Nothing is written among anybody else's files, whichever mode is asked to."""

import json
import os

import pytest

from diffussm_jax.config import from_dict, to_json
from diffussm_jax.evaluate import evaluate
from diffussm_jax.export import export
from diffussm_jax.plan import plan
from diffussm_jax.refstats import refstats
from diffussm_jax.sample import sample
from diffussm_jax.train import train
from diffussm_jax.workdir.lock import held
from diffussm_jax.workdir.ownership import claimed, require_ours
from tests.conftest import merge
from tests.fuzz.one_line import error_of, files_of

# Folders that hold something, by the name that the error must give.
FOLDERS = {
    "pictures": ({"cat.png": "x", ".DS_Store": ""}, "holds 'cat.png'"),
    "a checkout": ({".git/HEAD": "ref", "README.md": "x"}, "holds '.git'"),
    "latents": ({"manifest.json": "{}", "moments-00000-of-00001.array_record": ""}, "manifest"),
    "another program's run": ({"config.json": '{"model_type": "bert"}'}, "config.json is damaged"),
    "checkpoints alone": ({"checkpoints/100/model.pt": "x"}, "holds 'checkpoints'"),
    "the folder above runs": ({"digits/config.json": "{}"}, "holds 'digits'"),
}


@pytest.fixture(params=FOLDERS)
def somebodys(request, tmp_path):
    files, message = FOLDERS[request.param]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path, message


@pytest.mark.parametrize("mode", [train, evaluate, refstats, plan], ids=lambda x: x.__name__)
def test_a_folder_of_other_files_is_refused_before_anything_is_written(
    mode, somebodys, tiny_config
):
    folder, message = somebodys
    before = files_of(folder)
    given = {"evaluate": {"images": str(folder), "features": "pixels"}}
    assert message in error_of(lambda: mode(merge(tiny_config, given), folder))
    assert files_of(folder) == before


def test_an_export_is_not_written_among_other_files(somebodys, trained, tiny_config):
    folder, _ = somebodys
    (folder / "model.safetensors").write_text("of another program")
    before = files_of(folder)
    config = merge(tiny_config, {"export": {"folder": str(folder)}})
    assert f"config.export.folder: {folder} holds " in error_of(lambda: export(config, trained))
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("mode", "folder", "file"),
    [
        (train, ".", ".lock"),
        (sample, "samples/parts", ".lock"),
        (evaluate, "evaluation", ".default.json.lock"),
        (refstats, "evaluation", ".reference-pixels.npz.lock"),
        (export, "export", ".lock"),
    ],
    ids=["train", "sample", "evaluate", "refstats", "export"],
)
def test_of_two_jobs_of_the_same_outputs_the_second_is_refused(
    mode, folder, file, trained, tiny_config
):
    config = merge(tiny_config, {"evaluate": {"features": "pixels"}})
    with held(trained / folder, named="it", file=file):
        assert f"in use by process {os.getpid()} on " in error_of(lambda: mode(config, trained))


def test_an_export_is_no_work_directory_to_train_in(exported, tiny_config):
    before = files_of(exported)
    line = error_of(lambda: train(from_dict(tiny_config), exported))
    assert f"--workdir={exported} is an export" in line
    assert files_of(exported) == before
    require_ours(exported)  # its samples and scores may lie there


def test_what_is_nobodys_or_of_another_mode_is_no_obstacle(tmp_path):
    (tmp_path / "evaluation").mkdir()
    for name in (
        "plan.json",
        "search.json",
        "Thumbs.db",
        "._run",
        "train.log",
        ".config.json",
        ".lock",
        ".lock.0f",
    ):
        (tmp_path / name).write_text("")
    with claimed(tmp_path):
        pass
    (tmp_path / "config.json").write_text(to_json(from_dict({})))
    (tmp_path / "notes.txt").write_text("once it is a run, its owner may add to it")
    with claimed(tmp_path):
        pass


def test_pictures_among_the_samples_are_not_replaced(trained, tiny_config):
    mine = trained / "samples" / "images" / "cat.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    config = merge(tiny_config, {"sample": {"outputs": ("png",)}})
    assert "images holds 'cat.png'" in error_of(lambda: sample(config, trained))
    assert list(mine.parent.iterdir()) == [mine]


def test_an_export_goes_into_its_own_folder_again(trained, tiny_config, tmp_path, caplog):
    """Whatever modes, desktops and its publisher have put there."""
    config = merge(tiny_config, {"export": {"folder": str(tmp_path / "weights")}})
    export(config, trained)
    for name in ("evaluation/default.json", "samples/samples.png", ".DS_Store", "._model"):
        (tmp_path / "weights" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "weights" / name).write_text("{}")
    card = tmp_path / "weights" / "README.md"
    card.write_text("Scores, licence and limits.")
    export(config, trained)
    assert card.read_text() == "Scores, licence and limits."
    assert "6 steps of 16 images" in card.with_name("README.new.md").read_text()
    assert f"{card} was edited and is kept" in caplog.text
    assert "evaluation and samples in" in caplog.text
    assert json.loads((tmp_path / "weights" / "evaluation" / "default.json").read_text()) == {}
