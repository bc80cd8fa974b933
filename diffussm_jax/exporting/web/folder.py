"""The files of a page, and the folder that holds them."""

import json
from importlib import resources
from typing import Any

from diffussm_jax.config import Config
from diffussm_jax.data.names import portable_name
from diffussm_jax.exporting.web.graph import model_graph
from diffussm_jax.exporting.web.recipe import require_drawable, step_counts, steps
from diffussm_jax.exporting.web.runtime import runtime_files
from diffussm_jax.workdir.model_card import TITLES
from diffussm_jax.workdir.weights import Weights

SOURCES = ("index.html", "page.css", "page.js", "worker.js", "sampler.js")
GRAPH_FILE, FACTS_FILE, RUNTIME_FOLDER = "model.onnx", "page.json", "runtime"
NUM_IMAGES = 16  # that a page draws at once


def page_files(weights: Weights, config: Config) -> dict[str, bytes]:
    """The files of a page by their names in its folder.

    Args:
        weights: the parameters are on the host.
        config: of the run, with the sample section that the page begins with.

    Raises:
        UserError: the page cannot draw so, or a package that makes it is missing.
    """
    require_drawable(config)
    graph = model_graph(config, weights.params, num_images=NUM_IMAGES)
    sources = resources.files("diffussm_jax.exporting.web").joinpath("page")
    runtime = {f"{RUNTIME_FOLDER}/{name}": data for name, data in runtime_files().items()}
    return {
        **{name: sources.joinpath(name).read_bytes() for name in SOURCES},
        FACTS_FILE: json.dumps(page_facts(weights, config)).encode(),
        GRAPH_FILE: graph,
        **runtime,
    }


def page_facts(weights: Weights, config: Config) -> dict[str, Any]:
    """What the page's scripts read: the model, its classes, and the steps of each way to sample."""
    num_classes = config.data.num_classes
    data = portable_name(config.data.name).removeprefix("folder:")
    return {
        "name": f"{TITLES[config.model.name]} on {data}",
        "trainedSteps": weights.step,
        "shape": config.grid,
        "numImages": NUM_IMAGES,
        "numTold": len(config.conditions),
        "classes": (weights.class_names or list(map(str, range(num_classes)))) or None,
        "isToldScale": config.guidance.max_scale is not None,
        "maxScale": config.guidance.max_scale,
        "scale": config.sample.cfg_scale,
        "clip": is_clipped(config),
        "numSteps": config.sample.steps,
        "sampler": config.sample.sampler,
        "paths": {
            num: [step._asdict() for step in steps(config, num)] for num in step_counts(config)
        },
    }


def is_clipped(config: Config) -> bool:
    """Whether each step clips its estimate of the image; a mean flow's has none to clip."""
    return config.diffusion.clip_x0 and config.diffusion.process != "mean_flow"
