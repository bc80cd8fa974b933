"""The distillation terms against the same sums by hand, and what a step leaves untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffussm_jax.config import MeshConfig, from_dict
from diffussm_jax.diffusion import create_process
from diffussm_jax.parallel import mesh as mesh_lib
from diffussm_jax.parallel.feed import shard_batch
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.training.objective import Frozen, make_objective, noise_batch
from diffussm_jax.training.optimizer import label_mixers, make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.training.step import compile_train_step, make_train_step
from tests.models.tiny import randomized
from tests.teachers import HYBRID, VALUES, values_with

TEACHER = from_dict(VALUES)


def student(model=HYBRID, training=None, optimizer=None, **distill):
    training = {"teacher": "of this test"} | (training or {})
    sections = {"model": model, "training": training, "optimizer": optimizer or {}}
    return from_dict(values_with(VALUES, **sections, distill=distill))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8, 1))
    labels = rng.integers(0, 10, 16)
    return {"image": jnp.asarray(images, jnp.uint8), "label": jnp.asarray(labels, jnp.int32)}


def by_hand(config, params, noised, forced=None):
    """A DiT's output, the stream before and after each layer, and what layers make of `forced`."""
    model = nnx.merge(abstract_model(config)[0], params)
    x_t = create_process(config.diffusion).x_t(noised.x0, noised.t, noised.eps)
    x, c = model.enter(x_t, noised.t, noised.y)
    streams, of_forced = [x], []
    for index in range(len(jax.tree.leaves(model.blocks)[0])):
        block = jax.tree.map(lambda a, i=index: a[i], model.blocks)
        for layer in getattr(block, "layers", [block]):
            if forced is not None:
                of_forced.append(layer(forced[len(of_forced)], c, (8, 8)))
            streams.append(layer(streams[-1], c, (8, 8)))
    return model.leave(streams[-1], c, 8, 8), streams, of_forced


@pytest.mark.parametrize("teacher_forcing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_is_the_sum_of_its_terms(teacher_forcing, batch):
    config = student(output=0.3, features=2.0, blocks=(2,), teacher_forcing=teacher_forcing)
    graphdef, params = randomized(config, seed=1)
    teacher_graphdef, teacher = randomized(TEACHER, seed=2)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)
    frozen = Frozen(params, teacher)
    losses = jax.jit(make_objective(config, graphdef, teacher_graphdef))(params, frozen, noised, 0)
    plain = jax.jit(make_objective(config, graphdef))(params, frozen, noised, 0)

    target, theirs, _ = by_hand(TEACHER, teacher, noised)
    output, ours, of_theirs = by_hand(config, params, noised, theirs[:-1])
    compared, wanted = np.array(of_theirs[1] if teacher_forcing else ours[2]), np.array(theirs[2])
    features = ((compared - wanted) ** 2).sum(axis=(1, 2)) / (wanted**2).sum(axis=(1, 2))
    outputs = ((np.array(output) - np.array(target)) ** 2).mean(axis=(1, 2, 3))
    assert target.shape[-1] == 2  # the variance's channel too
    np.testing.assert_allclose(losses["distill_output"], outputs, rtol=1e-4)
    np.testing.assert_allclose(losses["distill_features"], features, rtol=1e-4)
    np.testing.assert_allclose(
        losses["loss"], plain["loss"] + 0.3 * outputs + 2 * features, rtol=1e-4
    )


def test_the_teacher_itself_has_nothing_to_learn_of_the_teacher(batch):
    config = student(model={}, features=1.0)
    graphdef, params = randomized(TEACHER)
    objective = make_objective(config, graphdef, graphdef)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)

    def terms(ours):
        losses = objective(ours, Frozen(params, params), noised, 0)
        return losses["distill_output"].sum() + losses["distill_features"].sum()

    loss, grads = jax.jit(jax.value_and_grad(terms))(params)
    assert loss < 1e-9  # the compiler may round the two differently
    assert max(np.abs(x).max() for x in jax.tree.leaves(grads)) < 1e-4


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher(batch):
    config = student(features=1.0, teacher_forcing=True)
    (graphdef, params), (structure, teacher) = randomized(config), randomized(TEACHER)
    objective = make_objective(config, graphdef, structure)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)
    grads = jax.jit(
        jax.grad(lambda x: objective(params, Frozen(params, x), noised, 0)["loss"].sum())
    )(teacher)
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


