"""Streams of several widths: the terms by hand, stage by stage, and what their gradients reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import from_dict, to_json
from diffussm_jax.diffusion import create_process
from diffussm_jax.training.distillation import relative_error, run
from diffussm_jax.training.objective import Frozen, make_objective, noise_batch
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, init_state
from diffussm_jax.training.step import make_train_step
from diffussm_jax.workdir.teacher import read_teacher_config
from tests.fuzz.one_line import error_of
from tests.models.tiny import randomized
from tests.teachers import VALUES, values_with
from tests.training.test_distillation import moved

# 4 blocks in stages of 1, 2 and 1: widths 16, 32 and 16, or 32 where the last stage is wide.
LEVELS = {"levels": (1, 2, 1), "num_heads": 2}
TEACHER = from_dict(values_with(VALUES, model=LEVELS))
WIDE = from_dict(values_with(VALUES, model=LEVELS | {"last_stage": "wide"}))


def student(optimizer=None, **distill):
    model = LEVELS | {"mixer": "convnext"}
    sections = {"training": {"teacher": "of this test"}, "optimizer": optimizer or {}}
    return from_dict(values_with(VALUES, model=model, **sections, distill=distill))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4, 8, 8, 1)), rng.integers(0, 10, 4)
    return {"image": jnp.asarray(images, jnp.uint8), "label": jnp.asarray(labels, jnp.int32)}


@functools.partial(jax.jit, static_argnums=0)
def by_hand(config, params, noised, forced=None):
    """What enters and what leaves each of four blocks, and what they make of `forced`."""
    model = nnx.merge(abstract_model(config)[0], params)
    x_t = create_process(config.diffusion).x_t(noised.x0, noised.t, noised.eps)
    of_level = [m.embed_conditions(noised.t, noised.y) for m in (model, model.level_1)]
    last = of_level[1 if config.model.last_stage == "wide" else 0]
    stages = [
        model.blocks.stage_0,
        model.blocks.stage_1,
        model.blocks.stage_1,
        model.blocks.stage_2,
    ]
    calls = zip(stages, (0, 0, 1, 0), (8, 4, 4, 8), (*of_level, of_level[1], last), strict=True)
    x = model.with_position(model.embed(model.rows(x_t), (8, 8)), (8, 8))
    entered, left, of_forced = [], [], []
    for number, (stage, index, side, c) in enumerate(calls):
        if number == 1:
            x = model.resampling.down(1, x, (8, 8))
        if number == 3:
            x = model.resampling.up(1, x, (4, 4), left[0])
        block = jax.tree.map(lambda a, i=index: a[i], stage)
        entered.append(x)
        if forced is not None:
            of_forced.append(block(forced[number], c, (side, side)))
        x = block(x, c, (side, side))
        left.append(x)
    return entered, left, of_forced


@pytest.mark.parametrize("teacher_forcing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_is_the_sum_of_its_terms(teacher_forcing, batch):
    config = student(output=0.3, features=2.0, blocks=(4, 1, 3), teacher_forcing=teacher_forcing)
    (graphdef, params), (structure, teacher) = randomized(config, seed=1), randomized(TEACHER)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)
    frozen = Frozen(params, teacher)
    losses = jax.jit(make_objective(config, graphdef, structure))(params, frozen, noised, 0)
    plain = jax.jit(make_objective(config, graphdef))(params, frozen, noised, 0)

    entered, theirs, _ = by_hand(TEACHER, teacher, noised)
    _, ours, of_theirs = by_hand(config, params, noised, entered)
    assert [x.shape[1:] for x in theirs] == [(64, 16), (16, 32), (16, 32), (64, 16)]
    terms = []
    for number in (1, 3, 4):
        compared, wanted = (of_theirs if teacher_forcing else ours)[number - 1], theirs[number - 1]
        error = np.square(np.array(compared) - np.array(wanted)).sum(axis=(1, 2))
        terms.append(error / np.square(np.array(wanted)).sum(axis=(1, 2)))
    features = np.mean(terms, axis=0)
    np.testing.assert_allclose(losses["distill_features"], features, rtol=1e-3)
    total = plain["loss"] + 0.3 * losses["distill_output"] + 2 * features
    np.testing.assert_allclose(losses["loss"], total, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_stages_of_one_shape_are_compared_though_others_differ(teacher_forcing, batch):
    config = student(features=1.0, blocks=(2, 1), teacher_forcing=teacher_forcing)
    (graphdef, params), (structure, teacher) = randomized(config, seed=1), randomized(WIDE)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)
    objective = jax.jit(make_objective(config, graphdef, structure))
    terms = objective(params, Frozen(params, teacher), noised, 0)
    entered, theirs, _ = by_hand(WIDE, teacher, noised)
    assert theirs[3].shape[2] == 32
    forced = [*entered[:3], jnp.zeros((4, 64, 16))]
    _, ours, of_theirs = by_hand(config, params, noised, forced)
    pairs = zip((of_theirs if teacher_forcing else ours)[:2], theirs[:2], strict=True)
    errors = [((a - b) ** 2).sum((1, 2)) / (b**2).sum((1, 2)) for a, b in pairs]
    np.testing.assert_allclose(terms["distill_features"], np.mean(errors, axis=0), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "teacher_forcing", "reached"),
    [
        (1, False, {"embed", "stage_0"}),
        (2, False, {"embed", "stage_0", "stage_1", "resampling.down_1"}),
        (2, True, {"stage_1"}),
        (4, True, {"stage_2"}),
    ],
)
def test_what_a_blocks_term_reaches(number, teacher_forcing, reached, batch):
    config = student()
    (graphdef, params), (structure, teacher) = randomized(config, seed=1), randomized(TEACHER)
    noised = noise_batch(config, jax.random.key(0), batch, 0.1)
    x_t = create_process(config.diffusion).x_t(noised.x0, noised.t, noised.eps)

    @jax.jit
    @jax.grad
    def gradients(params):
        networks = nnx.merge(graphdef, params), nnx.merge(structure, teacher)
        inputs = x_t, noised.t, noised.y, [number]
        _, theirs = run(networks[1], *inputs)
        _, ours = run(networks[0], *inputs, theirs if teacher_forcing else None)
        return relative_error(ours, theirs, [number]).sum()

    of = gradients(params)
    parts = {name: of[name] for name in ("embed", "modulation", "head", "out")} | of["blocks"]
    parts |= {f"resampling.{name}": part for name, part in of["resampling"].items()}
    touched = {
        name for name, part in parts.items() if any(np.any(x != 0) for x in jax.tree.leaves(part))
    }
    assert touched == reached
    if number == 2:  # the stage's first layer alone
        kernel = of["blocks"]["stage_1"]["convnext"]["widen"]["kernel"]
        assert [bool(np.any(x)) for x in kernel] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_all_but_the_mixers_stay(teacher_forcing, batch):
    options = {"features": 1.0, "teacher_forcing": teacher_forcing, "train": "mixers"}
    config = student(optimizer={"weight_decay": 0.1}, **options)
    (graphdef, params), (structure, teacher) = randomized(config), randomized(TEACHER)
    optimizer = make_optimizer(config)
    step = jax.jit(make_train_step(config, graphdef, optimizer, structure))
    state = jax.jit(lambda: init_state(config, optimizer))()
    state.params.update(params)
    after, metrics = step(state, batch, teacher)
    assert metrics["distill_features"] > 0
    assert moved(state.params, after.params) == {"mixer": {True}, "other": {False}}


@pytest.mark.parametrize(
    ("blocks", "config", "message"),
    [
        (None, WIDE, "stream has width 32 after block 4, and that of the model has 16"),
        ((4, 1), WIDE, "stream has width 32 after block 4, and that of the model has 16"),
        ((1, 3), WIDE, None),
        (None, TEACHER, None),
        ((1,), from_dict(VALUES), "model.levels = None, and the model has (1, 2, 1): config.disti"),
    ],
)
def test_streams_of_two_widths_are_refused(blocks, config, message, tmp_path):
    (tmp_path / "config.json").write_text(to_json(config))
    training = {"training": {"teacher": str(tmp_path)}}
    options = {"features": 1.0, "blocks": blocks}
    model = LEVELS | {"mixer": "convnext"}
    ours = from_dict(values_with(VALUES, model=model, **training, distill=options))
    if message is None:
        assert read_teacher_config(ours).model.levels == (1, 2, 1)
        return
    line = error_of(lambda: read_teacher_config(ours))
    assert line.startswith(f"error: config.training.teacher: {tmp_path} holds a run ")
    assert message in line
