"""A search tries few settings, leaves out none that fits, and finds the best."""

import dataclasses
import importlib.util
import json
import logging
import math

import numpy as np
import pytest

from diffussm_jax import plan as plan_lib
from diffussm_jax.config import Config, from_dict
from diffussm_jax.config.parsing import ConfigError, with_fields
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.plans import CycleBudget, Memory, Plan, Speed
from diffussm_jax.planning.search import Candidate, Search
from diffussm_jax.planning.trials import Trial, best_of_each, describe, front

TOPOLOGY, DEVICES, ROOM = "v5e:4x4", 16, 16.0
XL = {"state": 10.7, "fixed": 2.2, "row": 0.4, "link": 40.0}
# Memory of activations, and time, against what `dots` takes.
ACTIVATIONS = {"full": 0.3, "dots": 1.0, "none": 2.5}
SLOWER = {"full": 1.3, "dots": 1.0, "none": 0.97}


def config_of(**fields):
    """A config of 256 images a step, with other values of the fields a__b."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return with_fields(Config(), named)


class Planner:
    """Plans by formulas: memory is linear in the rows, and falls with fsdp and recomputation."""

    def __init__(self, *, state, fixed, row, link):
        self.state, self.fixed, self.row, self.link = state, fixed, row, link
        self.planned = []

    def state_gib(self, config, _):
        return self.state / config.mesh.fsdp

    def plan(self, config, topology):
        self.planned.append(config)
        mesh, training, remat = config.mesh, config.training, config.model.remat
        rows = training.batch_size / (mesh.data * mesh.fsdp * training.num_microbatches)
        held = self.state_gib(config, topology)
        sums = held / 4 * (training.num_microbatches > 1)
        total = held + sums + self.fixed + self.row * ACTIVATIONS[remat] * rows
        fits = total < ROOM
        milliseconds = training.batch_size * SLOWER[remat]
        speed = Speed(
            cycles=CycleBudget(milliseconds * 1.5, milliseconds * 1.5, 0.0, (), 1.0),
            step_ms=milliseconds,
            images_per_second=1e3 * training.batch_size / milliseconds,
            mfu=0.5,
            chip_hours=1.0,
            collective_gb={},
            collective_ms=self.link * (1 + math.log2(mesh.fsdp)) * training.num_microbatches,
        )
        needed = {"total_gib": total} if fits else {"needed_gib": total}
        return Plan(
            topology=topology,
            chips=DEVICES,
            mesh=dataclasses.asdict(mesh),
            num_steps=training.num_steps,
            batch_size=training.batch_size,
            remat=remat,
            num_microbatches=training.num_microbatches,
            multiply_adds=1,
            memory=Memory(ROOM, held / 4, held / 4, held / 2, **needed),
            speed=speed if fits else None,
        )


def run(planner, config):
    search = Search(config, TOPOLOGY, DEVICES, plan=planner.plan, state_gib=planner.state_gib)
    return search, search.run()


def random_planners(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        low, high = np.log([[2, 0.1, 0.01, 1], [99, 9, 2, 99]])
        state, fixed, row, link = np.exp(rng.uniform(low, high)).tolist()
        yield Planner(state=state, fixed=fixed, row=row, link=link)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_left_out_does_not_fit_and_the_best_is_found(parts):
    """Against planning all: more microbatches than the config has only where nothing fits."""
    sizes = (64, 256, 1024)
    config = config_of(
        mesh__fsdp=16,
        plan__search=True,
        plan__search_batch_sizes=sizes,
        training__num_microbatches=parts,
    )
    some_left_out = 0
    for planner in random_planners(15):
        search, trials = run(planner, config)
        some_left_out += bool(search.left_out)
        for candidate in search.left_out:
            assert not planner.plan(candidate.applied_to(config), TOPOLOGY).fits
        every = [
            Candidate(DEVICES // fsdp, fsdp, 1, remat, size, 1)
            for fsdp in (1, 2, 4, 8, 16)
            for remat in ACTIVATIONS
            for size in sizes
        ]
        plans = [planner.plan(x.applied_to(config), TOPOLOGY) for x in every]
        fastest = max(Trial(plan, 1).images_per_second for plan in plans)
        if fastest:
            assert best_of_each(trials)[0].images_per_second >= fastest
    assert some_left_out > 5


def test_a_front_has_no_dominated_point_and_dominates_the_rest():
    for planner in random_planners(20):
        _, trials = run(planner, config_of(mesh__fsdp=4, plan__search=True))
        fitting = [x for x in trials if x.plan.fits]
        undominated = front(trials)
        for one in undominated:
            assert not any(beats(other, one) for other in fitting)
        for one in fitting:
            assert one in undominated or any(
                beats(x, one) or scores(x) == scores(one) for x in undominated
            )


def scores(trial):
    return trial.images_per_second, -trial.chip_hours, -trial.gib


def beats(one, other):
    ours, theirs = scores(one), scores(other)
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs))


def test_a_large_model_takes_few_plans():
    """XL on 16 chips: 5 meshes, each with what fits of two or three ways to recompute."""
    planner = Planner(**XL)
    _, trials = run(planner, config_of(mesh__fsdp=16, model__remat="dots", plan__search=True))
    assert len(planner.planned) <= 12
    assert trials[0].is_configured
    assert not any(x.is_configured for x in trials[1:])
    (best,) = best_of_each(trials)
    assert best.chip_hours <= trials[0].chip_hours


def test_microbatches_are_tried_where_nothing_fits_without():
    planner = Planner(state=20, fixed=1, row=4, link=1)
    _, trials = run(planner, config_of(plan__search=True, training__batch_size=512))
    (best,) = best_of_each(trials)
    assert best.plan.num_microbatches == 4
    assert {x.plan.num_microbatches for x in trials if x.plan.fits} == {4}
    _, trials = run(Planner(state=900, fixed=1, row=4, link=1), config_of(plan__search=True))
    assert trials
    assert not any(x.plan.fits for x in trials)


def test_a_batch_that_a_line_forbids_is_not_planned():
    planner = Planner(state=4, fixed=1, row=0.1, link=1)
    sizes = (256, 512, 4096)
    search, trials = run(planner, config_of(plan__search=True, plan__search_batch_sizes=sizes))
    assert Candidate(1, 16, 1, "dots", 4096, 1) in search.left_out
    hours = {x.plan.batch_size: x.chip_hours for x in trials if x.plan.mesh["fsdp"] == 1}
    assert hours[512] < hours[256]  # for as many images, with half as many times of the links


def test_a_search_is_told_and_written(monkeypatch, tmp_path, capsys, caplog):
    planner = Planner(**XL)

    def search(config, topology):
        return Search(
            config, topology, DEVICES, plan=planner.plan, state_gib=planner.state_gib
        ).run()

    monkeypatch.setattr(plan_lib, "search", search)
    monkeypatch.setattr(plan_lib, "num_devices", lambda *_: DEVICES)
    config = config_of(mesh__fsdp=16, plan__search=True, plan__topologies=("v5e:4x4", "v6e:4x4"))
    with caplog.at_level(logging.INFO, logger="diffussm_jax"):
        plan_lib.plan(config, tmp_path)
    written = json.loads((tmp_path / "search.json").read_text())
    assert json.loads(capsys.readouterr().out) == written
    assert [x["topology"] for x in written["best"]] == ["v5e:4x4", "v6e:4x4"]
    flags = " ".join(written["best"][0]["flags"])
    assert f"the best for v5e:4x4: {flags}" in caplog.text
    assert "--config.mesh.fsdp=" in flags
    assert describe([]) == "nothing fits"
    assert [x for x in written["trials"] if x["is_configured"]]


def test_batch_sizes_need_a_search():
    with pytest.raises(ConfigError, match="plan.search_batch_sizes must be None where plan.search"):
        from_dict({"plan": {"search_batch_sizes": (64,)}})


@pytest.mark.slow
@pytest.mark.tpu_aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux")
def test_a_killed_search_goes_on(tmp_path, monkeypatch, capsys):
    """By the real compiler: each program is compiled once."""
    config = config_of(
        plan__search=True,
        plan__topology="v5e:1x1",
        training__batch_size=16,
        model__name="dit",
        model__depth=2,
        model__width=64,
        model__num_heads=2,
    )
    compile_lowered, programs, stops = tpu_compiler.compile_lowered, [], [1]

    def compile_(lowered):
        if len(programs) in stops:
            stops.clear()
            raise KeyboardInterrupt
        programs.append(lowered.as_text())
        return compile_lowered(lowered)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tpu_compiler, "compile_lowered", compile_)
    with pytest.raises(KeyboardInterrupt):
        plan_lib.plan(config, None)
    plan_lib.plan(config, None)
    written = json.loads(capsys.readouterr().out)
    assert len(written["trials"]) == len(programs) == len(set(programs)) == 2  # dots and none
    assert written["best"][0]["images_per_second"] > 0
