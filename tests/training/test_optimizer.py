import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from diffussm_jax.config import OptimizerConfig, from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.training import muon
from diffussm_jax.training.optimizer import label_parameters, learning_rate, make_optimizer
from diffussm_jax.training.state import abstract_model
from tests.conftest import TINY_MODEL

PARAMS = {"dense": jnp.array([1.0, -2.0]), "ssm": {"log_dt": jnp.array([3.0])}}
GRADS = {"dense": jnp.array([0.3, -4.0]), "ssm": {"log_dt": jnp.array([2.0])}}


def config_of(num_steps=100, **optimizer):
    return from_dict({"optimizer": optimizer, "training": {"num_steps": num_steps}})


def test_groups_are_adamw_with_and_without_decay():
    optimizer = make_optimizer(
        config_of(learning_rate=0.01, weight_decay=0.1, ssm_lr_multiplier=0.5)
    )
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    # The first step of Adam is the sign of the gradient.
    np.testing.assert_allclose(
        updates["dense"], -0.01 * (np.sign(GRADS["dense"]) + 0.1 * PARAMS["dense"]), rtol=1e-5
    )
    np.testing.assert_allclose(updates["ssm"]["log_dt"], [-0.005], rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    """Adam forgets the scale of one gradient, not the ratio of two."""
    clipped, plain = (
        make_optimizer(config_of(learning_rate=1.0, grad_clip=clip)) for clip in (0.5, None)
    )
    small = {"dense": jnp.array([0.1, 0.1]), "ssm": {"log_dt": jnp.array([0.1])}}
    scale = 0.5 / float(optax.tree.norm(GRADS))
    state, expected_state = clipped.init(PARAMS), plain.init(PARAMS)
    for grads, factor in ((small, 1.0), (GRADS, scale)):
        updates, state = clipped.update(grads, state, PARAMS)
        by_hand = {
            "dense": grads["dense"] * factor,
            "ssm": {"log_dt": grads["ssm"]["log_dt"] * factor},
        }
        expected, expected_state = plain.update(by_hand, expected_state, PARAMS)
    np.testing.assert_allclose(updates["dense"], expected["dense"], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        ({}, {0: 0, 1: 0.5, 4: 2, 20: 2, 99: 2}),
        ({"warmup_steps": 0}, {0: 2, 99: 2}),
        ({"schedule": "cosine"}, {0: 0, 4: 2, 8: 1 + 0.5**0.5, 12: 1, 20: 0, 99: 0}),
        (
            {"schedule": "warmup_stable_decay", "decay_steps": 8},
            {0: 0, 1: 0.5, 4: 2, 12: 2, 16: 1, 19: 0.25, 20: 0, 99: 0},
        ),
        # Nothing stays between the rise and the fall.
        ({"schedule": "warmup_stable_decay", "decay_steps": 16}, {2: 1, 4: 2, 12: 1, 20: 0}),
    ],
)
def test_schedules_at_their_corners(schedule, corners):
    rate = learning_rate(config_of(20, **{"learning_rate": 2.0, "warmup_steps": 4} | schedule))
    got = [float(rate(step)) for step in corners]
    np.testing.assert_allclose(got, list(corners.values()), atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"schedule": "warmup_stable_decay"}, "decay_steps must be positive where .* got 0"),
        ({"schedule": "cosine", "decay_steps": 3}, "decay_steps must be .* 0 elsewhere, got 3"),
        ({"schedule": "cosine", "warmup_steps": 21}, "warmup_steps must be at most .* got 21"),
        (
            {"schedule": "warmup_stable_decay", "warmup_steps": 10, "decay_steps": 11},
            "warmup_steps must be at most .* = 20 - 11, got 10",
        ),
    ],
)
def test_schedules_that_do_not_fit(optimizer, message):
    with pytest.raises(ConfigError, match=message):
        config_of(20, **optimizer)


