"""What a student takes from its teacher, which teachers are refused, and that a run goes on."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import ModelConfig, from_dict, to_json
from diffussm_jax.encode import encode
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.train import train
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.workdir.data_facts import write_data_facts
from diffussm_jax.workdir.inheritance import (
    began_with_own_ssm,
    by_layer,
    facts_of,
    inherit,
    judge,
    stacked,
    unshown_differences,
)
from diffussm_jax.workdir.init_from import Outcome
from diffussm_jax.workdir.teacher import open_teacher
from diffussm_jax.workdir.unshown import OF_MIXERS, OF_POSITIONS, OF_STEPS
from tests.conftest import merge
from tests.fuzz.one_line import error_of, files_of
from tests.models.tiny import inputs, tiny
from tests.saved_runs import assert_equal, restored
from tests.teachers import HYBRID, VALUES, values_with, write_teacher

FOUR = {"depth": 4}
S4D = {"name": "dit", "mixer": "s4d"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "export"
    return folder, write_teacher(folder, model=FOUR)


def student_of(folder, **changes):
    changes["training"] = {"teacher": str(folder)} | changes.get("training", {})
    return from_dict(values_with(VALUES, **changes))


def shapes(**model):
    config = tiny(**model)
    return jax.eval_shape(lambda x: by_layer(config.model, x), abstract_model(config)[1])


def test_a_hybrid_begins_as_its_teacher_without_the_mixers_that_it_replaces(
    teacher, tmp_path, caplog
):
    folder, theirs = teacher
    config = student_of(folder, model=FOUR | HYBRID)
    one = make_mesh(devices=jax.devices()[:1])
    new = jax.jit(lambda: init_state(config, make_optimizer(config)))()
    with caplog.at_level("INFO", "diffussm_jax"):
        state = inherit(config.model, new, open_teacher(config, one, tmp_path))
    assert_equal(state.ema, state.params)
    ours, initial = (x.params["blocks"]["layer_0"]["s4d"]["ssm"] for x in (state, new))
    assert_equal(ours, initial)
    kernel = state.params["blocks"]["layer_1"]["attention"]["qkv"]["kernel"]
    assert_equal(kernel, theirs["blocks"]["attention"]["qkv"]["kernel"][1::2])
    assert "blocks.s4d.out.kernel, layers 0, 2 (from 0): added, starts at zero" in caplog.text
    assert "blocks.mlp_in.kernel, layers 0, 1, 2, 3 (from 0): loaded" in caplog.text
    assert "blocks.attention.qkv.kernel, layers 0, 2 (from 0): left out" in caplog.text

    out = theirs["blocks"]["attention"]["out"]
    keep = np.array([0, 1, 0, 1], np.float32)
    without = {name: (x.T * keep).T for name, x in out.items()}
    attention = theirs["blocks"]["attention"] | {"out": without}
    theirs = theirs | {"blocks": theirs["blocks"] | {"attention": attention}}
    plain = from_dict(values_with(VALUES, model=FOUR))
    outputs = [
        nnx.merge(abstract_model(c)[0], jax.tree.map(jnp.asarray, params))(*inputs())
        for c, params in ((config, state.params), (plain, theirs))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


U = {"name": "dit", "mixer": "convnext", "levels": (2, 4, 2)}
HYBRID_U = HYBRID | {"name": "dit", "levels": (2, 2, 2)}


@pytest.mark.parametrize(
    "model",
    [
        HYBRID | {"name": "dit", "depth": 4},
        {"depth": 3},
        HYBRID | {"name": "dit", "levels": (2, 4, 2)},
    ],
    ids=str,
)
def test_layers_stack_as_they_were(model):
    config = tiny(**model)
    rng, (_, shapes) = np.random.default_rng(0), abstract_model(config)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    assert_equal(stacked(config.model, by_layer(config.model, params)), params)


@pytest.mark.parametrize(
    ("ours", "theirs", "zero"),
    [({"state_size": 16}, {}, "blocks.1.w3"), (S4D | {"state_size": 16}, S4D, "blocks.1.s4d.out")],
)
def test_of_a_mixer_that_fits_in_part_the_output_starts_at_zero(ours, theirs, zero):
    heads = {"num_heads": 2}
    verdicts = judge(shapes(**heads, **ours), shapes(**heads, **theirs))
    for name in ("kernel", "bias"):
        assert verdicts[f"{zero}.{name}"].outcome is Outcome.ADDED
    outcomes = {x.outcome for x in verdicts.values()} - {Outcome.LEFT_OUT}
    assert outcomes == {Outcome.LOADED, Outcome.NEW, Outcome.ADDED}
    same = judge(shapes(**heads, **ours), shapes(**heads, **ours))
    assert {x.outcome for x in same.values()} == {Outcome.LOADED}


@pytest.mark.parametrize(
    ("theirs", "training", "is_own"),
    [
        (S4D, {}, False),
        (S4D | {"scan_orders": "rows"}, {}, True),  # as wide as none of the student's
        ({}, {}, True),  # attention
        ({}, {"init_from": "elsewhere"}, False),
    ],
    ids=str,
)
def test_a_run_and_its_export_know_whether_ssms_are_inherited(theirs, training, is_own, tmp_path):
    folder = tmp_path / "teacher"
    write_teacher(folder, model=theirs)
    config = student_of(folder, model=S4D, training=training)
    one = make_mesh(devices=jax.devices()[:1])
    taught = open_teacher(config, one, tmp_path)
    facts = facts_of(config, abstract_state(config, one).params, taught)
    write_data_facts(tmp_path, facts)
    assert began_with_own_ssm(tmp_path, from_dict(VALUES)) is is_own


def test_without_facts_the_config_says_what_a_run_began_with(tmp_path):
    assert began_with_own_ssm(tmp_path, from_dict(VALUES))
    other = from_dict(values_with(VALUES, training={"init_from": "elsewhere"}))
    assert not began_with_own_ssm(tmp_path, other)
    write_data_facts(tmp_path, {"teacher_sha256": "of an earlier version"})
    assert not began_with_own_ssm(tmp_path, from_dict(VALUES))


DELTA_CONV = {"name": "dit", "mixer": "delta_conv"}
CONVNEXT = {"name": "dit", "mixer": "convnext"}
UNSHOWN = [
    (S4D | {"scan_orders": "rows"}, {"scan_orders": "columns"}, "s4d"),
    (S4D, {"dt_rate": (1.0, 0.5)}, "s4d"),
    ({"name": "diffussm"}, {"dt_rate": 0.5}, "ssm"),
    (DELTA_CONV, {"delta_gate": "sigmoid"}, "delta_conv"),
    (DELTA_CONV, {"pyramid": (1, 4)}, "delta_conv"),
    (CONVNEXT, {"modulate_convolved": True}, "convnext"),
]


@pytest.mark.parametrize(("model", "change", "module"), UNSHOWN, ids=str)
def test_a_mixer_that_no_shape_tells_apart_begins_anew(model, change, module):
    model = {"num_heads": 2} | model
    ours, theirs = (tiny(**x).model for x in (model | change, model))
    unshown = unshown_differences(ours, theirs)
    verdicts = judge(shapes(**model | change), shapes(**model), unshown)
    mine = {name: x for name, x in verdicts.items() if f".{module}." in name}
    assert {x.outcome for x in mine.values()} <= {Outcome.NEW, Outcome.ADDED}
    (field,) = change
    reasons = {x.reason for x in mine.values() if x.outcome is Outcome.NEW}
    value, before = (getattr(x, field) for x in (ours, theirs))
    assert reasons == {f"model.{field} is {value!r} here and was {before!r} there"}
    last = "blocks.1.w3" if module == "ssm" else f"blocks.1.{module}.out"
    assert verdicts[f"{last}.kernel"].outcome is Outcome.ADDED
    others = {x.outcome for name, x in verdicts.items() if not name.startswith("blocks.")}
    assert others == {Outcome.LOADED}
    assert verdicts["blocks.1.modulation.linear.kernel"].outcome is Outcome.LOADED


def test_equal_rates_and_fields_of_absent_mixers_are_no_difference():
    both = tiny(**S4D | {"dt_rate": (1.0, 0.5)}).model
    same = dataclasses.replace(both, delta_gate="sigmoid", modulate_convolved=True, num_heads=2)
    assert unshown_differences(both, same) == {}
    pair = dataclasses.replace(both, dt_rate=(2.0, 2.0))
    assert unshown_differences(pair, dataclasses.replace(both, dt_rate=2.0)) == {}


OF_COMPUTING = {  # and of initial values
    *("dtype", "residual_dtype", "remat", "scan_unroll", "dt_range"),
    *("ssm_implementation", "stack_implementation", "attention_implementation"),
}
BY_SHAPE = {
    "name": ({}, {"name": "dit"}),
    "depth": ({}, {"depth": 4}),
    "width": ({}, {"width": 32}),
    "patch_size": ({}, {"patch_size": 2}),
    "m": ({}, {"m": 4}),
    "state_size": ({}, {"state_size": 16}),
    "direction": ({}, {"direction": "forward"}),
    "share_ssm": ({}, {"share_ssm": True}),
    "gate": ({}, {"gate": True}),
    "mixer": (S4D, {"mixer": "dico"}),
    "mixers": ({"name": "dit"}, {"mixers": ("attention", "s4d")}),
    "kernel_size": (CONVNEXT, {"kernel_size": 3}),
    "mlp_ratio": (S4D, {"mlp_ratio": 2}),
    "levels": (S4D, {"levels": (2, 2, 2)}),
    "last_stage": (S4D | {"levels": (2, 2, 2)}, {"last_stage": "wide"}),
}


def test_every_field_of_the_network_is_told_by_shapes_or_by_name():
    """A new field that changes what parameters mean has to be placed here."""
    named = {x for fields in (OF_MIXERS, OF_STEPS) for names in fields.values() for x in names}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == OF_COMPUTING | BY_SHAPE.keys() | named | {*OF_POSITIONS}
    for field, (model, change) in BY_SHAPE.items():
        one, other = ({"num_heads": 2, **model, **x} for x in ({}, change))
        outcomes = {x.outcome for x in judge(shapes(**one), shapes(**other)).values()}
        assert outcomes != {Outcome.LOADED}, field


def test_other_positions_are_said(teacher, tmp_path, caplog):
    one = make_mesh(devices=jax.devices()[:1])
    config = student_of(teacher[0], model={"position_scale": 0.5})
    state = jax.jit(lambda: init_state(config, make_optimizer(config)))()
    inherit(config.model, state, open_teacher(config, one, tmp_path))
    assert "model.position_scale is 0.5 here and was 1.0 there" in caplog.text


def test_stages_are_compared_one_by_one():
    """A U of fewer layers takes those of a longer one; one stack has no layers in common."""
    verdicts = judge(shapes(**U), shapes(**U | {"levels": (2, 6, 2), "mlp_ratio": 2}))
    assert verdicts["blocks.1:3.convnext.widen.kernel"].outcome is Outcome.LOADED
    assert verdicts["blocks.1:5.convnext.widen.kernel"].outcome is Outcome.LEFT_OUT
    assert verdicts["blocks.2:0.mlp_in.kernel"].outcome is Outcome.NEW
    verdicts = judge(shapes(**U), shapes(**U | {"levels": None, "depth": 8}))
    taken = [name for name, x in verdicts.items() if x.outcome is Outcome.LOADED]
    assert taken
    assert not any(name.startswith("blocks.") for name in taken)


FLOW = {"process": "flow", "variance": "none", "prediction": "v"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"image_size": 16}}, "holds a run with grid = (8, 8, 1), and the model has (16,"),
        ({"data": {"num_classes": 0}}, "data.num_classes = 10, and the model has 0"),
        ({"diffusion": {"prediction": "v"}}, "diffusion.prediction = 'eps'"),
        ({"diffusion": FLOW, "sample": {"sampler": "euler"}}, "diffusion.process = 'gaussian'"),
        ({"diffusion": {"variance": "fixed_small"}}, "diffusion.variance = 'learned_range'"),
        ({"model": {"num_heads": 4}}, "model.num_heads = 2"),
        ({"distill": {"features": 1.0}}, "model.depth = 4, and the model has 2: config.distill.fe"),
        ({"training": {"teacher": "nowhere"}}, "nowhere holds no run"),
    ],
)
def test_a_teacher_of_another_task_is_refused(changes, message, teacher, data_dir, tmp_path):
    changes["data"] = {"data_dir": data_dir} | changes.get("data", {})
    config = student_of(teacher[0], **changes)
    line = error_of(lambda: train(config, tmp_path / "run"))
    assert line.startswith("error: config.training.teacher: ")
    assert message in line
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("command", [lambda config, folder: encode(config), train])
def test_a_teacher_is_looked_for_before_the_data(command, tmp_path):
    """Neither latents nor images nor an autoencoder are there."""
    nowhere = {"space": "latents", "data_dir": str(tmp_path / "nowhere"), "name": "cifar10"}
    config = student_of(tmp_path / "teacher", data=nowhere | {"image_size": 32})
    line = error_of(lambda: command(config, tmp_path / "run"))
    assert line.startswith(f"error: config.training.teacher: {tmp_path / 'teacher'} holds no run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("distill", [{"features": 1.0}, {"output": 0.0}, {"train": "mixers"}])
def test_who_trains_without_a_teacher_learns_from_none(distill, tmp_path):
    config = from_dict(values_with(VALUES, distill=distill))  # as that of an export
    (name,) = distill
    line = error_of(lambda: train(config, tmp_path / "run"))
    assert line.startswith(f"error: config.distill.{name} must be ")
    assert "where training.teacher is None" in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_with_such_a_field_goes_on(tiny_config, trained, caplog):
    config = merge(tiny_config, {"distill": {"teacher_forcing": True}})
    (trained / "config.json").write_text(to_json(config))
    with caplog.at_level("INFO", "diffussm_jax"):
        train(config, trained)
    assert "is done: step 6 of 6" in caplog.text


@pytest.mark.parametrize("distill", [{"blocks": (1,)}, {"teacher_forcing": True}])
def test_streams_that_nobody_compares_are_not_chosen(distill, tmp_path):
    values = values_with(VALUES, distill=distill, training={"teacher": "x"})
    (name,) = distill
    line = error_of(lambda: train(from_dict(values), tmp_path / "run"))
    assert line.startswith(f"error: config.distill.{name} must be ")
    assert "where distill.features is 0" in line


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "export.json"])
def test_a_damaged_teacher_is_refused(file, teacher, data_dir, tmp_path):
    folder = shutil.copytree(teacher[0], tmp_path / "teacher")
    (folder / file).write_bytes(b'{"model": 3}')
    config = student_of(folder, data={"data_dir": data_dir})
    line = error_of(lambda: train(config, tmp_path / "run"))
    assert line.startswith("error: config.training.teacher: ")
    assert file in line


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits_with_the_same_teacher_alone(teacher, data_dir, tmp_path):
    def config_of(folder, **training):
        return student_of(
            folder,
            model=FOUR | HYBRID,
            data={"data_dir": data_dir},
            training=training,
            distill={"features": 1.0, "train": "mixers", "all_after": 3},
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config_of(teacher[0]), whole)
    train(config_of(teacher[0], num_steps=2), parts)
    elsewhere = shutil.copytree(teacher[0], tmp_path / "elsewhere")
    other = tmp_path / "other"
    write_teacher(other, seed=1, model=FOUR)
    before = files_of(parts)
    assert "began with another teacher" in error_of(lambda: train(config_of(other), parts))
    assert files_of(parts) == before
    train(config_of(elsewhere), parts)
    config = config_of(teacher[0])
    assert_equal(restored(config, parts).state, restored(config, whole).state)
    without = dataclasses.replace(config.training, teacher=None)
    plain = dataclasses.replace(config, training=without)
    assert "training.teacher" in error_of(lambda: train(plain, parts))
