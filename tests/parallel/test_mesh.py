"""Every arrangement of eight devices computes what one does; what does not fit is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import MeshConfig, from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.parallel import mesh as mesh_lib
from diffussm_jax.parallel.feed import prefetch, shard_batch, split_rows
from diffussm_jax.parallel.mesh import check_divides, make_mesh, state_shardings
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.training.step import make_train_step
from tests.conftest import merge
from tests.models.tiny import loss_with_tangent, randomized

ARRANGEMENTS = [
    (data, fsdp, 8 // data // fsdp)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]
MARKS = {
    (2, 2, 2): (),
    (1, 8, 1): pytest.mark.slow,
    (8, 1, 1): pytest.mark.slow,
    (1, 1, 8): pytest.mark.slow,
}
NIGHTLY = (pytest.mark.slow, pytest.mark.nightly)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "mean": rng.normal(size=(16, 8, 8, 4)).astype(np.float16),
        "std": rng.uniform(size=(16, 8, 8, 4)).astype(np.float16),
        "label": rng.integers(0, 10, 16).astype(np.int32),
    }


def one_step(tiny_config, batch, mesh, *, optimizer="adamw", **training):
    """A step from random parameters: metrics, the optimizer's moments and the state.

    Adam's first moment is a tenth of the gradient, and Muon's momentum is the gradient.
    """
    data = {"space": "latents", "image_size": 64, "channels": 3}
    config = merge(
        tiny_config, {"data": data, "training": training, "optimizer": {"name": optimizer}}
    )
    optimizer = make_optimizer(config, mesh)
    graphdef, _ = abstract_model(config, mesh)
    abstract = abstract_state(config, mesh)
    places = jax.tree.map(lambda a: a.sharding, abstract)

    @functools.partial(jax.jit, out_shardings=places)
    def init():
        state = init_state(config, optimizer)
        leaves, structure = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.key(7), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
        state.params.update(jax.tree.unflatten(structure, noisy))
        return state

    step = make_train_step(config, graphdef, optimizer)
    state, metrics = jax.jit(step, out_shardings=(places, None))(
        init(), shard_batch(mesh, batch, batch_size=16)
    )
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    return jax.device_get(metrics), jax.device_get(moments), state


@pytest.fixture(scope="module")
def expected(tiny_config, batch):
    return one_step(tiny_config, batch, make_mesh(devices=jax.devices()[:1]))


def assert_same(actual, expected):
    for name, value in expected[0].items():
        np.testing.assert_allclose(actual[0][name], value, rtol=1e-5)
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        scale = np.abs(theirs).max() + 1e-12
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-5)


@pytest.mark.parametrize(
    "sizes", [pytest.param(a, marks=MARKS.get(a, NIGHTLY)) for a in ARRANGEMENTS], ids=str
)
def test_eight_devices_equal_one(tiny_config, batch, expected, sizes, monkeypatch):
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    actual = one_step(tiny_config, batch, make_mesh(MeshConfig(*sizes)))
    assert_same(actual, expected)
    kernel = actual[2].ema["blocks"]["w0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // sizes[1], 16)


@pytest.mark.slow
def test_muon_on_eight_devices_equals_one(tiny_config, batch, monkeypatch):
    """The momentum is split as its kernels are, and three layers fit on two devices unevenly."""
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    config = tiny_config | {"model": tiny_config["model"] | {"depth": 3}}
    one, eight = (
        one_step(config, batch, mesh, optimizer="muon")
        for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2)))
    )
    assert_same(eight, one)
    rate = tiny_config["optimizer"]["learning_rate"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.01 * rate),
        *(jax.device_get(state.params["blocks"]["w2"]) for *_, state in (eight, one)),
    )
    (momentum,) = (x for x in jax.tree.leaves(eight[2].optimizer) if x.shape == (3, 32, 32))
    assert momentum.sharding.shard_shape(momentum.shape) == (3, 16, 32)


@pytest.mark.slow
def test_convolutional_mixers_on_eight_devices_equal_those_on_one(tiny_config, batch, monkeypatch):
    """Kernels are split over channels, and halos come from the other half of an image's rows."""
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    model = {"name": "dit", "num_heads": 4, "mixers": ("delta_conv", "convnext")}
    config = tiny_config | {"model": tiny_config["model"] | model}
    one, eight = (
        one_step(config, batch, mesh)
        for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2)))
    )
    assert_same(eight, one)
    kernel = eight[2].params["blocks"]["layer_1"]["convnext"]["depthwise"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 7, 7, 1, 8)


