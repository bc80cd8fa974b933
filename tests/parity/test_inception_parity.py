"""Inception and the scores against torch-fidelity and pytorch-fid, on the same random weights."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.convert.inception import convert
from diffussm_jax.evaluate import evaluate
from diffussm_jax.evaluation.inception import inception, load_inception, weight_shapes

# Theirs: what PyTorch has deprecated, and torchvision without its compiled part.
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

NUM_IMAGES = 24


def random_tensors(torch) -> dict:
    """A file of the published one's names and shapes, whose features stay of order one."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in weight_shapes().items():
        layer, kind = name.rsplit(".", 1)
        if layer == "fc":
            tensors["fc.weight"] = rng.normal(0, 0.5, shape[::-1])
            tensors["fc.bias"] = rng.normal(0, 1, shape[-1])
        elif kind == "kernel":
            fan_in = np.prod(shape[:3])
            kernel = rng.normal(0, (2 / fan_in) ** 0.5, shape)
            tensors[f"{layer}.conv.weight"] = kernel.transpose(3, 2, 0, 1)
        else:
            tensors[f"{layer}.bn.weight"] = rng.uniform(0.8, 1.2, shape)
            tensors[f"{layer}.bn.bias"] = rng.normal(0, 0.1, shape)
            tensors[f"{layer}.bn.running_mean"] = rng.normal(0, 0.1, shape)
            tensors[f"{layer}.bn.running_var"] = rng.uniform(0.8, 1.2, shape)
    tensors = {name: torch.tensor(x).float() for name, x in tensors.items()}
    for name in list(tensors):
        if name.endswith("running_var"):
            count = name.replace("running_var", "num_batches_tracked")
            tensors[count] = torch.tensor(1)
    return tensors


def random_images(seed: int) -> np.ndarray:
    """Smooth colours with noise, 40 x 56: as unlike each other as images are."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(NUM_IMAGES):
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((56, 40), Image.Resampling.BICUBIC)
        noise = rng.normal(0, rng.uniform(0, 60), (40, 56, 3))
        images.append(np.clip(np.asarray(image) + noise, 0, 255))
    return np.stack(images).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The random weights as PyTorch keeps them, and converted."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("weights")
    source, target = folder / "random.pth", folder / "random.safetensors"
    torch.save(random_tensors(torch), source)
    convert(source, target)
    return source, target


@pytest.fixture(scope="module")
def features(files):
    """Ours: a function from uint8 images to NumPy arrays."""
    weights, _ = load_inception(files[1])
    compute = jax.jit(inception)

    def run(images):
        batches = [
            jax.device_get(compute(weights, images[start : start + 8]))
            for start in range(0, len(images), 8)
        ]
        return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

    return run


def to_torch(images):
    import torch

    return torch.tensor(images).permute(0, 3, 1, 2)


def relative(actual, expected) -> float:
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_features_are_torch_fidelitys(files, features):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(files[0]),
    )
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: spatial.append(output[:, :7].permute(0, 2, 3, 1))
    )
    assert torch_fidelity.__version__
    images = random_images(1)[:3]
    pool, logits = network(to_torch(images))
    actual = features(images)
    assert relative(actual["pool"], pool.numpy()) < 1e-5
    assert relative(actual["spatial"], spatial[0].reshape(3, -1).numpy()) < 1e-5
    probabilities = logits.double().softmax(dim=1).numpy()
    assert relative(actual["probabilities"], probabilities) < 1e-4


def test_features_are_pytorch_fids_at_299(files, features, monkeypatch):
    """It resizes and scales pixels in its own way, so it gets them as the network takes them."""
    import torch

    theirs = pytest.importorskip("pytorch_fid.inception")
    tensors = torch.load(files[0], weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: tensors)
    network = theirs.InceptionV3(resize_input=False, normalize_input=False).eval()
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    pool = network((to_torch(images).float() - 128) / 128)[0]
    actual = features(images)["pool"]
    assert relative(actual, pool[:, :, 0, 0].numpy()) < 1e-5


def test_scores_are_torch_fidelitys_end_to_end(files, features, tmp_path):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    samples, reference = (random_images(seed) for seed in (1, 2))
    for name, images in (("samples", samples), ("reference", reference)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index:03d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "reference"),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(files[0]),
        fid=True,
        isc=True,
        isc_splits=1,
        prc=True,
        samples_shuffle=False,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        batch_size=8,
    )
    np.savez(tmp_path / "reference.npz", reference)
    evaluation = {
        "weights": str(files[1]),
        "reference": str(tmp_path / "reference.npz"),
        "images": str(tmp_path / "samples"),
        "batch_size": 8,
    }
    values = {"evaluate": evaluation, "data": {"channels": 3}}
    evaluate(from_dict(values), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "evaluation" / "default.json").read_text())
    assert result["extractor"]["published"] is False
    ours = result["scores"]
    fid = theirs["frechet_inception_distance"]
    assert ours["fid"] == pytest.approx(fid, rel=1e-3)
    score = theirs["inception_score_mean"]
    assert ours["inception_score"] == pytest.approx(score, rel=1e-4)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-4)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-4)
    sfid = plain_frechet(*(features(x)["spatial"] for x in (samples, reference)))
    assert ours["sfid"] == pytest.approx(sfid, rel=1e-4)


def plain_frechet(x, y) -> float:
    """The distance from the images' products: tr (A B)^(1/2) by singular values.

    A = X'X / (n - 1) and B = Y'Y / (m - 1).
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    difference = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((z - z.mean(axis=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return difference @ difference + (x**2).sum() + (y**2).sum() - 2 * root
