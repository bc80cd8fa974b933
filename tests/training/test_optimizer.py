import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffussm_jax.config import OptimizerConfig, from_dict
from diffussm_jax.training.optimizer import label_parameters, learning_rate, make_optimizer
from diffussm_jax.training.state import abstract_model
from tests.conftest import TINY_MODEL

PARAMS = {"dense": jnp.array([1.0, -2.0]), "ssm": {"log_dt": jnp.array([3.0])}}
GRADS = {"dense": jnp.array([0.3, -4.0]), "ssm": {"log_dt": jnp.array([2.0])}}


def test_groups_are_adamw_with_and_without_decay():
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, ssm_lr_multiplier=0.5)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    # The first step of Adam is the sign of the gradient.
    np.testing.assert_allclose(
        updates["dense"], -0.01 * (np.sign(GRADS["dense"]) + 0.1 * PARAMS["dense"]), rtol=1e-5
    )
    np.testing.assert_allclose(updates["ssm"]["log_dt"], [-0.005], rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    """Adam forgets the scale of one gradient, not the ratio of two."""
    clipped, plain = (
        make_optimizer(OptimizerConfig(learning_rate=1.0, grad_clip=clip)) for clip in (0.5, None)
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


def test_warmup():
    schedule = learning_rate(OptimizerConfig(learning_rate=2.0, warmup_steps=4))
    assert [float(schedule(step)) for step in (0, 1, 4, 100)] == [0.0, 0.5, 2.0, 2.0]
    assert learning_rate(OptimizerConfig(learning_rate=2.0))(0) == 2.0


@pytest.mark.parametrize("name", ["log_dt", "log_neg_a_re", "a_im", "b", "c", "skip"])
def test_every_ssm_parameter_of_a_model_is_in_the_ssm_group(name):
    _, params = abstract_model(from_dict({"model": TINY_MODEL}))
    labels = label_parameters(params)
    assert labels["blocks"]["ssm"][name] == "ssm"
    assert labels["blocks"]["w0"]["kernel"] == labels["embed"]["bias"] == "dense"
