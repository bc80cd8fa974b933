"""`--mode=plan` through the real TPU compiler, on small models."""

import dataclasses
import importlib.util
import json

import pytest

from configs import imagenet512
from diffussm_jax import plan as plan_lib
from diffussm_jax.config import from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.estimate import estimate, estimate_sampler
from diffussm_jax.planning.plans import FIELDS
from diffussm_jax.planning.report import report
from tests.conftest import merge

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]


def small(tiny_config, **sections):
    """A model of 4 layers on 16 x 16 latents: 256 tokens, so that the TPU kernel serves."""
    data = {"space": "latents", "image_size": 128, "channels": 3}
    model = {"depth": 4, "width": 128, "state_size": 64, "dtype": "bfloat16"}
    values = {"data": data, "model": model, "training": {"batch_size": 64}}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return merge(tiny_config, values)


@pytest.fixture(autouse=True, scope="module")
def own_cache(shared):
    """Costs of kernels are kept among the files of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        yield


@pytest.fixture(scope="module")
def split_plan(tiny_config):
    config = small(tiny_config, mesh={"fsdp": 4}, model={"remat": "full"})
    return estimate(config, "v5e:2x2")


@pytest.mark.slow
def test_the_operator_in_a_dit_is_the_chips_own(tiny_config):
    """Not that of the machine which compiles."""
    model = {"name": "dit", "mixer": "s4d", "num_heads": 4, "depth": 2, "state_size": 16}
    plan = estimate(small(tiny_config, model=model), "v5e:1x1")
    names = {kernel.name for kernel in plan.speed.cycles.kernels}
    assert {"s4d_forward", "s4d_backward"} <= names


@pytest.mark.slow
def test_the_parts_of_a_plan_agree(split_plan):
    memory, speed = split_plan.memory, split_plan.speed
    assert split_plan.fits
    assert (split_plan.chips, split_plan.mesh) == (4, {"data": 1, "fsdp": 4, "sequence": 1})
    # The averages of tiny_config: the EMA and two of ema_lengths.
    assert memory.ema_gib == pytest.approx(3 * memory.parameters_gib)
    assert memory.optimizer_gib == pytest.approx(2 * memory.parameters_gib, rel=0.01)
    parts = memory.parameters_gib + memory.ema_gib + memory.optimizer_gib
    assert parts < memory.total_gib - memory.temporary_gib < 1.3 * parts + 0.05
    flops = 6 * split_plan.multiply_adds * speed.images_per_second
    assert speed.mfu == pytest.approx(flops / (4 * 197e12))
    assert speed.images_per_second == pytest.approx(64e3 / speed.step_ms)
    seconds = split_plan.num_steps * speed.step_ms / 1e3
    assert speed.chip_hours == pytest.approx(4 * seconds / 3600)
    written = split_plan.to_dict()
    assert tuple(written) == FIELDS
    assert written["total_gib"] == memory.total_gib
    assert written["collective_gb"] == speed.collective_gb


@pytest.mark.slow
def test_kernels_xla_and_waiting_are_the_steps_cycles(split_plan):
    """Full recomputation runs the forward kernels of each of the 4 layers twice."""
    cycles = split_plan.speed.cycles
    kernels = {kernel.name: kernel for kernel in cycles.kernels}
    calls = dict.fromkeys(("ssm_forward", "dense_up", "dense_down"), 8)
    calls |= dict.fromkeys(("ssm_backward", "dense_gate_back", "dense_hidden_back"), 4)
    calls |= dict.fromkeys(("dense_wide_back", "dense_up_back"), 4)
    assert {name: x.calls for name, x in kernels.items()} == calls
    parts = [cycles.xla_million_cycles, cycles.waiting_million_cycles]
    assert all(0 < part < cycles.million_cycles for part in parts)
    parts += [kernel.million_cycles for kernel in cycles.kernels]
    assert sum(parts) == pytest.approx(cycles.million_cycles)
    assert split_plan.speed.step_ms == pytest.approx(cycles.million_cycles / 1.5)  # GHz
    share = kernels["dense_down"].share
    assert share == kernels["dense_down"].million_cycles / cycles.million_cycles
    assert f"dense_down {share:.1%}" in report(split_plan)
    written = split_plan.to_dict()
    assert written["million_cycles"] == cycles.million_cycles
    assert written["kernels"] == tuple(map(dataclasses.asdict, cycles.kernels))


@pytest.mark.slow
def test_a_split_model_gathers_its_layers_twice(split_plan):
    """For the forward and for the backward pass: bytes against the sizes of the layers."""
    layers = 4 * 15 * 128**2 * 2  # dense weights in bfloat16
    tables = 4 * 128 * (16 + 4) * 128 * 4  # of the SSM, in float32
    gathered = split_plan.speed.collective_gb["all-gather"] * 1e9
    assert 1.8 * layers + tables < gathered < 4 * layers + 2 * tables


@pytest.mark.slow
def test_guidance_doubles_the_samplers_work(tiny_config):
    """But not its time: what forms the operator's tables does not grow with the batch."""
    data = {"space": "latents", "image_size": 128, "channels": 3, "num_classes": 10}
    plain, guided = (
        estimate_sampler(
            small(
                tiny_config,
                data=data,
                sample={"num": 64, "batch_size": 61, "steps": 5, "cfg_scale": scale},
            ),
            "v5e:2x2",
        )
        for scale in (1.0, 2.0)
    )
    assert plain.batch_size == guided.batch_size == 64
    assert plain.speed.images_per_second == pytest.approx(64e3 / (5 * plain.speed.step_ms))
    assert 1.2 < guided.speed.step_ms / plain.speed.step_ms < 2.2


