"""A run that begins from another run: what is loaded, made again, left out and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax import train as train_lib
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.state import abstract_state
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.init_from import init_from
from diffussm_jax.workdir.weights import load_weights
from tests.conftest import merge
from tests.saved_runs import assert_equal
from tests.teachers import DIT, write_teacher

DIGITS = [str(i) for i in range(10)]
FILL = 7.0


def begin(tiny_config, folder, changes=None, class_names=DIGITS):
    """The state of a run with `changes` that begins from `folder`; it was all FILL before."""
    changes = changes or {}
    training = changes.get("training", {}) | {"init_from": str(folder)}
    config = merge(tiny_config, changes | {"training": training})
    mesh = make_mesh()
    abstract = abstract_state(config, mesh)
    state = jax.tree.map(lambda a: jnp.full(a.shape, FILL, a.dtype), abstract)
    return init_from(config, state, mesh, class_names=class_names)


def without_labels(params):
    return {name: value for name, value in params.items() if name != "label"}


@pytest.mark.parametrize("kind", ["run", "export"])
def test_the_same_model_loads_the_ema_whole(kind, tiny_config, trained, exported):
    state = begin(tiny_config, trained if kind == "run" else exported)
    assert_equal(state.params, load_weights(trained).params)
    assert_equal(state.ema, state.params)
    assert (np.asarray(jax.tree.leaves(state.optimizer)[-1]) == FILL).all()


@pytest.mark.parametrize(
    ("num_classes", "class_names"), [(3, ["a", "b", "c"]), (10, [f"letter {i}" for i in range(10)])]
)
def test_other_classes_begin_anew_and_nothing_else(
    num_classes, class_names, tiny_config, exported, caplog
):
    changes = {"data": {"num_classes": num_classes}}
    with caplog.at_level("INFO", "diffussm_jax"):
        state = begin(tiny_config, exported, changes, class_names)
    assert state.params["label"]["table"].shape == (num_classes + 1, 16)
    assert (np.asarray(state.params["label"]["table"]) == FILL).all()
    weights = load_weights(exported).params
    assert_equal(without_labels(state.params), without_labels(weights))
    assert "label.table: re-initialised, [11, 16] there" in caplog.text
    assert caplog.text.count(": loaded") == len(jax.tree.leaves(weights)) - 1


def test_without_classes_the_table_is_left_out_and_back(tiny_config, exported, caplog):
    with caplog.at_level("INFO", "diffussm_jax"):
        state = begin(tiny_config, exported, {"data": {"num_classes": 0}}, None)
    assert "label" not in state.params
    assert "label.table: left out" in caplog.text


def test_another_resolution_loads_and_names_the_dt_rate(tiny_config, exported, caplog):
    changes = {"data": {"image_size": 16}}
    state = begin(tiny_config, exported, changes)
    assert_equal(state.params, load_weights(exported).params)
    options = "--config.model.dt_rate=0.25 --config.model.position_scale=0.5"
    assert "16 x 16 tokens and that one 8 x 8: it begins as that one draws" in caplog.text
    assert options in caplog.text
    caplog.clear()
    begin(tiny_config, exported, changes | {"model": {"dt_rate": 0.25, "position_scale": 0.5}})
    assert not caplog.records


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 32}, r"blocks.modulation.linear.bias is \[2, 32\] there and \[2, 64\]"),
        ({"depth": 3}, r"blocks.modulation.linear.bias is \[2, 32\] there and \[3, 32\]"),
        ({"state_size": 4}, r"4 in all: blocks.ssm.a_im is \[2, 2, 16, 4\] there"),
        ({"gate": True}, r"2 in all: blocks.modulation.linear.bias is \[2, 32\] there"),
    ],
)
def test_another_model_is_refused_by_name(model, message, tiny_config, exported, caplog):
    with caplog.at_level("INFO", "diffussm_jax"), pytest.raises(UserError, match=message) as error:
        begin(tiny_config, exported, {"model": model})
    assert "\n" not in str(error.value)
    assert ": refused, " in caplog.text


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ({"mixer": "s4d", "scan_orders": "rows"}, {"scan_orders": "columns"}),
        ({}, {"num_heads": 4}),
        ({"mixer": "delta_conv"}, {"delta_gate": "sigmoid"}),
    ],
)
def test_weights_that_mean_something_else_are_refused(model, change, tiny_config, tmp_path):
    write_teacher(tmp_path / "export", model=model)
    begin(tiny_config, tmp_path / "export", {"model": DIT | model})
    (field,) = change
    with pytest.raises(UserError, match=f"mean something else: model.{field} is ") as error:
        begin(tiny_config, tmp_path / "export", {"model": DIT | model | change})
    assert "\n" not in str(error.value)


def test_another_process_is_said(tiny_config, exported, caplog):
    with caplog.at_level("INFO", "diffussm_jax"):
        begin(tiny_config, exported, {"diffusion": {"prediction": "v"}})
    assert "diffusion.prediction is 'v' here and was 'eps' there" in caplog.text


def test_an_embedding_that_the_model_is_told_more_by_is_added(tiny_config, exported, caplog):
    """It keeps its own start, at zero, so that the model begins as the one it comes from."""
    with caplog.at_level("INFO", "diffussm_jax"):
        state = begin(tiny_config, exported, {"guidance": {"max_scale": 4.0}})
    assert "guidance_scale.out.kernel: added, starts at zero" in caplog.text
    assert (np.asarray(state.params["guidance_scale"]["out"]["kernel"]) == FILL).all()
    assert_equal(state.params["timestep"], load_weights(exported).params["timestep"])


def test_what_is_no_run_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        begin(tiny_config, tmp_path)


@pytest.mark.slow
def test_a_finetuned_run_begins_there_and_resumes_as_any_other(tiny_config, trained, tmp_path):
    """Interrupted after two steps of four, it ends where the undisturbed one ends, bit for bit."""
    training = {"init_from": str(trained), "num_steps": 4}
    changes = {"training": training, "checkpoint": {"every": 2}}
    config = merge(tiny_config, changes)
    train_lib.train(config, tmp_path / "whole")
    half = merge(tiny_config, changes | {"training": training | {"num_steps": 2}})
    train_lib.train(half, tmp_path / "parts")
    train_lib.train(config, tmp_path / "parts")
    whole, parts = (read_state(config, tmp_path / x) for x in ("whole", "parts"))
    assert_equal(whole, parts)
    other = merge(tiny_config, changes | {"training": training | {"init_from": "x"}})
    with pytest.raises(UserError, match="training.init_from = "):
        train_lib.train(other, tmp_path / "parts")


def read_state(config, workdir):
    abstract = abstract_state(config, make_mesh())
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoints.restore(abstract).state


@pytest.mark.slow
def test_a_wrong_beginning_can_be_mended(tiny_config, trained, tmp_path):
    """The refused attempt leaves nothing that a later one takes for its own."""
    values = {"training": {"init_from": str(trained)}, "model": {"depth": 3}}
    with pytest.raises(UserError, match="config.training.init_from"):
        train_lib.train(merge(tiny_config, values), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    short = {"training": {"num_steps": 1, "sample_every": None}}
    train_lib.train(merge(tiny_config, short), tmp_path / "run")
