"""`--mode=plan` for GPUs, by the real compiler where `make plan-gpu` installed it."""

import dataclasses
import json

import pytest

from diffussm_jax import plan as plan_lib
from diffussm_jax.parallel.cuda import has_cuda_plugin
from diffussm_jax.planning import gpu_compiler, programs
from diffussm_jax.planning.chips import GIB
from diffussm_jax.planning.estimate import chip_and_mesh, estimate
from diffussm_jax.planning.plans import GPU_FIELDS, Bound, FusionUse, Memory, Plan
from diffussm_jax.planning.report import report
from tests.conftest import merge

needs_compiler = pytest.mark.skipif(
    not has_cuda_plugin(), reason="JAX's CUDA plug-in is in the environment of `make plan-gpu`"
)


@pytest.fixture(autouse=True)
def no_fraction(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)


def small(tiny_config, **sections):
    data = {"space": "latents", "image_size": 128, "channels": 3}
    model = {"depth": 4, "width": 64, "dtype": "bfloat16", "remat": "dots"}
    values = {"data": data, "model": model, "training": {"batch_size": 16}}
    return merge(tiny_config, values | sections)


@pytest.mark.slow
@needs_compiler
def test_memory_is_the_compilers_own(tiny_config, tmp_path, capfd):
    config = small(tiny_config, plan={"topology": "l4:1"})
    plan_lib.plan(config, tmp_path)
    (written,) = json.loads((tmp_path / "plan.json").read_text())
    assert tuple(written) == GPU_FIELDS
    gpu, mesh = chip_and_mesh(config, "l4:1")
    step, state, batch, _ = programs.train_step(config, mesh)
    memory = gpu_compiler.compile_lowered(gpu_compiler.lower(step, state, batch)).memory_analysis()
    assert written["temporary_gib"] * GIB == memory.temp_size_in_bytes
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert (written["total_gib"] - written["temporary_gib"]) * GIB == pytest.approx(held)
    parts = sum(written[f"{name}_gib"] for name in ("parameters", "ema", "optimizer"))
    assert parts * GIB == pytest.approx(memory.argument_size_in_bytes, rel=0.05)
    assert written["hbm_gib"] == pytest.approx(0.75 * gpu.memory_bytes / GIB)
    least = written["bound"]
    assert 0 < least["step_ms"] <= least["uncached_step_ms"]
    assert least["images_per_second"] == pytest.approx(16e3 / least["step_ms"])
    # The forward and the backward pass of the dense layers, and the operator's products.
    assert least["multiply_adds"] > 3 * 16 * written["multiply_adds"]
    assert len(least["traffic"]) == 10
    assert all(x["source"].split(":")[0].endswith(".py") for x in least["traffic"][:3])
    assert 0 < written["sampler"]["bound"]["step_ms"] < least["step_ms"]
    assert "cuda" not in capfd.readouterr().err.lower()


@pytest.mark.slow
@needs_compiler
def test_several_cards_share_the_parameters(tiny_config):
    one, four = (estimate(small(tiny_config, mesh={"fsdp": n}), f"a100-40:{n}") for n in (1, 4))
    assert four.memory.parameters_gib < one.memory.parameters_gib
    assert one.bound.collective_gb == {}
    assert four.bound.collective_gb["all-gather"] > 0
    assert four.bound.collective_ms > 0
    assert "collectives, GB a chip" in report(four)


def held(config, topology):
    """A plan of 2 GiB of arguments and 10 of activations, of which `full` keeps 8."""
    temporary = {"none": 12.0, "dots": 10.0, "full": 8.0}[config.model.remat]
    memory = Memory(
        hbm_gib=4.0,
        parameters_gib=0.5,
        ema_gib=0.5,
        optimizer_gib=1.0,
        card_gib=5.0,
        temporary_gib=temporary / config.training.num_microbatches + 0.1,
        total_gib=2.1 + temporary / config.training.num_microbatches,
    )
    bound = Bound(
        step_ms=100.0 * config.training.num_microbatches,
        uncached_step_ms=1e3,
        memory_share=0.5,
        moved_gb=1.0,
        multiply_adds=1,
        images_per_second=1.0,
        chip_hours=1.0,
        collective_gb={},
        collective_ms=0.0,
        traffic=(FusionUse("fusion", "models/block.py:83", 4, 0.5, 0.5),),
    )
    return Plan(
        topology=topology,
        chips=1,
        mesh={"data": 1, "fsdp": 1, "sequence": 1},
        num_steps=1,
        batch_size=16,
        remat=config.model.remat,
        num_microbatches=config.training.num_microbatches,
        multiply_adds=1,
        memory=memory,
        bound=bound,
    )


def test_parts_of_a_batch_that_cannot_suffice_are_not_compiled(tiny_config, monkeypatch):
    """8.1 GiB of temporary arrays in 2 of room: 2 and 4 parts cannot fit, 8 may."""
    tried = []

    def estimate(config, topology):
        tried.append((config.model.remat, config.training.num_microbatches))
        return held(config, topology)

    monkeypatch.setattr(plan_lib, "estimate", estimate)
    monkeypatch.setattr(plan_lib, "estimate_sampler", lambda *_: None)
    plan = plan_lib.make_plan(small(tiny_config), "l4:1")
    assert tried == [("dots", 1), ("full", 1), ("full", 8)]
    assert plan.fits_with == {"model.remat": "full", "training.num_microbatches": 8}
    text = report(plan)
    assert "a card would need 12.1 of 4.0 GiB, the 80% of a card's 5.0 that" in text
    assert "at least 800 ms a step (bound), 50% of it memory" in text  # with the change
    assert "50.0%  models/block.py:83 (fusion, 4 times)" in text


def test_more_of_the_card_may_be_all_that_is_missing(tiny_config):
    plan = held(small(tiny_config), "l4:1")
    memory = dataclasses.replace(plan.memory, total_gib=4.5)
    text = report(dataclasses.replace(plan, memory=memory))
    assert "it fits with XLA_CLIENT_MEM_FRACTION=0.95 in the environment" in text
    assert "XLA_CLIENT_MEM_FRACTION" not in report(plan)