@pytest.mark.slow
@pytest.mark.nightly
def test_attention_is_planned_too(tiny_config):
    """It has no kernels, and its products count."""
    model = {"name": "dit", "num_heads": 2, "remat": "full"}
    plan = estimate(small(tiny_config, model=model), "v5e:2x2")
    assert plan.fits
    assert 0 < plan.speed.mfu < 1
    assert plan.multiply_adds > 4 * 256 * (12 * 128**2 + 2 * 256 * 128)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_sequence_axis_divides_the_activations():
    """XL at 512: four chips to a sequence hold at most 1/2.5 of each further image on a data row.

    An image's part is the difference of two batches: gradients and cast parameters, which no axis
    but fsdp divides, take 4 GiB of either.
    """

    def of_an_image(topology, sequence):
        values = imagenet512.get_config().to_dict()
        values["mesh"] = {"data": 4, "sequence": sequence}
        held = []
        for batch_size in (4, 8):
            values["training"]["batch_size"] = batch_size
            held.append(estimate(from_dict(values), topology).memory.temporary_gib)
        return held[1] - held[0]

    whole, split = of_an_image("v5e:2x2", 1), of_an_image("v5e:4x4", 4)
    print(f"{whole:.3f} and {split:.3f} GiB")
    assert split < whole / 2.5


def test_a_v4_chip_is_one_device():
    assert len(tpu_compiler.devices("v4:2x2x1")) == 4


@pytest.mark.slow
@pytest.mark.nightly
def test_depth_slices_and_fsdp_change_what_they_should(split_plan, tiny_config):
    full = {"remat": "full"}
    alone = estimate(small(tiny_config, model=full), "v5e:2x2")
    assert "all-gather" not in alone.speed.collective_gb
    assert alone.speed.collective_gb["all-reduce"] > 0
    assert alone.memory.parameters_gib > 2.5 * split_plan.memory.parameters_gib
    deeper = small(tiny_config, mesh={"fsdp": 4}, model=full | {"depth": 8})
    cycles = estimate(deeper, "v5e:2x2").speed.cycles.million_cycles
    assert 1.6 < cycles / split_plan.speed.cycles.million_cycles < 2.2
    larger = small(tiny_config, mesh={"fsdp": 4}, model=full, training={"batch_size": 256})
    images_per_second = estimate(larger, "v5e:4x4").speed.images_per_second
    assert 3 < images_per_second / split_plan.speed.images_per_second < 4.5


@pytest.mark.slow
def test_what_does_not_fit_names_the_smallest_change(
    split_plan, tiny_config, tmp_path, monkeypatch, capsys
):
    """Memory as if a chip had room for the full recomputation alone."""
    config = small(tiny_config)
    tried, plans = [], []

    def estimate(config, topology):
        tried.append((config.model.remat, config.mesh.fsdp))
        if config.model.remat == "full":
            return split_plan
        refused = {"needed_gib": 36.0, "temporary_gib": 0.0, "total_gib": 0.0}
        memory = dataclasses.replace(split_plan.memory, **refused)
        plans.append(dataclasses.replace(split_plan, memory=memory, speed=None))
        return plans[-1]

    monkeypatch.setattr(plan_lib, "estimate", estimate)
    monkeypatch.setattr(plan_lib, "estimate_sampler", lambda *_: None)
    plan_lib.plan(config, tmp_path)
    assert tried == [("none", 1), ("dots", 1), ("full", 1)]
    (written,) = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits_with"] == {"model.remat": "full"}
    assert json.loads(capsys.readouterr().out) == [written]
    text = report(dataclasses.replace(plans[0], fits_with=written["fits_with"]))
    assert "a chip would need 36.0 of 16 GiB" in text
    assert "it fits with --config.model.remat=full" in text


@pytest.mark.slow
def test_the_compilers_refusal_is_read(tiny_config):
    """A batch whose activations no chip can hold."""
    config = small(tiny_config, model={"depth": 64}, training={"batch_size": 4 * 4096})
    plan = estimate(config, "v5e:2x2")
    assert not plan.fits
    assert plan.memory.needed_gib > 16
    written = plan.to_dict()
    assert written["step_ms"] == 0
    assert written["kernels"] == []


def test_errors_name_the_field(tiny_config):
    with pytest.raises(UserError, match="must be of TPUs, .*got 'v5e:3x5'"):
        estimate(small(tiny_config), "v5e:3x5")
    with pytest.raises(UserError, match="config.mesh: .* does not fill 4 devices"):
        estimate(small(tiny_config, mesh={"fsdp": 3}), "v5e:2x2")
    assert len(tpu_compiler.devices("v5e:2x2", num_slices=2)) == 8
