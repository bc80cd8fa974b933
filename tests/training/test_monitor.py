"""Losses and gradients that are not finite: skipped, counted, named, stopped at; and spikes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict
from diffussm_jax.data.pipeline import example_indices, open_source, stacks_of, train_batches
from diffussm_jax.errors import NonFiniteError
from diffussm_jax.training.monitor import NumericsMonitor
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, init_state
from diffussm_jax.training.step import make_train_step
from tests.conftest import merge
from tests.saved_runs import assert_equal

GOOD, BAD = 0.0, jnp.nan


@pytest.fixture(scope="module")
def latent_step(tiny_config):
    """A train step on 8 x 8 x 4 latents that stops after three, and the state before it."""
    data = {"space": "latents", "image_size": 64, "channels": 3}
    config = merge(tiny_config, {"data": data, "training": {"max_nonfinite": 3}})
    optimizer = make_optimizer(config)
    graphdef, _ = abstract_model(config)
    step = jax.jit(make_train_step(config, graphdef, optimizer))
    return step, jax.jit(lambda: init_state(config, optimizer))()


def latent_batch(mean):
    shape = (16, 8, 8, 4)
    return {
        "mean": jnp.full(shape, mean, jnp.float16),
        "std": jnp.ones(shape, jnp.float16),
        "label": jnp.zeros(16, jnp.int32),
    }


def run(latent_step, means):
    """The states and metrics of steps on batches of these means."""
    step, state = latent_step
    states, rows = [state], []
    for mean in means:
        state, metrics = step(state, latent_batch(mean))
        states.append(state)
        rows.append(jax.device_get(metrics))
    return states, rows


def weights(state):
    return state.params, state.ema, state.optimizer


def test_an_update_that_is_not_finite_is_dropped_and_counted(latent_step):
    states, rows = run(latent_step, [GOOD, BAD, BAD, GOOD, BAD])
    assert_equal(weights(states[1]), weights(states[3]))
    assert_equal(weights(states[4]), weights(states[5]))
    assert not np.array_equal(states[4].ema["head"]["bias"], states[3].ema["head"]["bias"])
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4, 5]
    assert [int(row["skipped"]) for row in rows] == [0, 1, 2, 2, 3]
    assert [int(row["skipped_in_a_row"]) for row in rows] == [0, 1, 2, 0, 1]


def test_after_too_many_in_a_row_the_state_stands_still(latent_step):
    states, rows = run(latent_step, [GOOD, BAD, BAD, BAD, GOOD, BAD])
    assert_equal(states[4], states[5])
    assert_equal(states[4], states[6])
    assert_equal(weights(states[1]), weights(states[6]))
    assert int(states[6].step) == 4
    assert rows[-1]["skipped_in_a_row"] == 3


def test_a_skip_changes_nothing_of_the_steps_before(latent_step):
    """Bitwise: the state of a run that went on is that of one that never saw the fault."""
    step, _ = latent_step
    (*_, one), _ = run(latent_step, [GOOD, BAD])
    (_, other), _ = run(latent_step, [GOOD])
    after, _ = step(one, latent_batch(GOOD))
    again, _ = step(jax.tree.map(jnp.copy, one), latent_batch(GOOD))
    assert_equal(weights(one), weights(other))
    assert_equal(after, again)


def metrics_of(losses, *, limit=99):
    """Metrics as train steps give them."""
    rows, total, in_a_row = [], 0, 0
    for loss in losses:
        if in_a_row < limit:
            finite = np.isfinite(loss)
            total, in_a_row = total + (not finite), 0 if finite else in_a_row + 1
        rows.append(
            {
                "loss": np.float32(loss),
                "grad_norm": np.float32(1),
                "skipped": total,
                "skipped_in_a_row": in_a_row,
            }
        )
    return rows


def test_skipped_steps_are_named_with_their_examples(tiny_config, caplog):
    config = from_dict(tiny_config)
    monitor = NumericsMonitor(config, runs=[range(1498)])
    made = monitor.check(1, metrics_of([1.0, np.nan, 2.0]))
    assert [row["loss"] for row in made] == [1.0, 2.0]
    (record,) = caplog.records
    assert "step 2: loss is nan; its batch is examples" in record.message
    assert "its update was skipped, 1 in a row, 1 in all" in record.message
    indices = example_indices(config, [range(1498)], step=1)
    assert f"examples {', '.join(map(str, indices))} of digits" in record.message


def test_the_named_examples_are_those_of_the_batch(tiny_config):
    config = from_dict(tiny_config)
    source = open_source(config, "train")
    batch = next(train_batches(config, source, start_step=4))
    indices = example_indices(config, stacks_of(source), step=4)
    for row, index in enumerate(indices):
        example = source.example(int(index), mirrored=False)
        np.testing.assert_array_equal(batch["image"][row], example["image"])


@pytest.mark.parametrize(
    ("training", "losses", "step"),
    [
        ({"on_nonfinite": "stop"}, [1.0, np.inf, 1.0], 2),
        ({"max_nonfinite": 3}, [np.nan, 1.0, np.nan, np.nan, np.nan, 1.0], 5),
    ],
)
def test_too_many_in_a_row_stop_the_run(tiny_config, training, losses, step):
    config = merge(tiny_config, {"training": training})
    rows = metrics_of(losses, limit=training.get("max_nonfinite", 1))
    with pytest.raises(NonFiniteError, match=rf"^step {step}: loss is (nan|inf)") as error:
        NumericsMonitor(config, runs=[range(1498)]).check(1, rows)
    assert error.value.step == step


def test_a_spike_warns_and_noise_does_not(tiny_config, caplog):
    config = from_dict(tiny_config)
    monitor = NumericsMonitor(config, runs=[range(1498)])
    losses = np.random.default_rng(0).normal(0.3, 0.02, 1000)
    monitor.check(1, metrics_of(losses))
    assert not caplog.records
    monitor.check(1001, metrics_of([0.3, 0.9, 0.3]))
    (record,) = caplog.records
    assert "step 1002: loss 0.9 is a spike" in record.message
    deviations = int(record.message.split(" robust")[0].split()[-1])
    assert 20 <= deviations <= 40  # 0.6 / 0.02, the spread estimated from 200


def test_a_steep_descent_and_a_constant_are_no_spikes(tiny_config, caplog):
    config = from_dict(tiny_config)
    descent = np.exp(-np.arange(300) / 30) + 0.1
    NumericsMonitor(config, runs=[range(1498)]).check(1, metrics_of(descent))
    constant = [0.5] * 100 + [0.52]
    NumericsMonitor(config, runs=[range(1498)]).check(1, metrics_of(constant))
    assert not caplog.records


def test_a_run_that_diverges_stops_before_it_is_saved(tiny_config, tmp_path):
    config = merge(
        tiny_config, {"optimizer": {"learning_rate": 1e18}, "training": {"on_nonfinite": "stop"}}
    )
    with pytest.raises(NonFiniteError, match=r"step \d: .* is (nan|inf)") as error:
        train_lib.train(config, tmp_path)
    saved = [int(p.name) for p in tmp_path.glob("checkpoints/[0-9]*")]
    assert all(step < error.value.step for step in saved)
