"""`--mode=inspect`: numbers, pictures and a page of a run, of an export, and of none."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from diffussm_jax.inspect import inspect
from diffussm_jax.inspection.pictures import Axes, curves, heat_maps, mosaic, points, table
from diffussm_jax.workdir.inheritance import TAKES_SSM
from tests.conftest import merge
from tests.fuzz.one_line import error_of

QUICK = {"num": 2, "noise_levels": (1.0,), "layers": (1,), "tokens": 4, "probes": 1}


def test_a_run_and_its_page(trained, tiny_config, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    inspect(merge(tiny_config, {"inspect": QUICK}), run)
    folder = run / "inspect"
    report = json.loads((folder / "inspect.json").read_text())
    assert report["images"].startswith("split 'test' of digits")
    assert [layer["layer"] for layer in report["layers"]] == [1]
    layer = report["layers"][0]
    assert layer["at"][0]["mixing"]["incoming_variance_over_images"] < 1e-12
    shares = [x["share"] for x in layer["filters"]["rows"].values()]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-4)
    assert set(layer["poles"]) == {"before", "after"}
    assert set(layer["error"]) == {"none", "identity", "mean"}
    page = (folder / "index.html").read_text()
    shown = re.findall(r'alt="(\w+)" src="data:image/png;base64,([^"]+)"', page)
    assert {path.stem for path in folder.glob("*.png")} == {name for name, _ in shown}
    for name, data in shown:
        assert (folder / f"{name}.png").read_bytes() == base64.b64decode(data)
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size[0] > 100
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(facts | {TAKES_SSM: True}))
    inspect(merge(tiny_config, {"inspect": QUICK | {"perturb": False}}), run)
    report = json.loads((folder / "inspect.json").read_text())
    assert set(report["layers"][0]["poles"]) == {"after"}
    (folder / "mine.txt").write_text("x")
    line = error_of(lambda: inspect(merge(tiny_config, {"inspect": QUICK}), run))
    assert "holds 'mine.txt'" in line


@pytest.mark.slow
def test_an_export_without_its_data(exported, tiny_config, tmp_path):
    # A data set that is not prepared there.
    changes = {"data": {"name": "cifar10", "data_dir": str(tmp_path)}}
    changes["inspect"] = QUICK | {"perturb": False}
    inspect(merge(tiny_config, changes), exported)
    report = json.loads((exported / "inspect" / "inspect.json").read_text())
    assert report["images"] == "drawn by the model"
    assert "error" not in report["layers"][0]


def test_mistakes_end_in_one_line(tiny_config, trained, tmp_path):
    def line_of(workdir=trained, **options):
        return error_of(lambda: inspect(merge(tiny_config, {"inspect": options}), workdir))

    assert "config.inspect.layers must be below model.depth = 2" in line_of(layers=(2,))
    assert "config.inspect.window must be odd" in line_of(window=2)
    assert "config.inspect.perturb must be True" in line_of(perturb=False, distance=True)
    assert "config.inspect.num must be at most 299" in line_of(num=1000)
    assert "holds no run" in line_of(tmp_path / "nowhere")


@pytest.mark.slow
def test_scores_without_mixing(trained, tiny_config, tmp_path):
    from diffussm_jax.refstats import refstats

    run = shutil.copytree(trained, tmp_path / "run")
    evaluate = {"features": "pixels", "reference_images": 200, "training_num": 200}
    changes = {"evaluate": evaluate, "inspect": QUICK | {"distance": True}}
    changes["sample"] = {"dtype": "bfloat16"}  # another program than the run's
    line = error_of(lambda: inspect(merge(tiny_config, changes), run))
    assert "make it with --mode=refstats" in line
    refstats(merge(tiny_config, changes), run)
    inspect(merge(tiny_config, changes), run)
    report = json.loads((run / "inspect" / "inspect.json").read_text())
    scores = report["layers"][0]["scores"]
    assert set(scores) == {"none", "identity", "mean"}
    assert all(x["score_frechet_distance"] > 0 for x in scores.values())


def test_heat_maps_lie_side_by_side_and_apart():
    maps = np.arange(2 * 3 * 2 * 4, dtype=float).reshape(2, 3, 2, 4)
    tiles = mosaic(maps)
    assert tiles.shape == (2 * 3 - 1, 3 * 5 - 1)
    for row, column in np.ndindex(2, 3):
        tile = tiles[3 * row :, 5 * column :][:2, :4]
        np.testing.assert_array_equal(tile, maps[row, column])
    assert np.isnan(tiles[2]).all()
    assert np.isnan(tiles[:, [4, 9]]).all()
    names = {"rows": ["a", "b"], "columns": ["c", "d", "e"]}
    of_all, each = (np.asarray(heat_maps(maps, **names, each=x)) for x in (False, True))
    assert of_all.shape[2] == each.shape[2] == 3
    assert heat_maps(0 * maps, **names).size  # of zeros alone


def test_curves_may_have_one_value_or_none_that_a_logarithm_can_show():
    axes = Axes("x", "y", is_y_log=True)
    line = curves({"x": ([1, 2, 3], [1e-3, 1, 1e3])}, axes, levels={1: 1, 2: 3})
    assert line.size == (400, 260)
    assert table([[line, line], [line]]).size == (800, 520)
    assert curves({"x": ([1], [2.0]), "z": ([1], [0.0])}, axes).size == line.size
    assert points({"x": np.zeros((0, 2)), "z": np.ones((5000, 2))}, axes).size == line.size
