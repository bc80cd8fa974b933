"""The model.py of an export in PyTorch against JAX: networks, and images from the same noise."""

import functools
import importlib.util
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.diffusion.samplers import image_noise
from diffussm_jax.exporting.model_file import model_file
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.training.state import abstract_model, init_params
from diffussm_jax.workdir.exports import write_export
from diffussm_jax.workdir.weights import load_export
from tests.conftest import TINY_MODEL

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

MODELS = {
    "diffussm": {},
    "diffussm_gate": {"m": 4, "gate": True, "share_ssm": True, "dt_rate": 0.5},
    "diffussm_forward": {"m": 1, "direction": "forward", "position": "none"},
    "attention": {"name": "dit"},
    "s4d": {"name": "dit", "mixer": "s4d", "dt_rate": (0.5, 0.25), "patch_size": 1},
    "s4d_shared": {"name": "dit", "mixer": "s4d", "share_ssm": True, "dt_rate": (0.5, 0.25)},
    "s4d_columns": {"name": "dit", "mixer": "s4d", "scan_orders": "columns"},
    "delta_conv": {"name": "dit", "mixer": "delta_conv"},
    "delta_conv_released": {"name": "dit", "mixer": "delta_conv", "delta_gate": "released"},
    "delta_conv_sigmoid": {"name": "dit", "mixer": "delta_conv", "delta_gate": "sigmoid"},
    "convnext": {"name": "dit", "mixer": "convnext"},
    "fcdm_block": {"name": "dit", "mixer": "convnext", "modulate_convolved": True, "mlp_ratio": 0},
    "dico": {"name": "dit", "mixer": "dico", "mlp_ratio": 2, "position_scale": (0.5, 2.0)},
    "pattern": {"name": "dit", "mixers": ("s4d", "attention"), "depth": 4},
    "levels": {"name": "dit", "mixer": "convnext", "levels": (2, 1, 2)},
    "wide_levels": {"name": "dit", "mixer": "dico", "levels": (1, 1, 1), "last_stage": "wide"},
    "levels_of_s4d": {"name": "dit", "mixers": ("s4d", "dico"), "levels": (2, 2, 2)},
}
DIT = {"num_heads": 4, "patch_size": 2}
FLOW = {"process": "flow", "variance": "none", "prediction": "v"}
MEAN_FLOW = {**FLOW, "process": "mean_flow"}


def config_of(model, diffusion=None, guidance=None, **sample):
    sizes = DIT if model.get("name") == "dit" else {}
    data = {"image_size": (8, 16) if "levels" in model else (4, 8), "channels": 3}
    values = {
        "model": TINY_MODEL | sizes | model,
        "diffusion": {"num_steps": 50} | (diffusion or {}),
        "guidance": guidance or {},
        "data": data | {"num_classes": 5},
        "sample": {"sampler": "ddim", "steps": 10} | sample,
        "export": {"format": "torch"},
    }
    return from_dict(values)


@pytest.fixture
def written(tmp_path):
    """What writes the export of a model whose parameters are all random, and loads its model.py."""

    def write(config):
        params = jax.jit(lambda: init_params(config))()
        rng = np.random.default_rng(0)
        tensors = {
            name: np.float32(x + 0.1 * rng.normal(size=x.shape))
            for name, x in flatten_dict(params, sep=".").items()
        }
        facts = {"class_names": list("abcde")}
        write_export(tmp_path, config, facts, tensors, 7, {"model.py": model_file(config)})
        spec = importlib.util.spec_from_file_location("model", tmp_path / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return write


@pytest.mark.parametrize("form", ["fft", "recurrence"])
@pytest.mark.parametrize("name", MODELS)
def test_networks_are_equal(name, form, written, tmp_path):
    config = config_of(MODELS[name])
    if form == "recurrence" and not config.model.has_ssm:
        pytest.skip("it has no S4D")
    theirs = written(config).load(s4d=form)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, *config.grid)).astype(np.float32)
    t, y = np.array([0, 7, 49], np.int32), np.array([1, 4, 5], np.int32)
    graphdef, _ = abstract_model(config)
    params = jax.tree.map(jnp.asarray, load_export(tmp_path).params)
    ours = nnx.merge(graphdef, params)
    expected = np.asarray(jax.jit(ours)(*map(jnp.asarray, (x, t, y))))
    inputs = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)[:, None], torch.tensor(y)
    for model in (theirs, theirs.train()):
        output = model(*inputs).permute(0, 2, 3, 1).detach().numpy()
        np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("diffusion", "sample"),
    [
        ({}, {}),
        ({}, {"sampler": "ddim", "eta": 0.7, "cfg_scale": 1.5, "cfg_channels": 2}),
        ({}, {"sampler": "ddpm", "cfg_scale": 2.0, "cfg_interval": (0.3, 3.0)}),
        ({"variance": "fixed_small", "schedule": "cosine"}, {"sampler": "ddpm", "steps": 50}),
        ({"variance": "fixed_large", "prediction": "v", "clip_x0": True}, {"sampler": "ddpm"}),
        ({"variance": "fixed_large", "prediction": "x0"}, {"sampler": "dpm_solver++"}),
        ({"prediction": "v"}, {"sampler": "heun", "steps": 7}),
        ({"prediction": "v"}, {"sampler": "ddim", "steps": 1}),
        (FLOW, {"sampler": "euler", "cfg_scale": 1.5, "cfg_interval": (0.3, 3.0)}),
        (FLOW | {"time_sampling": "shifted", "time_shift": 3.0}, {"sampler": "heun"}),
        (FLOW | {"prediction": "x0", "clip_x0": True}, {"sampler": "euler_maruyama"}),
        (FLOW | {"prediction": "eps"}, {"sampler": "euler_maruyama", "sde": "decreasing"}),
        (MEAN_FLOW, {"sampler": "euler", "steps": 1}),
        (MEAN_FLOW, {"sampler": "euler", "steps": 3, "cfg_scale": 1.5}),
    ],
)
def test_images_of_the_same_noise_are_equal(diffusion, sample, written, tmp_path):
    config = config_of({}, diffusion, **sample)
    require_same_images(config, written(config), tmp_path)


