"""References made and read, images scored: each score equals the formula on the pixels."""

import importlib.metadata
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import diffussm_jax
from diffussm_jax.config import from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.evaluate import evaluate
from diffussm_jax.evaluation import classifier
from diffussm_jax.evaluation.metrics import Moments
from diffussm_jax.evaluation.reference import Reference, note_other_images
from diffussm_jax.refstats import refstats
from diffussm_jax.train import train
from tests.conftest import merge
from tests.evaluation.adm import adm_precision_recall

OWN = "tests.evaluation.test_evaluate:user_features"


def user_features(images):
    """Somebody's own extractor: the brightness of rows."""
    return {"pool": images.mean(axis=(2, 3))}


def as_pixels(images):
    return images.reshape(len(images), -1) / 127.5 - 1


def run(config, workdir):
    evaluate(config, workdir)
    name = config.evaluate.name or "default"
    return json.loads((workdir / "evaluation" / f"{name}.json").read_text())


def frechet_by_eigenvalues(x, mu, sigma):
    """As torch-fidelity has it, also for singular covariances: digits have empty corners."""
    ours = np.cov(x, rowvar=False)
    difference = x.mean(axis=0) - mu
    root = np.sqrt(np.linalg.eigvals(ours @ sigma).astype(complex)).real.sum()
    return difference @ difference + np.trace(ours + sigma) - 2 * root


def write_npz(path, images, labels=None):
    np.savez(path, *([images] if labels is None else [images, labels]))
    return str(path)