@pytest.mark.slow
def test_tangents_on_eight_devices_equal_those_on_one(tiny_config, monkeypatch):
    """The loss takes the model's derivative along x and t, as MeanFlow's does."""
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    rng = np.random.default_rng(0)
    config = from_dict(tiny_config)
    _, params = randomized(config)

    def value_and_gradients(mesh):
        graphdef, _ = abstract_model(config, mesh)
        places = jax.tree.map(lambda a: a.sharding, abstract_state(config, mesh).params)
        loss = functools.partial(loss_with_tangent, graphdef)
        return jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, places), *(split_rows(mesh, a) for a in (x, t, y))
        )

    x = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
    t = rng.uniform(size=16).astype(np.float32)
    y = rng.integers(0, 10, 16).astype(np.int32)
    actual = value_and_gradients(make_mesh(MeshConfig(2, 2, 2)))
    expected = value_and_gradients(make_mesh(devices=jax.devices()[:1]))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = np.abs(theirs).max() + 1e-12
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.slow
def test_microbatches_add_up_to_the_batch(tiny_config, batch, expected):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    assert_same(one_step(tiny_config, batch, mesh, num_microbatches=2), expected)


def test_the_rule_of_fsdp():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    shapes = {
        "blocks": {
            "kernel": (16, 64, 512),
            "of_each_k": (16, 8, 64, 512),
            "last": (16, 129, 512),
            "bias": (16, 512),
            "odd": (16, 129, 127),
            "depthwise": (16, 7, 7, 1, 512),
        },
        "head": (1024, 24),
    }
    state = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    specs = jax.tree.map(lambda s: tuple(s.spec), state_shardings(mesh, state))
    assert specs == {
        "blocks": {
            "kernel": (None, "fsdp"),
            "of_each_k": (None, None, "fsdp"),
            "last": (None, None, "fsdp"),
            "bias": (),
            "odd": (),
            "depthwise": (None, None, None, None, "fsdp"),
        },
        "head": (),
    }


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "does not fill 8 devices"),
        ((-1, 3, 1), "does not fill 8 devices"),
        ((-1, -1, 1), "one axis at most may be -1"),
    ],
)
def test_axes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"batch_size": 12}}, r"batch_size must be a multiple of the 4 devices .* 12"),
        ({"training": {"num_microbatches": 3}}, "times training.num_microbatches = 3, got 16"),
        ({"data": {"image_size": 9}}, "mesh.sequence must divide the 9 rows of tokens, got 2"),
        (
            {"model": {"name": "dit", "num_heads": 4, "mixer": "delta_conv", "pyramid": (1, 8)}},
            "mesh.sequence must divide the 1 rows of tokens at factor 8 of config.model.pyramid",
        ),
        (
            {"model": {"name": "dit", "num_heads": 4, "levels": (1,) * 7}},
            "mesh.sequence must divide the 1 rows of tokens in the middle of config.model.levels",
        ),
    ],
)
def test_batches_that_do_not_divide(changes, message):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
    fitting = {
        "model": {"width": 36, "m": 1},
        "training": {"batch_size": 16, "num_microbatches": 2},
        "data": {"image_size": 8},
    }
    check_divides(from_dict(fitting), mesh)
    with pytest.raises(UserError, match=message):
        check_divides(merge(fitting, changes), mesh)


def test_prefetch_gives_every_batch_in_order_and_its_errors():
    mesh = make_mesh()

    def batches():
        for index in range(5):
            yield {"x": np.full((8, 2), index), "label": np.arange(8)}
        raise ValueError("the sixth")

    fetched = prefetch(mesh, batches(), batch_size=8)
    for index in range(5):
        batch = next(fetched)
        np.testing.assert_array_equal(batch["x"], np.full((8, 2), index))
        np.testing.assert_array_equal(batch["label"], np.arange(8))
    with pytest.raises(ValueError, match="the sixth"):
        next(fetched)