def test_guidance_by_a_told_scale_is_equal(written, tmp_path):
    config = config_of({}, MEAN_FLOW, {"max_scale": 4.0}, sampler="euler", steps=2, cfg_scale=3.0)
    require_same_images(config, written(config), tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_images_of_each_network_are_equal(name, written, tmp_path):
    config = config_of(MODELS[name], {"prediction": "v"}, cfg_scale=1.5)
    require_same_images(config, written(config), tmp_path)


def require_same_images(config, module, folder):
    """Images of a random model have any range: it is what the levels of uint8 divide here."""
    classes, seed, mesh = [0, 4, 2], 3, make_mesh(devices=jax.devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    draw = sampling_program(config, graphdef, mesh, config.sample)
    indices, params = jnp.arange(3), load_export(folder).params
    expected = np.asarray(draw(params, None, seed, indices, jnp.array(classes)))
    keys = image_keys(seed, indices)

    def noise(step):
        return torch.tensor(np.array(image_noise(keys, step, config.grid))).permute(0, 3, 1, 2)

    images = module.load().sample(classes, noise=noise).permute(0, 2, 3, 1).numpy()
    images, expected = (x / np.abs(expected).max() for x in (images, expected))
    images, expected = to_uint8(images).astype(int), to_uint8(expected).astype(int)
    assert ((expected > 0) & (expected < 255)).mean() > 0.5
    assert np.abs(images - expected).max() <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num 0", "num must be above 0"),
        ("--seed 9999999999", "seed in 0 .. 2"),
        ("--classes 5", "classes must be in 0 .. 4, got [5]"),
        ("--sampler euler", "sampler must be one of ddpm"),
        ("--device cuda:99", "--device cuda:99: "),
        ("--out drawn.jpg", "--out must end in .png or .pt"),
        ("--num 1 --steps 1 --out none/drawn.png", "No such file or directory: 'none/drawn.png'"),
    ],
)
def test_a_mistake_ends_its_command_in_one_line(words, message, written, capsys, monkeypatch):
    module = written(config_of({}))
    monkeypatch.setattr(sys, "argv", ["model.py", *words.split()])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_it_runs_where_there_is_pytorch_alone(written, tmp_path):
    """In an environment of its own, without NumPy, from a folder that has three files."""
    written(config_of(MODELS["pattern"], {"prediction": "v"}))
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in ("model.py", "config.json", "model.safetensors"):
        shutil.copy(tmp_path / name, folder)
    python = tmp_path / "venv" / "bin" / "python"
    run = functools.partial(subprocess.run, check=True, cwd=folder, capture_output=True, text=True)
    run([sys.executable, "-m", "venv", python.parents[1]])
    run([python, "-m", "pip", "install", "--quiet", f"torch=={torch.__version__.split('+')[0]}"])
    listed = run([python, "-m", "pip", "list", "--format=freeze"]).stdout
    assert "torch==" in listed
    assert not any(f"\n{name}==" in listed for name in ("numpy", "pillow", "safetensors", "jax"))
    command = [python, "model.py", "--num", "6", "--classes", "0,1", "--steps", "3"]
    run([*command, "--seed", "5", "--out", "one.png"])
    run([*command, "--seed", "5", "--s4d", "recurrence", "--out", "two.png"])
    one, two = (
        np.asarray(Image.open(folder / name)).astype(int) for name in ("one.png", "two.png")
    )
    assert one.shape == (2 * 4, 3 * 8, 3)
    assert np.abs(one - two).max() <= 1
    assert np.ptp(one) > 100