def changed(images, seed=0):
    """Noisy copies: within the manifold of the real ones or near it."""
    noise = np.random.default_rng(seed).normal(0, 40, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def reference_once(scored_values, tmp_path_factory):
    """A work directory with the reference of the digits' training split."""
    workdir = tmp_path_factory.mktemp("reference")
    config = merge(scored_values, {})
    refstats(config, workdir)
    refstats(config, workdir)  # finds it there
    return workdir


@pytest.fixture
def reference(reference_once, tmp_path):
    """A copy of that work directory, for one test to write into, and the reference's file."""
    workdir = shutil.copytree(reference_once, tmp_path / "reference")
    return workdir, workdir / "evaluation" / "reference-pixels.npz"


def test_a_reference_has_adms_form(reference):
    with np.load(reference[1]) as file:
        assert {"mu", "sigma", "arr_0", "facts"} == set(file.files)
        assert file["arr_0"].shape == (200, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8
        facts = json.loads(str(file["facts"]))
    assert facts["extractor"] == {"features": "pixels"}
    assert facts["data.name"] == "digits"
    assert facts["num"] > 1000


def test_scores_of_an_npz_are_adms(scored_values, reference, digits, tmp_path, monkeypatch):
    """In a clone that is not installed, too."""

    def version(name, of_installed=importlib.metadata.version):
        return of_installed("absent" if name == "diffussm-jax" else name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    workdir, path = reference
    with np.load(path) as file:
        kept, mu, sigma = file["arr_0"], file["mu"], file["sigma"]
    samples = changed(digits[0][:333])
    images = write_npz(tmp_path / "samples.npz", samples)
    changes = {"images": images, "name": "given"}
    result = run(merge(scored_values, {"evaluate": changes}), workdir)
    scores = result["scores"]
    expected = adm_precision_recall(as_pixels(kept), as_pixels(samples))
    assert (scores["precision"], scores["recall"]) == pytest.approx(expected, abs=1e-4)
    frechet = frechet_by_eigenvalues(as_pixels(samples), mu, sigma)
    assert scores["frechet_distance"] == pytest.approx(frechet, rel=1e-4)
    assert result["num_images"] == 333
    assert result["reference"]["num_images"] == 200
    assert len(result["images"]["sha256"]) == 64
    assert result["versions"]["jax"] == jax.__version__
    assert result["versions"]["diffussm-jax"] == diffussm_jax.__version__


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_scores_as_its_npz(scored_values, digits, tmp_path, channels):
    samples = np.repeat(changed(digits[0][:40]), channels, axis=3)
    real = np.repeat(digits[0][100:200], channels, axis=3)
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for index, image in enumerate(samples):
        path = tmp_path / "folder" / "sub" / f"{index:03d}.png"
        Image.fromarray(image[..., 0] if channels == 1 else image).save(path)
    reference = write_npz(tmp_path / "ref.npz", real)
    results = []
    for images in (tmp_path / "folder", write_npz(tmp_path / "x.npz", samples)):
        changes = {"images": str(images), "reference": reference}
        config = merge(scored_values, {"evaluate": changes, "data": {"channels": channels}})
        results.append(run(config, tmp_path / "run"))
    assert results[0]["scores"] == results[1]["scores"]
    y = as_pixels(real)
    mean, covariance = y.mean(axis=0), np.cov(y, rowvar=False)
    expected = frechet_by_eigenvalues(as_pixels(samples), mean, covariance)
    distance = results[0]["scores"]["frechet_distance"]
    assert distance == pytest.approx(expected, rel=1e-3)
    assert results[0]["reference"]["moments_of"] == "arr_0"


def test_the_model_is_scored(scored_values, reference, trained, tmp_path):
    changes = {"evaluate": {"reference": str(reference[1]), "name": "own"}, "sample": {"num": 24}}
    config = merge(scored_values, changes)
    result = run(config, trained)
    assert result["scores"].keys() == {"frechet_distance", "precision", "recall"}
    assert result["images"]["sample"]["steps"] == 4
    files = list((trained / "evaluation" / "default").glob("*.npy"))
    before = [path.stat().st_mtime_ns for path in files]
    assert before
    assert run(config, trained) == result
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_reference_of_other_images_than_the_runs_is_told(reference, trained, tmp_path, caplog):
    workdir = shutil.copytree(trained, tmp_path / "run")
    data = json.loads((workdir / "data.json").read_text())
    facts = {"file": "reference.npz", "of": {"fingerprint": data["fingerprint"]["sha256"]}}
    moments = Moments(np.zeros(2), np.eye(2))
    with caplog.at_level("INFO", "diffussm_jax"):
        note_other_images(Reference(moments, None, None, None, facts), workdir)
        assert not caplog.text
        facts["of"] = {"fingerprint": "0", "source": "folder:pets, 3 images", "split": "train"}
        note_other_images(Reference(moments, None, None, None, facts), workdir)
    assert "reference.npz is of other images (folder:pets, 3 images, split train)" in caplog.text
    with np.load(reference[1]) as file:
        made = json.loads(str(file["facts"]))
    assert made["fingerprint"] == data["fingerprint"]["sha256"]


def test_a_reference_of_another_size_is_refused_before_images_are_drawn(
    scored_values, trained, tmp_path
):
    path = write_npz(tmp_path / "x.npz", np.zeros((9, 16, 16, 1), np.uint8))
    config = merge(scored_values, {"evaluate": {"reference": path, "name": "fast"}})
    with pytest.raises(UserError, match="are 16 x 16 x 1 .*, and those to score 8 x 8 x 1"):
        evaluate(config, trained)
    assert not (trained / "evaluation" / "fast").exists()


@pytest.mark.slow
def test_a_run_is_scored_while_it_trains(scored_values, reference, tmp_path):
    changes = {
        "training": {"evaluate_every": 4, "sample_every": None, "num_steps": 5},
        "evaluate": {"reference": str(reference[1]), "training_num": 12},
    }
    train(merge(scored_values, changes), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [x for x in map(json.loads, lines) if "score_frechet_distance" in x]
    assert [x["step"] for x in events] == [4, 5]
    assert all(0 <= x["score_precision"] <= 1 for x in events)


def test_the_classifier_is_trained_once(scored_values, digits, tmp_path, monkeypatch):
    """The work directory keeps it, and other runs may take it from there."""
    monkeypatch.setattr(classifier, "NUM_STEPS", 2)
    monkeypatch.setattr(classifier, "NUM_EPOCHS", 0)
    path = write_npz(tmp_path / "x.npz", digits[0][:40], digits[1][:40])
    changes = {"features": "classifier", "reference": path, "images": path}
    config = merge(scored_values, {"evaluate": changes})
    first, again = (run(config, tmp_path / "run") for _ in range(2))
    assert first == again
    assert first["extractor"]["accuracy_on"] == "test"
    assert first["scores"]["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert {"inception_score", "class_agreement"} < first["scores"].keys()
    kept = tmp_path / "run" / "evaluation" / classifier.FILE
    given = scored_values | {"evaluate": {"features": "classifier", "weights": str(kept)}}
    params, facts = classifier.find_or_train(from_dict(given), None)
    assert facts.items() <= first["extractor"].items()
    of_another_seed = classifier.train(from_dict(given | {"seed": 1}))
    jax.tree.map(np.testing.assert_array_equal, of_another_seed, params)
    with pytest.raises(UserError, match=r"weights: .* of a run with data.num_classes = 9"):
        classifier.find_or_train(merge(given, {"data": {"num_classes": 9}}), None)
    with pytest.raises(UserError, match=r"weights: there is no file none"):
        classifier.find_or_train(merge(given, {"evaluate": {"weights": "none"}}), None)
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        evaluate(config, tmp_path / "run")


@pytest.mark.slow
def test_the_classifier_knows_digits(scored_values, digits, tmp_path, monkeypatch):
    """Its agreement and its scores tell digits from other classes and from noise."""
    monkeypatch.setattr(classifier, "NUM_STEPS", 150)
    config = merge(scored_values, {"evaluate": {"features": "classifier"}})
    refstats(config, tmp_path / "run")
    images, labels = digits[0][1500:], digits[1][1500:]
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    scores = []
    for pixels, classes in ((images, labels), (images, (labels + 1) % 10), (noise, labels)):
        path = write_npz(tmp_path / "x.npz", pixels, classes)
        changes = {"evaluate": {"features": "classifier", "images": path}}
        scores.append(run(merge(scored_values, changes), tmp_path / "run")["scores"])
    real, wrong, noisy = scores
    assert real["class_agreement"] > 0.9
    assert wrong["class_agreement"] < 0.1
    assert real["frechet_distance"] < 0.1 * noisy["frechet_distance"]
    assert real["inception_score"] > 5
    assert real["precision"] > 0.9
    assert noisy["precision"] < 0.5


def test_somebodys_own_features(scored_values, digits, tmp_path):
    ref = write_npz(tmp_path / "ref.npz", digits[0][:100])
    images = write_npz(tmp_path / "x.npz", digits[0][100:150])
    changes = {"features": OWN, "reference": ref, "images": images}
    result = run(merge(scored_values, {"evaluate": changes}), tmp_path / "run")
    rows = [x.mean(axis=(2, 3)) for x in (digits[0][100:150], digits[0][:100])]
    mean, covariance = rows[1].mean(axis=0), np.cov(rows[1], rowvar=False)
    expected = frechet_by_eigenvalues(rows[0], mean, covariance)
    assert result["scores"]["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    assert result["extractor"] == {"features": OWN}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "none.npz"}, "make it with --mode=refstats"),
        ({"images": "none"}, "there are no images at none"),
        ({"features": "inception"}, "config.evaluate.weights.*convert.inception"),
        ({"features": "vgg"}, "config.evaluate.features must be inception, pixels"),
        ({"features": "math:sinus"}, "config.evaluate.features must be"),
    ],
)
def test_mistakes_are_named(scored_values, reference, changes, message):
    config = merge(scored_values, {"evaluate": {"name": "wrong"} | changes})
    with pytest.raises(UserError, match=message):
        evaluate(config, reference[0])


def test_files_of_another_form_are_named(scored_values, reference, digits, tmp_path):
    def attempt(message, **changes):
        with pytest.raises(UserError, match=message):
            evaluate(merge(scored_values, {"evaluate": changes}), reference[0])

    path = tmp_path / "x.npz"
    np.savez(path, other=np.zeros(3))
    attempt("is not an npz of images", images=str(path))
    attempt("neither moments of pixels features nor images", reference=str(path))
    write_npz(path, digits[0][:4].astype(np.float32))
    attempt("must be uint8 .num, height, width, 1 or 3., got float32", images=str(path))
    path.write_bytes(b"no zip")
    attempt("is not an npz of images", images=str(path))
    attempt("cannot be read", reference=str(path))
    (tmp_path / "empty").mkdir()
    attempt("has no images", images=str(tmp_path / "empty"))
    write_npz(path, digits[0][:3])
    attempt("scores take 4 images or more, got 3", images=str(path))
    write_npz(path, np.repeat(digits[0][:9], 3, axis=3))
    attempt(
        "are 8 x 8 x 1 .height, width, channels., and those to score 8 x 8 x 3", images=str(path)
    )
    for name, size in zip("abcd", ((8, 8), (8, 9), (8, 8), (8, 8))):
        Image.new("L", size).save(tmp_path / "empty" / f"{name}.png")
    attempt("b.png is 8 x 9, and .*a.png is 8 x 8", images=str(tmp_path / "empty"))


def test_another_reference_is_not_overwritten(scored_values, reference):
    config = merge(scored_values, {"evaluate": {"reference_images": 100}})
    with pytest.raises(UserError, match="is another reference"):
        refstats(config, reference[0])


def test_a_reference_of_other_features_is_refused(scored_values, reference):
    changes = {"features": OWN, "reference": str(reference[1])}
    with pytest.raises(UserError, match="was made with features = 'pixels'"):
        evaluate(merge(scored_values, {"evaluate": changes}), reference[0])
