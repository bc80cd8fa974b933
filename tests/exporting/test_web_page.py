"""The page in Chromium: its images are those of JAX, and its controls do what they say."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import diffussm_jax
from diffussm_jax.diffusion.samplers import START, image_noise
from diffussm_jax.export import export
from diffussm_jax.exporting.web.folder import NUM_IMAGES
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.workdir.exports import write_export
from tests.conftest import merge
from tests.exporting.chromium import browser, served
from tests.models.tiny import randomized

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]

CLASSES = [i % 10 for i in range(NUM_IMAGES)]
DRAW = """
const [request, done] = arguments;
import("./page.js").then((page) => page.draw(request)).then(
  (pixels) => done(Array.from(pixels)), (error) => done(String(error)));
"""
SECTIONS = {
    "digits": {
        "diffusion": {"num_steps": 200, "prediction": "v", "schedule": "cosine", "clip_x0": True}
        | {"variance": "fixed_small"},
        "sample": {"sampler": "ddim", "steps": 10, "cfg_scale": 1.5},
    },
    "mean_flow": {
        "diffusion": {"process": "mean_flow", "variance": "none", "prediction": "v"},
        "sample": {"sampler": "euler", "steps": 1, "cfg_scale": 1.0},
    },
}


@pytest.fixture(scope="module", params=SECTIONS)
def run(request, tiny_config, tmp_path_factory):
    """Weights that draw something, and the page of them."""
    folder = tmp_path_factory.mktemp(request.param)
    to_web = {"export": {"format": "web", "folder": str(folder / "page")}}
    config = merge(tiny_config, SECTIONS[request.param] | to_web)
    _, params = randomized(config)
    tensors = {name: np.asarray(x) for name, x in flatten_dict(params, sep=".").items()}
    names = {"class_names": [str(i) for i in range(10)]}
    write_export(folder / "weights", config, names, tensors, 1)
    export(config, folder / "weights")
    return folder


@pytest.fixture(scope="module")
def chromium():
    with browser("--window-size=1000,800") as driver:
        yield driver


@pytest.fixture
def page(run, chromium):
    """The page, after it has drawn by itself."""
    with served(run / "page/web") as address:
        for log in ("browser", "performance"):
            chromium.get_log(log)  # forgets what other pages left
        chromium.get(f"{address}/?device=cpu")
        wait_until_drawn(chromium)
        yield chromium


def wait_until_drawn(driver):
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(driver, 100, poll_frequency=0.1)
    status = waiting.until(lambda driver: ended(driver.find_element("id", "status").text))
    assert "not work" not in status, status
    return status


def ended(status):
    return status if " images in " in status or "not work" in status else None


def draw(driver, **request):
    """The pixels that the page draws, uint8 [b h w c]."""
    result = driver.execute_async_script(DRAW, request)
    assert isinstance(result, list), result
    return np.array(result, np.uint8).reshape(NUM_IMAGES, 8, 8, 1)


def fewest_steps(run):
    facts = json.loads((run / "page/web/page.json").read_text())
    return min(map(int, facts["paths"]))


def in_jax(run, **options):
    """The images of seed 5 in JAX, and their noise."""
    model = diffussm_jax.load(run / "weights")
    noise = image_noise(image_keys(5, jnp.arange(NUM_IMAGES)), START, (8, 8, 1))
    images = model.sample(classes=CLASSES, seed=5, **options)
    return images, np.asarray(noise).reshape(-1).tolist()


def test_its_images_are_those_of_jax(run, page):
    scale = 2.5 if fewest_steps(run) > 1 else 1.0
    images, noise = in_jax(run, steps=2 * fewest_steps(run), cfg_scale=scale)
    options = {"numSteps": 2 * fewest_steps(run), "scale": scale}
    ours = draw(page, noise=noise, labels=CLASSES, **options)
    assert images.std() > 20  # they are images of something
    assert np.abs(ours.astype(int) - images).max() <= 2


def test_the_class_the_seed_and_the_steps_do_what_they_say(page, run):
    options = {"labels": [3] * NUM_IMAGES, "numSteps": fewest_steps(run), "scale": 1}
    first = draw(page, seed=7, **options)
    np.testing.assert_array_equal(draw(page, seed=7, **options), first)
    assert (draw(page, seed=8, **options) != first).any()
    other = draw(page, seed=7, **options | {"labels": [3] * 15 + [4]})
    np.testing.assert_array_equal(other[:15], first[:15])
    assert (other[15] != first[15]).any()
    assert len({image.tobytes() for image in first}) == NUM_IMAGES  # each has its own noise


def test_its_controls_draw(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    canvas = "return document.getElementById('images').toDataURL()"
    before = page.execute_script(canvas)
    Select(page.find_element("name", "label")).select_by_visible_text("7")
    Select(page.find_element("name", "steps")).select_by_index(0)
    seed = page.find_element("name", "seed")
    seed.clear()
    page.execute_script("document.getElementById('status').textContent = ''")
    seed.send_keys("123", Keys.ENTER)  # without a pointer
    status = wait_until_drawn(page)
    assert "on the CPU" in status
    assert page.execute_script(canvas) != before
    progress = page.find_element("id", "progress")
    assert progress.get_property("value") == progress.get_property("max") > 0


def test_nothing_is_loaded_from_elsewhere_and_nothing_fails(page):
    entries = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [
        x["params"]["request"]["url"] for x in entries if x["method"] == "Network.requestWillBeSent"
    ]
    here = page.current_url.split("?")[0]
    assert sent
    assert not [url for url in sent if not url.startswith((here, "data:", "blob:" + here))]
    problems = [x for x in page.get_log("browser") if x["level"] != "INFO"]
    assert not problems


@pytest.mark.parametrize("run", ["mean_flow"], indirect=True)
def test_the_network_runs_on_webgpu_too(run):
    """By Chromium's WebGPU in software, which takes seconds for a call."""
    flags = "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"
    with served(run / "page/web") as address, browser(*flags) as driver:
        driver.get(address)
        assert "on the WebGPU" in wait_until_drawn(driver)
        images, noise = in_jax(run, steps=fewest_steps(run), cfg_scale=1.0)
        ours = draw(driver, noise=noise, labels=CLASSES, numSteps=fewest_steps(run), scale=1)
        assert np.abs(ours.astype(int) - images).max() <= 2


def test_a_model_that_is_not_there_is_named(run, chromium, tmp_path):
    folder = shutil.copytree(run / "page/web", tmp_path / "web")
    (folder / "model.onnx").unlink()
    with served(folder) as address:
        chromium.get(f"{address}/?device=cpu")
        with pytest.raises(AssertionError, match="not work: model.onnx cannot be read: 404"):
            wait_until_drawn(chromium)
