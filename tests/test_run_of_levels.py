"""A model with levels from training to images, and another run that begins with its weights."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffussm_jax
from diffussm_jax.export import export
from diffussm_jax.inspect import inspect
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.train import train
from diffussm_jax.training.state import abstract_state
from diffussm_jax.workdir.init_from import init_from
from tests.conftest import merge
from tests.models.test_levels import FCDM
from tests.saved_runs import assert_equal, restored
from tests.test_inspect import QUICK

pytestmark = pytest.mark.slow


def test_a_run_its_images_its_export_and_a_finetuning(tiny_config, tmp_path, caplog):
    model = {"model": FCDM | {"mixers": ("convnext",), "mixer": "attention"}}
    training = {"num_steps": 4, "sample_every": None, "ema_lengths": ()}
    changes = model | {"training": training, "checkpoint": {"every": 2}, "mesh": {"fsdp": 2}}
    config = merge(tiny_config, changes)
    run = tmp_path / "run"
    train(merge(tiny_config, changes | {"training": training | {"num_steps": 2}}), run)
    train(config, run)
    state = restored(config, run).state
    assert int(state.step) == 4
    assert np.any(np.asarray(state.params["resampling"]["down_1"]["kernel"]) != 0)

    images = diffussm_jax.load(str(run)).sample(classes=[1, 2], steps=2, seed=0)
    assert images.shape[:3] == (2, 8, 8)
    looked = merge(tiny_config, changes | {"inspect": QUICK | {"layers": None}})
    _assert_inspected(looked, run)

    folder = tmp_path / "export"
    export(merge(tiny_config, changes | {"export": {"folder": str(folder)}}), run)
    card = (folder / "README.md").read_text()
    assert re.search(
        r"\| 4 layers in stages of 1, 2, 1, width 16 and more, [\d,]+ parameters", card
    )
    begun = changes | {"training": training | {"init_from": str(folder)}}
    begun = merge(tiny_config, begun | {"data": {"num_classes": 3}})
    mesh = make_mesh(begun.mesh)
    new = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_state(begun, mesh))
    with caplog.at_level("INFO", "diffussm_jax"):
        began = init_from(begun, new, mesh, class_names=["a", "b", "c"])
    assert "level_1.label.table: re-initialised" in caplog.text
    assert began.params["level_1"]["label"]["table"].shape == (4, 32)
    assert_equal(began.params["blocks"], state.ema["blocks"])


def _assert_inspected(config, run):
    """Look at a run of convolutions, and find its layers on their grids in the report and page."""
    inspect(config, run)
    folder = run / "inspect"
    layers = json.loads((folder / "inspect.json").read_text())["layers"]
    assert [layer["stage"] for layer in layers] == [0, 1, 1, 2]
    assert [(layer["grid"], layer["width"]) for layer in layers] == [
        ([8, 8], 16),
        *2 * [([4, 4], 32)],
        ([8, 8], 16),
    ]
    for layer in layers:
        seen = layer["at"][0]["sensitivity"]["of_the_middle_token"]
        assert len(seen) == np.prod(layer["grid"])
        assert max(seen) > 0
    page = (folder / "index.html").read_text()
    assert "stage 1 (4 x 4 tokens of width 32): convnext, convnext" in page
    shown = set(re.findall(r'alt="(\w+)"', page))
    assert shown == {"inputs", "sensitivity_map", "sensitivity_by_layer"}
    assert shown == {path.stem for path in folder.glob("*.png")}
