"""Inception without PyTorch: its resize, its shapes and its file. tests/parity compares outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffussm_jax.convert.inception import from_pytorch
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.inception import (
    inception,
    load_inception,
    resize_as_tensorflow_1,
    save_inception,
    weight_shapes,
)


@pytest.mark.parametrize("shape", [(8, 8), (40, 56), (512, 300), (299, 299)])
def test_resize_is_tensorflows(shape):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype("f4")
    expected = tf.raw_ops.ResizeBilinear(images=images, size=(299, 299))
    actual = resize_as_tensorflow_1(jnp.asarray(images), 299)
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_the_network_has_the_published_size():
    """Keras counts 21,768,352 trained weights without its classes, of which there are 1008 here."""
    shapes = weight_shapes()
    assert len(shapes) == 2 * 94 + 1
    assert sum(map(np.prod, shapes.values())) == 21_768_352 + 2048 * 1008
    images = jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.uint8)
    weights = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    outputs = jax.eval_shape(inception, weights, images)
    widths = {name: array.shape for name, array in outputs.items()}
    assert widths == {"pool": (2, 2048), "spatial": (2, 17 * 17 * 7), "probabilities": (2, 1008)}


@pytest.mark.slow
def test_batch_norm_is_folded():
    rng = np.random.default_rng(0)
    tensors: dict = {"fc.weight": np.zeros((1008, 2048))}
    for name, shape in weight_shapes().items():
        layer = name.removesuffix(".bias")
        if name == layer:
            continue
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{layer}.bn.{part}"] = rng.uniform(0.5, 2, shape)
        kernel = weight_shapes()[f"{layer}.kernel"]
        tensors[f"{layer}.conv.weight"] = np.zeros((kernel[3], kernel[2], *kernel[:2]))
    layer = "Mixed_6b.branch7x7_2"
    kernel = tensors[f"{layer}.conv.weight"] = rng.normal(size=(128, 128, 1, 7))
    folded = from_pytorch(tensors)
    patch = rng.normal(size=(1, 7, 128))
    bn = {k: tensors[f"{layer}.bn.{k}"] for k in ("weight", "bias")}
    mean, variance = (tensors[f"{layer}.bn.running_{k}"] for k in ("mean", "var"))
    plain = np.einsum("hwi,oihw->o", patch, kernel)
    expected = (plain - mean) / np.sqrt(variance + 1e-3) * bn["weight"] + bn["bias"]
    convolved = np.einsum("hwi,hwio->o", patch, folded[f"{layer}.kernel"])
    np.testing.assert_allclose(convolved + folded[f"{layer}.bias"], expected, rtol=1e-4)
    del tensors[f"{layer}.bn.bias"]
    with pytest.raises(UserError, match="Mixed_6b.branch7x7_2.bn.bias"):
        from_pytorch(tensors)


def test_a_file_keeps_its_checksum(tmp_path):
    path = tmp_path / "inception.safetensors"
    weights = {k: np.zeros(v, np.float32) for k, v in weight_shapes().items()}
    save_inception(path, weights, source_sha256="6726825d")
    read, hashes = load_inception(path)
    assert read.keys() == weights.keys()
    assert hashes["source_sha256"] == "6726825d"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        load_inception(path)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read.*convert.inception"):
        load_inception(tmp_path / "none.safetensors")
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(UserError, match="does not hold Inception's weights"):
        load_inception(path)