SSM = {f"blocks.ssm.{name}" for name in ("log_dt", "log_neg_a_re", "a_im", "b", "c", "skip")}
MATRICES = {
    "diffussm": ("modulation.linear", "w0", "w_up", "w_down", "w1", "w2", "w3"),
    "dit": ("modulation.linear", "attention.qkv", "attention.out", "mlp_in", "mlp_out"),
}
# By mixer, its matrices, and the kernels of its depthwise convolutions.
CONVOLUTIONAL = {
    "delta_conv": (("narrow", "out", "mean"), ("stage_0", "stage_1")),
    "convnext": (("widen", "out"), ("depthwise",)),
}
OUTSIDE = {
    *(f"{layer}.{part}" for layer in ("embed", "head") for part in ("kernel", "bias")),
    *(f"timestep.{layer}.{part}" for layer in ("hidden", "out") for part in ("kernel", "bias")),
    "modulation.linear.kernel",
    "modulation.linear.bias",
    "label.table",
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("model", MATRICES)
def test_the_group_of_every_parameter(model, optimizer):
    _, params = abstract_model(from_dict({"model": TINY_MODEL | {"name": model, "num_heads": 4}}))
    labels = flatten_dict(label_parameters(OptimizerConfig(name=optimizer), params), sep=".")
    kernels = {f"blocks.{name}.kernel" for name in MATRICES[model]}
    biases = {f"blocks.{name}.bias" for name in MATRICES[model]}
    expected = dict.fromkeys(OUTSIDE | biases, "dense")
    expected |= dict.fromkeys(kernels, "matrix" if optimizer == "muon" else "dense")
    expected |= dict.fromkeys(SSM if model == "diffussm" else (), "ssm")
    assert labels == expected


@pytest.mark.parametrize("mixer", CONVOLUTIONAL)
def test_depthwise_kernels_are_no_matrices(mixer):
    values = TINY_MODEL | {"name": "dit", "num_heads": 4, "mixer": mixer}
    _, params = abstract_model(from_dict({"model": values}))
    labels = label_parameters(OptimizerConfig(name="muon"), params)["blocks"]
    matrices, depthwise = CONVOLUTIONAL[mixer]
    expected = dict.fromkeys(matrices, "matrix") | dict.fromkeys(depthwise, "dense")
    kernels = {name: layer["kernel"] for name, layer in labels[mixer].items() if "kernel" in layer}
    assert kernels == expected


def by_hand(gradients):
    """Muon's updates of one matrix, in float64: Newton-Schulz of Nesterov's momentum."""
    momentum = np.zeros(gradients[0].shape)
    for g in gradients:
        momentum = 0.95 * momentum + 0.05 * g
        x = 0.95 * momentum + 0.05 * g
        x = x / np.linalg.norm(x)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        yield -0.2 * max(x.shape) ** 0.5 * x


SHAPES = {
    "w0": (2, 8, 8),
    "w_up": (2, 8, 16),
    "w3": (2, 16, 8),
    "w_down": (2, 3, 16, 8),  # grouped
    "modulation": (2, 8, 6 * 8),  # fused, as the next
    "qkv": (2, 8, 3 * 8),
}
RNG = np.random.default_rng(0)
KERNELS = [{name: RNG.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(2)]


@pytest.fixture(scope="module")
def muon_updates():
    """The updates of two steps from the gradients `KERNELS`, at a rate of 1 without decay."""
    optimizer = make_optimizer(config_of(name="muon", learning_rate=1.0))
    update, state, updates = jax.jit(optimizer.update), None, []
    for kernels in KERNELS:
        gradients = {"blocks": {n: {"kernel": jnp.array(g)} for n, g in kernels.items()}}
        state = state or optimizer.init(gradients)
        moved, state = update(gradients, state, gradients)
        updates.append({name: moved["blocks"][name]["kernel"] for name in kernels})
    return updates


def matrices(name, kernel):
    """The matrices of a stacked kernel, one after another."""
    num = {"modulation": 6, "qkv": 3}.get(name, 1)
    stack = np.asarray(kernel).reshape(-1, *kernel.shape[-2:])
    return [part for matrix in stack for part in np.split(matrix, num, axis=-1)]


@pytest.mark.parametrize("name", SHAPES)
def test_muon_of_each_matrix_of_a_kernel_is_newton_schulz(muon_updates, name):
    gradients = [matrices(name, kernels[name]) for kernels in KERNELS]
    expected = [by_hand(of_steps) for of_steps in zip(*gradients, strict=True)]
    updates = [matrices(name, of_step[name]) for of_step in muon_updates]
    for matrix, (first, second) in enumerate(expected):
        np.testing.assert_allclose(updates[0][matrix], first, atol=2e-5)
        np.testing.assert_allclose(updates[1][matrix], second, atol=2e-5)


def test_the_first_update_is_that_of_optax(muon_updates):
    """Later ones differ, because optax corrects the bias of its momentum."""
    gradient = jnp.array(KERNELS[0]["w3"][0])
    theirs = optax.contrib.muon(1.0, consistent_rms=muon.RMS)
    expected, _ = jax.jit(theirs.update)(gradient, theirs.init(gradient), gradient)
    np.testing.assert_allclose(muon_updates[0]["w3"][0], expected, atol=1e-5)


def test_muon_decays_weights_and_leaves_a_zero_gradient():
    optimizer = make_optimizer(config_of(name="muon", learning_rate=0.1, weight_decay=0.5))
    params = {"blocks": {"w3": {"kernel": jnp.ones((2, 4, 4))}}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["w3"]["kernel"], -0.05)