def moved(before, after):
    """Whether parameters differ, by whether they are a mixer's; all of a kind must agree."""
    labels = jax.tree.leaves(label_mixers(before))
    pairs = zip(labels, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    kinds = {}
    for label, a, b in pairs:
        kinds.setdefault(label, set()).add(bool(np.any(np.array(a) != np.array(b))))
    return kinds


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("all_after", [None, 2])
def test_the_optimizer_moves_mixers_alone(name, all_after):
    optimizer = {"name": name, "weight_decay": 0.1, "grad_clip": 1.0}
    optimizer = make_optimizer(student(optimizer=optimizer, train="mixers", all_after=all_after))
    kernel = jnp.ones((2, 4, 4))
    params = {
        "embed": {"bias": jnp.ones(4)},
        "blocks": {"layer_0": {"s4d": {"uz": {"kernel": kernel}}, "mlp_in": {"kernel": kernel}}},
    }
    states, moments = [params], optimizer.init(params)
    for _ in range(3):
        updates, moments = optimizer.update(params, moments, states[-1])
        states.append(optax.apply_updates(states[-1], updates))
    assert moved(states[0], states[2]) == {"mixer": {True}, "other": {False}}
    last = moved(states[2], states[3])
    assert last == {"mixer": {True}, "other": {all_after is not None}}
    if name == "adamw":
        held = sum(x.size for x in jax.tree.leaves(moments) if x.ndim)
        assert held == 2 * (kernel.size if all_after is None else 2 * kernel.size + 4)


@pytest.mark.slow
@pytest.mark.parametrize("all_after", [None, 2])
def test_all_but_the_mixers_stay(all_after, batch):
    optimizer = {"weight_decay": 0.1, "grad_clip": 1.0}
    config = student(optimizer=optimizer, train="mixers", all_after=all_after)
    graphdef, params = randomized(config)
    structure, teacher = randomized(TEACHER)
    optimizer = make_optimizer(config)
    step = jax.jit(make_train_step(config, graphdef, optimizer, structure))
    state = jax.jit(lambda: init_state(config, optimizer))()
    state.params.update(params)
    states = [state]
    for _ in range(3):
        states.append(step(states[-1], batch, teacher)[0])
    assert moved(states[0].params, states[2].params) == {"mixer": {True}, "other": {False}}
    last = moved(states[2].params, states[3].params)
    assert last == {"mixer": {True}, "other": {all_after is not None}}


@pytest.mark.slow
def test_eight_devices_equal_one(batch, monkeypatch):
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    config = student(
        model=HYBRID | {"remat": "full"},
        training={"num_microbatches": 2, "ema_decay": 0.9},
        features=1.0,
        teacher_forcing=True,
    )
    params, teacher = jax.device_get((randomized(config)[1], randomized(TEACHER)[1]))

    def one_step(mesh):
        graphdef, _ = abstract_model(config, mesh)
        structure, _ = abstract_model(TEACHER, mesh)
        abstract = abstract_state(config, mesh)
        places = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.jit(lambda: init_state(config, make_optimizer(config)), out_shardings=places)()
        state.params.update(jax.device_put(params, places.params))
        step = compile_train_step(config, graphdef, abstract, mesh, structure)
        theirs = jax.device_put(teacher, state_shardings(mesh, teacher))
        state, metrics = step(
            state, shard_batch(mesh, jax.device_get(batch), batch_size=16), theirs
        )
        moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
        return jax.device_get(metrics), jax.device_get(moments)

    one = one_step(make_mesh(devices=jax.devices()[:1]))
    eight = one_step(make_mesh(MeshConfig(2, 2, 2)))
    for name, value in one[0].items():
        np.testing.assert_allclose(eight[0][name], value, rtol=1e-4)
    for ours, theirs in zip(eight[1], one[1], strict=True):
        scale = np.abs(theirs).max() + 1e-12
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=5e-5)
